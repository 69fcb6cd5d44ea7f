"""The graph without a robot: policy, re-ranker, executor, safety gate, task, progress, teleop, recorder.

Included by sim.launch.py and robot.launch.py. Start it alone beside a robot that is already up.
"""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

BOOLEANS = ["true", "false"]
MODELS = os.path.join(os.path.dirname(__file__), "models.launch.py")


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
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "robot", default_value="sim", description="name in configs/robots, or path of a description"
            ),
            DeclareLaunchArgument("execute", default_value="4", description="steps executed of each chunk"),
            DeclareLaunchArgument(
                "mode",
                default_value="guided",
                choices=["guided", "base", "shadow"],
                description="how tasks run that do not say: base ignores the critic, shadow only logs it",
            ),
            DeclareLaunchArgument(
                "prefetch",
                default_value="true",
                choices=BOOLEANS,
                description="ask for the next chunk while one still runs",
            ),
            DeclareLaunchArgument(
                "help",
                default_value="",
                description="help.json of `valueguide bench help`: when to ask the operator; empty: never",
            ),
            DeclareLaunchArgument(
                "progress_backend",
                default_value="",
                choices=["", "openai", "transformers"],
                description="what estimates progress; empty: the simulator's truth",
            ),
            DeclareLaunchArgument(
                "progress_model", default_value="", description="name at the endpoint, folder or Hub name"
            ),
            DeclareLaunchArgument(
                "progress_url", default_value="", description="base address of an endpoint for progress"
            ),
            DeclareLaunchArgument(
                "record", default_value="", description="folder for recordings; empty: none are made"
            ),
            DeclareLaunchArgument(
                "namespace", default_value="", description="moves all names, so that graphs run side by side"
            ),
            DeclareLaunchArgument(
                "use_sim_time", default_value="false", choices=BOOLEANS, description="time from /clock"
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(MODELS)),
            node(
                "executor",
                prefetch=value("prefetch", bool),
                execute=value("execute", int),
                help=value("help"),
            ),
            node("safety_gate"),
            node("task", mode=value("mode")),
            node(
                "progress",
                backend=value("progress_backend"),
                model=value("progress_model"),
                url=value("progress_url"),
            ),
            node("teleop"),
            node("markers"),
            node(
                "recorder",
                IfCondition(NotEqualsSubstitution(LaunchConfiguration("record"), "")),
                out=value("record"),
            ),
        ]
    )
