"""Installs one console script per node into lib/valueguide_nodes, where ros2 run and launch look."""

from setuptools import setup

PACKAGE = "valueguide_nodes"
NODES = (
    "policy",
    "reranker",
    "executor",
    "safety_gate",
    "task",
    "progress",
    "recorder",
    "teleop",
    "keyboard",
    "markers",
    "sim_robot",
    "wxai_robot",
    "replay",
    "critic_learner",
)

setup(
    name=PACKAGE,
    version="0.1.0",
    packages=[PACKAGE],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    zip_safe=True,
    license="Apache-2.0",
    description="Lifecycle nodes around valueguide.",
    extras_require={"test": ["pytest"]},
    entry_points={"console_scripts": [f"{name} = {PACKAGE}.{name}:main" for name in NODES]},
)
