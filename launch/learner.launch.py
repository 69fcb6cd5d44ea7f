"""A second critic beside a running graph: it scores the same candidates, and nothing it says is run.

There is no online learner yet; this is the critic's side that it will feed. The re-ranker runs in
shadow mode under the name `shadow_reranker`, publishes under `shadow/`, and takes new critics through
the services `shadow/load_critic` and `shadow/rollback_critic`.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

#: What a re-ranker says and offers, moved aside, so that it is not taken for the running graph's.
OWN = ("decision", "shadow_decision", "critic_version", "load_critic", "rollback_critic", "set_shadow")


def value(argument, kind=str):
    return ParameterValue(LaunchConfiguration(argument), value_type=kind)


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "robot", default_value="sim", description="name in configs/robots, or path of a description"
            ),
            DeclareLaunchArgument(
                "critic", default_value="", description="critic folder; empty: the shipped one"
            ),
            DeclareLaunchArgument("device", default_value="cpu", description="torch device of the critic"),
            DeclareLaunchArgument(
                "beta", default_value="0.0", description="softmax temperature of the choice; 0: the best one"
            ),
            DeclareLaunchArgument("execute", default_value="4", description="steps executed of each chunk"),
            DeclareLaunchArgument(
                "namespace", default_value="", description="namespace of the running graph"
            ),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="false",
                choices=["true", "false"],
                description="time from /clock; as in the running graph",
            ),
            Node(
                package="valueguide_nodes",
                executable="reranker",
                name="shadow_reranker",
                namespace=LaunchConfiguration("namespace"),
                parameters=[
                    {
                        "robot": value("robot"),
                        "critic": value("critic"),
                        "beta": value("beta", float),
                        "execute": value("execute", int),
                        "device": value("device"),
                        "shadow": True,
                        "publish_chunk": False,
                        "use_sim_time": value("use_sim_time", bool),
                    }
                ],
                remappings=[("/clock", "clock"), *((name, f"shadow/{name}") for name in OWN)],
                ros_arguments=["--enclave", "/valueguide/shadow_reranker"],
                output="screen",
            ),
        ]
    )
