"""A recorded bag to the policy and critic of today: ros2 launch replay.launch.py bag:=outputs/bags

They answer the recorded requests, in a namespace of their own; no robot and no safety gate is started.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

BOOLEANS = ["true", "false"]


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
    sampling = {"policy": value("policy"), "k": value("k", int)}
    scoring = {
        "critic": value("critic"),
        "beta": value("beta", float),
        "execute": value("execute", int),
        "shadow": value("shadow", bool),
        "device": value("device"),
    }
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description=".mcap file, or folder of one recording"),
            DeclareLaunchArgument("rate", default_value="1.0", description="recorded seconds per second"),
            DeclareLaunchArgument(
                "robot", default_value="sim", description="name in configs/robots, or path of a description"
            ),
            DeclareLaunchArgument(
                "policy", default_value="", description="policy folder or hub id; empty: the shipped one"
            ),
            DeclareLaunchArgument(
                "critic",
                default_value="",
                description="critic folder; empty: the shipped one; none: no critic",
            ),
            DeclareLaunchArgument("k", default_value="16", description="candidates per decision"),
            DeclareLaunchArgument(
                "beta", default_value="0.0", description="softmax temperature of the choice; 0: the best one"
            ),
            DeclareLaunchArgument("execute", default_value="4", description="steps executed of each chunk"),
            DeclareLaunchArgument("device", default_value="cpu", description="torch device of the models"),
            DeclareLaunchArgument(
                "shadow",
                default_value="false",
                choices=BOOLEANS,
                description="the critic scores and is logged, the policy's own candidate is chosen",
            ),
            DeclareLaunchArgument(
                "composed",
                default_value="true",
                choices=BOOLEANS,
                description="policy and re-ranker in one process",
            ),
            DeclareLaunchArgument(
                "record", default_value="", description="folder for recordings; empty: none are made"
            ),
            DeclareLaunchArgument(
                "namespace", default_value="replay", description="keep it apart from a running graph's"
            ),
            node("policy", IfCondition(composed), rerank="inline", **sampling, **scoring),
            node("policy", UnlessCondition(composed), rerank="remote", **sampling, **scoring),
            node("reranker", UnlessCondition(composed), **scoring),
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
