"""Suite names to suites: our tabletop, or any LeRobot environment type."""

from __future__ import annotations

from typing import Any

from valueguide.data.schema import DatasetSpec
from valueguide.errors import ConfigError


def resolve_suite(name: str) -> Any:
    """`wxai`, `wxai-state`, or a LeRobot environment type such as `metaworld`. ConfigError otherwise."""
    from sim.suite import SUITES, make_suite

    if name in SUITES:
        return make_suite(name)
    from valueguide.cli.lerobot_suite import LeRobotSuite, known_types

    if name in known_types():
        return LeRobotSuite(name)
    raise ConfigError(
        f"--suite: expected {', '.join(SUITES)} or a LeRobot type "
        f"({', '.join(known_types())}), found {name!r}"
    )


def dataset_spec(
    suite: Any, image_format: str = "png", k: int = 0, horizon: int = 8, members: int = 1
) -> DatasetSpec:
    """How episodes of a suite are recorded. k: candidates kept at replans, 0 for demonstrations. members:
    of the critic that scores them."""
    return DatasetSpec(
        fps=suite.fps,
        cameras=suite.cameras,
        state=suite.state_names,
        action=suite.action_names,
        environment_state=suite.environment_state_names,
        horizon=horizon if k else 1,
        k=k,
        members=members,
        image_format=image_format if suite.cameras else "none",  # type: ignore[arg-type]
        robot_type=suite.name,
    )
