"""A recorded bag to the policy and critic of today: ros2 launch replay.launch.py bag:=outputs/bags

They answer the recorded requests, in a namespace of their own; no robot and no safety gate is started.
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition, UnlessCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

MODELS = os.path.join(os.path.dirname(__file__), "models.launch.py")


def value(argument, kind=str):
    return ParameterValue(LaunchConfiguration(argument), value_type=kind)


def node(executable, condition=None, follows_clock=True, **parameters):
    common = {"robot": value("robot"), "use_sim_time": follows_clock}
    return Node(
        package="valueguide_nodes",
        executable=executable,
        name=executable,
        namespace=LaunchConfiguration("namespace"),
        parameters=[{**common, **parameters}],
        remappings=[("/clock", "clock")],
        output="screen",
        condition=condition,
    )


def generate_launch_description():
    composed = LaunchConfiguration("composed")
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description=".mcap file, or folder of one recording"),
            DeclareLaunchArgument("rate", default_value="1.0", description="recorded seconds per second"),
            DeclareLaunchArgument(
                "robot", default_value="sim", description="name in configs/robots, or path of a description"
            ),
            DeclareLaunchArgument(
                "composed",
                default_value="true",
                choices=["true", "false"],
                description="policy and re-ranker in one process",
            ),
            DeclareLaunchArgument(
                "record", default_value="", description="folder for recordings; empty: none are made"
            ),
            DeclareLaunchArgument(
                "namespace", default_value="replay", description="keep it apart from a running graph's"
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(MODELS), launch_arguments=[("use_sim_time", "true")]
            ),
            node(
                "recorder",
                IfCondition(NotEqualsSubstitution(LaunchConfiguration("record"), "")),
                out=value("record"),
            ),
            node(
                "replay",
                IfCondition(composed),
                follows_clock=False,
                bag=value("bag"),
                rate=value("rate", float),
            ),
            node(
                "replay",
                UnlessCondition(composed),
                follows_clock=False,
                bag=value("bag"),
                rate=value("rate", float),
                wait_for="policy reranker",
            ),
        ]
    )
