"""Hot swap: what is taken, what is refused, and that decisions go on."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from valueguide.critics.manifest import WEIGHTS, read_manifest
from valueguide.errors import CheckpointError
from valueguide.serving.engine import Engine, Models
from valueguide.serving.keeper import Keeper, Watched
from valueguide.serving.sessions import Job
from valueguide.testing.fakes import FakeClock, FakeCritic, FakePolicy

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "online"))
from critic_folders import versions
from serving_helpers import request


def write(folder: Path, version: str) -> Path:
    """A checkpoint as the stand-in loaders below read it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "new").write_text(version)
    os.replace(folder / "new", folder / "model.safetensors")
    return folder


def load(make: Any) -> Any:
    def read(path: str) -> Any:
        version = (Path(path) / "model.safetensors").read_text()
        if version == "damaged":
            raise CheckpointError("truncated")
        model = make(horizon=8) if version == "long" else make()
        model.version = version
        if version == "wide":
            model.action_dim = 2
        return model

    return read


class Swaps:
    """A keeper over two folders, and what it told."""

    def __init__(self, root: Path) -> None:
        self.policy, self.critic = write(root / "p1", "p1"), write(root / "c1", "c1")
        self.told: list[tuple[str, str]] = []
        self.warmed: list[str] = []
        self.engine = Engine(Models(load(FakePolicy)(str(self.policy))))
        self.keeper = Keeper(
            self.engine,
            str(self.policy),
            str(self.critic),
            load(FakePolicy),
            load(FakeCritic),
            self.warm,
            lambda model, outcome, _: self.told.append((model, outcome)),
        )
        self.keeper.begin()

    def warm(self, model: str, models: Models) -> None:
        self.warmed.append(model)
        replace(models)  # checks that they fit

    @property
    def versions(self) -> tuple[str, str]:
        return self.engine.models.policy.version, self.engine.models.critic.version


def test_new_content_is_loaded_run_once_and_put_in_service(tmp_path: Path) -> None:
    swaps = Swaps(tmp_path)
    assert swaps.versions == ("p1", "c1")
    swaps.keeper.poll()
    assert swaps.warmed == ["critic"] and not swaps.told
    write(swaps.critic, "c2")
    swaps.keeper.poll()
    write(swaps.policy, "long")
    swaps.keeper.poll()
    assert swaps.versions == ("long", "c2")
    assert swaps.told == [("critic", "swapped"), ("policy", "swapped")]
    assert swaps.warmed == ["critic", "critic", "policy"]
    answer = swaps.engine.answer([Job(b"", 1, 1, request(), 0.0, 0)])[0]
    assert not isinstance(answer, Exception)
    assert (answer.policy_version, answer.critic_version) == ("long", "c2")


def test_a_link_that_is_pointed_elsewhere_counts_as_new(tmp_path: Path) -> None:
    one, two, link = write(tmp_path / "a", "same"), write(tmp_path / "b", "same"), tmp_path / "now"
    link.symlink_to(one)
    watched = Watched(str(link))
    assert not watched.changed()
    link.unlink()
    link.symlink_to(two)
    assert watched.changed() and not watched.changed()
    link.unlink()
    assert not watched.changed()  # gone: what is loaded goes on


@pytest.mark.parametrize("version", ["damaged", "wide"])
def test_what_cannot_serve_is_refused_and_the_present_one_goes_on(tmp_path: Path, version: str) -> None:
    swaps = Swaps(tmp_path)
    write(swaps.critic, version)
    write(swaps.policy, version)
    swaps.keeper.poll()
    assert swaps.versions == ("p1", "c1")
    assert swaps.told == [("critic", "refused"), ("policy", "refused")]
    assert set(swaps.keeper.troubles) == {"critic", "policy"}
    write(swaps.critic, "c3")
    write(swaps.policy, "p3")
    swaps.keeper.poll()
    assert swaps.versions == ("p3", "c3") and not swaps.keeper.troubles


def test_what_was_refused_is_tried_again_later(tmp_path: Path) -> None:
    clock = FakeClock()
    watched = Watched(str(write(tmp_path / "a", "x")), clock)
    watched.retry_later()
    clock.advance(29)
    assert not watched.changed()
    clock.advance(2)
    assert watched.changed() and not watched.changed()


def test_decisions_wait_while_a_policy_is_loaded(tmp_path: Path) -> None:
    swaps = Swaps(tmp_path)
    held: list[bool] = []
    read = swaps.keeper._load_policy
    swaps.keeper._load_policy = lambda path: (held.append(swaps.engine.pause.locked()), read(path))[1]
    write(swaps.policy, "p2")
    swaps.keeper.poll()
    assert held == [True] and not swaps.engine.pause.locked() and swaps.versions[0] == "p2"


def test_versions_are_followed_as_they_are_promoted(tmp_path: Path) -> None:
    """Real versions; the stand-in critic goes by the version's name."""
    made = versions(tmp_path, 3)
    names = {one.number: one.version for one in made.list()}

    def load_version(path: str) -> FakeCritic:
        critic = FakeCritic()
        critic.version = read_manifest(Path(path))["version"]
        return critic

    made.promote(1)
    engine = Engine(Models(FakePolicy()))
    told: list[tuple[str, str]] = []
    keeper = Keeper(
        engine,
        str(write(tmp_path / "p", "p")),
        str(made.root),
        load(FakePolicy),
        load_version,
        lambda *_: None,
        lambda model, outcome, _: told.append((model, outcome)),
    )
    keeper.begin()
    assert engine.models.critic.version == names[1]
    made.promote(2)
    keeper.poll()
    assert engine.models.critic.version == names[2]
    (made.folder(3) / WEIGHTS).write_bytes(b"damaged")
    keeper.poll()
    assert not keeper.troubles and told == [("critic", "swapped")]
    made.rollback("test")
    keeper.poll()
    assert engine.models.critic.version == names[1]
    assert told == [("critic", "swapped"), ("critic", "swapped")]


def test_a_folder_of_versions_none_of_which_serves_leaves_the_policy_alone(tmp_path: Path) -> None:
    made = versions(tmp_path, 1)
    engine = Engine(Models(FakePolicy()))
    policy = str(write(tmp_path / "p", "p"))
    keeper = Keeper(engine, policy, str(made.root), load(FakePolicy), lambda _: FakeCritic(), lambda *_: None)
    keeper.begin()
    assert engine.models.critic is None
    made.promote(1)
    keeper.poll()
    assert engine.models.critic is not None
