"""Policy and re-ranker: in one process, in two, or not at all. For graph.launch.py and replay.launch.py."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import EqualsSubstitution, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

BOOLEANS = ["true", "false"]


def value(argument, kind=str):
    """An argument as a parameter of a fixed type: "4" stays a text, and "" is one."""
    return ParameterValue(LaunchConfiguration(argument), value_type=kind)


def node(executable, condition=None, **parameters):
    common = {"robot": value("robot"), "use_sim_time": value("use_sim_time", bool)}
    return Node(
        package="valueguide_nodes",
        executable=executable,
        name=executable,
        namespace=LaunchConfiguration("namespace"),
        parameters=[{**common, **parameters}],
        # Two simulations side by side each have a clock of their own.
        remappings=[("/clock", "clock")],
        # Who it is under SROS2 (docs/security-ros.md); without security, a name that means nothing.
        ros_arguments=["--enclave", f"/valueguide/{executable}"],
        output="screen",
        condition=condition,
    )


def generate_launch_description():
    together = IfCondition(EqualsSubstitution(LaunchConfiguration("composed"), "true"))
    apart = IfCondition(EqualsSubstitution(LaunchConfiguration("composed"), "false"))
    sampling = {"policy": value("policy"), "k": value("k", int)}
    scoring = {
        "critic": value("critic"),
        "critic_versions": value("critic_versions"),
        "beta": value("beta", float),
        "execute": value("execute", int),
        "shadow": value("shadow", bool),
        "device": value("device"),
        "server": value("server"),
        "server_timeout_s": value("server_timeout_s", float),
        "server_pictures": value("server_pictures"),
        "server_key": value("server_key"),
        "client_key": value("client_key"),
    }
    return LaunchDescription(
        [
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
            DeclareLaunchArgument(
                "critic_versions",
                default_value="",
                description="folder of critic versions to follow (valueguide critics); empty: none",
            ),
            DeclareLaunchArgument("k", default_value="16", description="candidates per decision"),
            DeclareLaunchArgument(
                "beta", default_value="0.0", description="softmax temperature of the choice; 0: the best one"
            ),
            DeclareLaunchArgument("execute", default_value="4", description="steps executed of each chunk"),
            DeclareLaunchArgument("device", default_value="cpu", description="torch device of the models"),
            DeclareLaunchArgument(
                "server",
                default_value="",
                description="tcp://HOST:PORT of valueguide serve, which has the models then; empty: none",
            ),
            DeclareLaunchArgument(
                "server_timeout_s",
                default_value="1.0",
                description="seconds that it may take to answer",
            ),
            DeclareLaunchArgument(
                "server_pictures",
                default_value="raw",
                choices=["raw", "png", "jpeg"],
                description="how pictures travel to the server",
            ),
            DeclareLaunchArgument(
                "server_key", default_value="", description="file of the server's public key, beyond loopback"
            ),
            DeclareLaunchArgument(
                "client_key", default_value="", description="file of this robot's secret key, beyond loopback"
            ),
            DeclareLaunchArgument(
                "shadow",
                default_value="false",
                choices=BOOLEANS,
                description="the critic scores and is logged, the policy's own candidate runs",
            ),
            DeclareLaunchArgument(
                "composed",
                default_value="true",
                choices=[*BOOLEANS, "elsewhere"],
                description="policy and re-ranker in one process, in two, or on another computer",
            ),
            DeclareLaunchArgument(
                "namespace", default_value="", description="moves all names, so that graphs run side by side"
            ),
            DeclareLaunchArgument(
                "use_sim_time", default_value="false", choices=BOOLEANS, description="time from /clock"
            ),
            node("policy", together, rerank="inline", **sampling, **scoring),
            node("policy", apart, rerank="remote", **sampling, **scoring),
            node("reranker", apart, **scoring),
        ]
    )
