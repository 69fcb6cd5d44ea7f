"""The whole graph on a robot: ros2 launch robot.launch.py robot:=wxai

Drivers that come with this project are started; robots under ros2_control have their own launch file,
which must be up before.
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EqualsSubstitution, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

GRAPH = os.path.join(os.path.dirname(__file__), "graph.launch.py")


def value(argument):
    return ParameterValue(LaunchConfiguration(argument), value_type=str)


def driver(executable, name, **parameters):
    """The node `robot`, when the argument `driver` is `name`."""
    return Node(
        package="valueguide_nodes",
        executable=executable,
        name="robot",
        namespace=LaunchConfiguration("namespace"),
        parameters=[{"robot": value("robot"), **parameters}],
        remappings=[("/clock", "clock")],
        ros_arguments=["--enclave", f"/valueguide/{executable}"],
        output="screen",
        condition=IfCondition(EqualsSubstitution(LaunchConfiguration("driver"), name)),
    )


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "robot",
                description="wxai, sim, ur5e, franka, another of configs/robots, or a description's path",
            ),
            DeclareLaunchArgument(
                "driver",
                default_value=LaunchConfiguration("robot"),
                description="driver to start: wxai or sim; any other starts none. Default: the robot's name",
            ),
            DeclareLaunchArgument(
                "namespace", default_value="", description="moves all names, so that graphs run side by side"
            ),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value=EqualsSubstitution(LaunchConfiguration("driver"), "sim"),
                choices=["true", "false"],
                description="time from /clock; by default for the simulated robot only",
            ),
            DeclareLaunchArgument(
                "address", default_value="192.168.1.2", description="of the arm's controller (wxai)"
            ),
            driver("wxai_robot", "wxai", address=value("address")),
            driver("sim_robot", "sim"),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(GRAPH)),
        ]
    )
