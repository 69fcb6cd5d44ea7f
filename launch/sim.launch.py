"""The whole graph on the simulated arm: ros2 launch sim.launch.py task:=pick_can seed:=3"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

GRAPH = os.path.join(os.path.dirname(__file__), "graph.launch.py")


def value(argument, kind=str):
    return ParameterValue(LaunchConfiguration(argument), value_type=kind)


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "robot", default_value="sim", description="name in configs/robots, or path of a description"
            ),
            DeclareLaunchArgument(
                "task", default_value="carrot_on_plate", description="simulated task of the first episode"
            ),
            DeclareLaunchArgument("seed", default_value="0", description="of the task's initial state"),
            DeclareLaunchArgument(
                "speed", default_value="1.0", description="simulated seconds per second; 1: real time"
            ),
            DeclareLaunchArgument(
                "faults", default_value="", description="JSON list of faults to inject, see sim/faults.py"
            ),
            DeclareLaunchArgument(
                "namespace", default_value="", description="moves all names, so that graphs run side by side"
            ),
            Node(
                package="valueguide_nodes",
                executable="sim_robot",
                name="robot",
                namespace=LaunchConfiguration("namespace"),
                parameters=[
                    {
                        "robot": value("robot"),
                        "task": value("task"),
                        "seed": value("seed", int),
                        "speed": value("speed", float),
                        "faults": value("faults"),
                        # It makes the clock that the others follow.
                        "use_sim_time": False,
                    }
                ],
                remappings=[("/clock", "clock")],
                ros_arguments=["--enclave", "/valueguide/sim_robot"],
                output="screen",
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(GRAPH), launch_arguments=[("use_sim_time", "true")]
            ),
        ]
    )
