"""Following a folder of versions: what is loaded when, and what never disturbs what is held."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from critic_folders import versions, write_critic

from valueguide.critics.manifest import MANIFEST, WEIGHTS, read_manifest
from valueguide.online.follow import VersionFollower
from valueguide.online.versions import STATE, CriticVersions


class Loader:
    """Loads a manifest as the critic; counts, and fails for the numbers in `bad`."""

    def __init__(self) -> None:
        self.loaded: list[int] = []
        self.bad: dict[int, Exception] = {}

    def __call__(self, folder: Path) -> str:
        number = int(folder.name)
        self.loaded.append(number)
        if number in self.bad:
            raise self.bad[number]
        return str(read_manifest(folder)["version"])


def settle(follower: VersionFollower[Any]) -> bool:
    """As the node does: look until there is nothing new. Whether anything was."""
    found = False
    while follower.poll():
        found = True
    return found


def held(follower: VersionFollower[Any]) -> tuple[int | None, int | None]:
    serving, shadow = follower.serving, follower.shadow
    return serving.number if serving else None, shadow.number if shadow else None


def one_serving_two_in_shadow(tmp_path: Path, load: Loader) -> tuple[CriticVersions, VersionFollower[Any]]:
    made = versions(tmp_path, 2)
    made.promote(1)
    made.set_shadow(2)
    follower = VersionFollower(made.root, load)
    settle(follower)
    return made, follower


@pytest.fixture
def load() -> Loader:
    return Loader()


def test_a_folder_that_does_not_exist_yet_is_no_trouble(tmp_path: Path, load: Loader) -> None:
    follower = VersionFollower(tmp_path / "versions", load)
    assert not settle(follower) and held(follower) == (None, None) and not follower.troubles
    versions(tmp_path, 1).promote(1)
    assert settle(follower) and held(follower) == (1, None)


def test_promotion_shadow_and_rollback_are_followed_and_nothing_is_loaded_twice(
    tmp_path: Path, load: Loader
) -> None:
    made = versions(tmp_path, 3)
    follower = VersionFollower(made.root, load)
    made.promote(1)
    assert settle(follower) and held(follower) == (1, None) and follower.previous == ""
    made.set_shadow(2)
    assert settle(follower) and held(follower) == (1, 2)
    assert follower.shadow is not None and follower.shadow.content == made.list()[1].version
    made.promote(2)
    assert settle(follower) and held(follower) == (2, None)
    assert follower.previous == made.list()[0].version
    assert load.loaded == [1, 2], "the version in shadow was loaded already"
    made.rollback()
    assert settle(follower) and held(follower) == (1, None) and follower.previous == ""
    assert load.loaded == [1, 2], "what served before is still held"
    assert not settle(follower) and not follower.troubles
    made.set_shadow(3)
    made.set_shadow(None)
    assert not settle(follower) and held(follower) == (1, None)


def test_what_serves_is_there_before_the_shadow_is_loaded(tmp_path: Path, load: Loader) -> None:
    made = versions(tmp_path, 2)
    made.promote(1)
    made.set_shadow(2)
    follower = VersionFollower(made.root, load)
    assert follower.poll() and held(follower) == (1, None) and load.loaded == [1]
    assert follower.poll() and held(follower) == (1, 2)
    assert not follower.poll()


@pytest.mark.parametrize("role", ["serving", "shadow"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("size 3 and 4"), KeyError("x"), None])
def test_a_version_that_does_not_load_leaves_what_serves_and_is_not_tried_again(
    tmp_path: Path, load: Loader, role: str, error: Exception | None
) -> None:
    made = versions(tmp_path, 3)
    made.promote(1)
    follower = VersionFollower(made.root, load)
    settle(follower)
    first = follower.serving
    made.promote(2) if role == "serving" else made.set_shadow(2)
    if error is None:
        (made.folder(2) / WEIGHTS).write_bytes(b"torn")
    else:
        load.bad[2] = error
    settle(follower)
    assert follower.serving is first and follower.shadow is None
    why = "sha256" if error is None else type(error).__name__
    assert follower.troubles[role].startswith("version 2 is not used: ") and why in follower.troubles[role]
    for _ in range(20):
        assert not follower.poll()
    assert load.loaded == [1, 2], "tried once"
    # Another one in its role is tried, and then the first one anew, as that was asked for.
    made.promote(3) if role == "serving" else made.set_shadow(3)
    assert settle(follower) and not follower.troubles
    assert held(follower) == ((3, None) if role == "serving" else (1, 3))
    load.bad.clear()
    write_again(made, 2)
    made.promote(2) if role == "serving" else made.set_shadow(2)
    assert settle(follower) and held(follower) == ((2, None) if role == "serving" else (1, 2))


def write_again(made: CriticVersions, number: int) -> None:
    shutil.rmtree(made.folder(number))
    write_critic(made.folder(number), number)


def test_a_version_that_was_damaged_is_tried_again_once_its_files_change(
    tmp_path: Path, load: Loader
) -> None:
    made = versions(tmp_path, 2)
    made.promote(1)
    follower = VersionFollower(made.root, load)
    settle(follower)
    made.promote(2)
    shutil.rmtree(made.folder(2))
    assert not settle(follower) or held(follower) == (1, None)
    assert held(follower) == (1, None) and "expected a critic folder" in follower.troubles["serving"]
    write_critic(made.folder(2), 2)
    assert settle(follower) and held(follower) == (2, None) and not follower.troubles


@pytest.mark.parametrize("damage", ["truncated", "weights gone", "folder gone"])
def test_damage_to_what_serves_is_told_and_disturbs_nothing(
    tmp_path: Path, load: Loader, damage: str
) -> None:
    made, follower = one_serving_two_in_shadow(tmp_path, load)
    first, second = follower.serving, follower.shadow
    for number in (1, 2):
        if damage == "truncated":
            (made.folder(number) / WEIGHTS).write_bytes(b"")
        elif damage == "weights gone":
            (made.folder(number) / WEIGHTS).unlink()
        else:
            shutil.rmtree(made.folder(number))
    for _ in range(20):
        assert not follower.poll()
    assert follower.serving is first and follower.shadow is second and load.loaded == [1, 2, 1, 2]
    assert follower.troubles["serving"].startswith("version 1 goes on as it was loaded: ")
    assert follower.troubles["shadow"].startswith("version 2 goes on as it was loaded: ")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1, "serving": 9}'])
def test_a_damaged_state_is_told_and_what_is_held_goes_on(
    tmp_path: Path, load: Loader, content: bytes
) -> None:
    made, follower = one_serving_two_in_shadow(tmp_path, load)
    good = (made.root / STATE).read_bytes()
    (made.root / STATE).write_bytes(content)
    for _ in range(3):
        assert not follower.poll()
    assert held(follower) == (1, 2) and STATE in follower.troubles["folder"]
    (made.root / STATE).write_bytes(good)
    assert not settle(follower) and not follower.troubles and load.loaded == [1, 2]


def test_a_folder_that_is_deleted_leaves_what_serves_and_another_in_its_place_is_followed(
    tmp_path: Path, load: Loader
) -> None:
    made, follower = one_serving_two_in_shadow(tmp_path, load)
    old = follower.serving
    shutil.rmtree(made.root)
    settle(follower)
    assert follower.serving is old and follower.shadow is None
    assert "no version serves any more" in follower.troubles["serving"]
    # Numbers begin anew: the same number is another critic.
    made = CriticVersions(made.root)
    write_critic(tmp_path / "new", 77)
    made.publish(tmp_path / "new")
    made.promote(1)
    assert settle(follower) and held(follower) == (1, None) and not follower.troubles
    assert follower.serving is not None and follower.serving.content == made.list()[0].version


def test_a_version_that_failed_in_service_is_not_loaded_again_until_it_is_asked_for_anew(
    tmp_path: Path, load: Loader
) -> None:
    made = versions(tmp_path, 2)
    follower = VersionFollower(made.root, load)
    made.promote(1)
    settle(follower)
    first = follower.serving
    made.promote(2)
    settle(follower)
    failed = follower.serving
    assert failed is not None
    follower.refuse("serving", failed, first, "ValueError: nan")
    assert not settle(follower) and follower.serving is first
    assert follower.troubles["serving"] == "version 2 is not used: ValueError: nan"
    follower.refuse("serving", failed, None, "told twice")
    assert follower.serving is first
    made.rollback()
    settle(follower)
    assert held(follower) == (1, None) and not follower.troubles and load.loaded == [1, 2]
    made.promote(2, "again", force=True)
    assert settle(follower) and held(follower) == (2, None) and load.loaded == [1, 2, 2]


def test_a_version_that_failed_in_shadow_is_held_no_more(tmp_path: Path, load: Loader) -> None:
    made = versions(tmp_path, 3)
    made.promote(1)
    made.set_shadow(2)
    follower = VersionFollower(made.root, load)
    settle(follower)
    failed = follower.shadow
    assert failed is not None
    follower.refuse("shadow", failed, None, "ValueError: nan")
    assert not settle(follower) and held(follower) == (1, None)
    assert follower.troubles == {"shadow": "version 2 is not used: ValueError: nan"}
    made.set_shadow(3)
    assert settle(follower) and held(follower) == (1, 3) and not follower.troubles


def test_a_bad_version_in_shadow_takes_the_place_of_the_one_before_it(tmp_path: Path, load: Loader) -> None:
    made = versions(tmp_path, 3)
    made.promote(1)
    made.set_shadow(2)
    follower = VersionFollower(made.root, load)
    settle(follower)
    load.bad[3] = MemoryError()
    made.set_shadow(3)
    assert settle(follower) and held(follower) == (1, None), "what was in shadow is not asked for any more"


def test_a_version_that_is_replaced_while_it_is_read_is_no_trouble(tmp_path: Path) -> None:
    made = versions(tmp_path, 3)
    made.promote(1)

    def load(folder: Path) -> int:
        if folder == made.folder(2):
            made.promote(3)
            shutil.rmtree(folder)
        return len(read_manifest(folder))

    follower = VersionFollower(made.root, load)
    settle(follower)
    made.promote(2)
    follower.poll()
    assert held(follower) == (1, None) and not follower.troubles
    assert settle(follower) and held(follower) == (3, None) and not follower.troubles


def test_an_unreadable_manifest_of_the_one_before_is_no_trouble(tmp_path: Path, load: Loader) -> None:
    made = versions(tmp_path, 2)
    made.promote(1)
    made.promote(2)
    (made.folder(1) / MANIFEST).write_text(json.dumps({}))
    follower = VersionFollower(made.root, load)
    settle(follower)
    assert held(follower) == (2, None) and follower.previous == "" and not follower.troubles
