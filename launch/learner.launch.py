"""A critic learns beside a running graph: ros2 launch learner.launch.py record:=outputs/bags out:=outputs/it

The learner takes in what the graph's recorder writes to `record` and publishes critics to `out`/versions. A
second re-ranker, in shadow mode under the name `shadow_reranker`, scores the running graph's candidates with
the versions that serve there, and publishes under `shadow/`; nothing it says is run. A graph that is to work
with the learner's critics is started with critic_versions:=OUT/versions.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

BOOLEANS = ["true", "false"]
#: What a re-ranker says and offers, moved aside, so that it is not taken for the running graph's.
OWN = (
    "decision",
    "shadow_decision",
    "critic_version",
    "load_critic",
    "rollback_critic",
    "set_shadow",
)


def value(argument, kind=str):
    return ParameterValue(LaunchConfiguration(argument), value_type=kind)


def node(executable, name, condition=None, remappings=(), **parameters):
    common = {"robot": value("robot"), "critic": value("critic"), "device": value("device")}
    return Node(
        package="valueguide_nodes",
        executable=executable,
        name=name,
        namespace=LaunchConfiguration("namespace"),
        parameters=[{**common, **parameters, "use_sim_time": value("use_sim_time", bool)}],
        remappings=[("/clock", "clock"), *remappings],
        ros_arguments=["--enclave", f"/valueguide/{name}"],
        output="screen",
        condition=condition,
    )


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument("record", description="folder that the running graph's recorder writes to"),
            DeclareLaunchArgument(
                "out", description="folder of the learner, with versions/; one that is there goes on"
            ),
            DeclareLaunchArgument(
                "robot", default_value="sim", description="name in configs/robots, or path of a description"
            ),
            DeclareLaunchArgument(
                "policy",
                default_value="",
                description="policy folder or hub id, that of the running graph; empty: the shipped one",
            ),
            DeclareLaunchArgument(
                "critic",
                default_value="",
                description="critic folder where learning starts; empty: the shipped one",
            ),
            DeclareLaunchArgument(
                "offline", default_value="", description="datasets that are imported once, separated by ':'"
            ),
            DeclareLaunchArgument(
                "updates_per_step",
                default_value="0.5",
                description="gradient steps for each recorded control step",
            ),
            DeclareLaunchArgument(
                "publish_every", default_value="500", description="gradient steps between two versions"
            ),
            DeclareLaunchArgument(
                "promote",
                default_value="manual",
                description="manual, or after:N: what passed its check serves after N episodes in shadow",
            ),
            DeclareLaunchArgument(
                "options", default_value="", description="more options, as of `valueguide learner`"
            ),
            DeclareLaunchArgument(
                "nice", default_value="10", description="how much lower the learner's priority is, 0 to 19"
            ),
            DeclareLaunchArgument("device", default_value="cpu", description="torch device of the critics"),
            DeclareLaunchArgument(
                "shadow",
                default_value="true",
                choices=BOOLEANS,
                description="score the running graph's candidates beside it",
            ),
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
                choices=BOOLEANS,
                description="time from /clock; as in the running graph",
            ),
            node(
                "critic_learner",
                "critic_learner",
                record=value("record"),
                out=value("out"),
                policy=value("policy"),
                offline=value("offline"),
                updates_per_step=value("updates_per_step", float),
                publish_every=value("publish_every", int),
                promote=value("promote"),
                options=value("options"),
                nice=value("nice", int),
            ),
            node(
                "reranker",
                "shadow_reranker",
                IfCondition(LaunchConfiguration("shadow")),
                [(name, f"shadow/{name}") for name in OWN],
                critic_versions=ParameterValue([LaunchConfiguration("out"), "/versions"], value_type=str),
                beta=value("beta", float),
                execute=value("execute", int),
                shadow=True,
                publish_chunk=False,
            ),
        ]
    )
