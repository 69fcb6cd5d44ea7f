"""Critic versions: published whole or not at all, promoted, shadowed, rolled back, kept while in use."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import threading
from pathlib import Path

import pytest
from critic_folders import versions, write_critic
from hypothesis import given, settings
from hypothesis import strategies as st

from valueguide.critics.manifest import MANIFEST, WEIGHTS, read_manifest
from valueguide.errors import CheckpointError, ConfigError
from valueguide.online.version_state import MOST_EARLIER, VersionState
from valueguide.online.versions import CHECKS, CRITICS, DRAFTS, LOCK, STATE, CriticVersions


def roles(of: CriticVersions) -> dict[int, str]:
    return {version.number: version.role for version in of.list()}


def test_a_published_folder_is_copied_and_does_not_serve_yet(tmp_path: Path) -> None:
    version = write_critic(tmp_path / "trained", 7)
    made = CriticVersions(tmp_path / "versions")
    assert (made.list(), made.numbers(), made.state()) == ([], [], VersionState())
    assert made.publish(tmp_path / "trained") == 1
    (found,) = made.list()
    assert (found.number, found.version, found.step, found.role) == (1, version, 7, "")
    assert made.verify(1) == read_manifest(tmp_path / "trained") == read_manifest(found.folder)
    assert made.state().serving is None and made.load(read_manifest) is None
    assert sorted(path.name for path in made.root.iterdir()) == [CRITICS, DRAFTS, LOCK]


def test_reading_makes_nothing_and_needs_no_folder(tmp_path: Path) -> None:
    made = CriticVersions(tmp_path / "none")
    assert made.list() == [] and made.load(read_manifest) is None and made.report(1) is None
    for change in (lambda: made.promote(1), lambda: made.rollback(), lambda: made.set_shadow(None)):
        with pytest.raises(CheckpointError, match="folder: expected critic versions, found none"):
            change()
    assert not (tmp_path / "none").exists()


def test_a_draft_is_moved_and_one_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    made = versions(tmp_path, 0)
    with made.draft() as draft:
        write_critic(draft, 1)
        file = (draft / WEIGHTS).stat().st_ino
        made.publish(draft)
    assert (made.folder(1) / WEIGHTS).stat().st_ino == file
    with made.draft() as draft:
        write_critic(draft, 2)
        assert made.numbers() == [1]
    assert made.numbers() == [1] and not list((made.root / DRAFTS).iterdir())


@pytest.mark.parametrize("damage", ["weights", "manifest", "missing"])
def test_an_incomplete_critic_is_not_published(tmp_path: Path, damage: str) -> None:
    made = versions(tmp_path, 1)
    for draft in (tmp_path / "outside", None):
        with made.draft() as inside:
            folder = draft or inside
            write_critic(folder, 2)
            if damage == "weights":
                (folder / WEIGHTS).write_bytes(b"x")
            elif damage == "manifest":
                (folder / MANIFEST).write_text("{")
            else:
                (folder / WEIGHTS).unlink()
            with pytest.raises(CheckpointError):
                made.publish(folder)
    assert made.numbers() == [1]


def test_promotion_shadow_and_rollback_and_what_the_file_says(tmp_path: Path) -> None:
    made = versions(tmp_path, 3)
    made.promote(1, "the first")
    made.set_shadow(2)
    assert roles(made) == {1: "serving", 2: "shadow", 3: ""}
    made.promote(2, "better")
    assert roles(made) == {1: "previous", 2: "serving", 3: ""}  # no shadow of itself
    made.set_shadow(3)
    assert made.load(Path, "shadow") == (3, made.folder(3)) and made.load(Path) == (2, made.folder(2))
    made.rollback("it shakes")
    assert roles(made) == {1: "serving", 2: "withdrawn", 3: "shadow"}
    at = "2023-11-15T12:00:00+00:00"
    assert json.loads((made.root / STATE).read_text()) == {
        "format": 1,
        "serving": 1,
        "shadow": 3,
        "earlier": [],
        "history": [
            {
                "action": "promote",
                "number": 1,
                "before": None,
                "reason": "the first",
                "at": at,
                "forced": False,
            },
            {"action": "promote", "number": 2, "before": 1, "reason": "better", "at": at, "forced": False},
            {
                "action": "rollback",
                "number": 1,
                "before": 2,
                "reason": "it shakes",
                "at": at,
                "forced": False,
            },
        ],
    }
    assert made.set_shadow(None).shadow is None
    assert CriticVersions(made.root).state() == made.state()


def test_a_version_that_was_rolled_back_comes_back_only_by_force_with_a_reason(tmp_path: Path) -> None:
    made = versions(tmp_path, 2)
    made.promote(1)
    made.promote(2)
    made.rollback("it shakes")
    with pytest.raises(ConfigError, match="version 2: it was rolled back: it shakes"):
        made.promote(2)
    with pytest.raises(ConfigError, match="expected one for a forced promotion, found none"):
        made.promote(2, force=True)
    state = made.promote(2, "the gripper was loose", force=True)
    assert state.serving == 2 and state.history[-1].forced and not state.withdrawn
    assert made.rollback().serving == 1


def test_promoting_what_serves_changes_nothing(tmp_path: Path) -> None:
    made = versions(tmp_path, 2)
    made.promote(1)
    before = made.promote(2)
    assert made.promote(2) == before == made.state()


def test_a_promotion_can_demand_which_version_it_replaces(tmp_path: Path) -> None:
    made = versions(tmp_path, 3)
    made.promote(1, over=None)
    made.promote(2, over=1)
    for over in (1, None):
        with pytest.raises(
            ConfigError, match=f"serving version: expected {over}, found 2. Another version was"
        ):
            made.promote(3, over=over)
    assert made.state().serving == 2


def test_refusals_change_nothing(tmp_path: Path) -> None:
    made = versions(tmp_path, 2)
    made.promote(2)
    before = (made.root / STATE).read_bytes()
    with pytest.raises(CheckpointError, match="version 9: expected a published one, found 1, 2"):
        made.promote(9)
    with pytest.raises(CheckpointError, match="version 9"):
        made.set_shadow(9)
    with pytest.raises(ConfigError, match="another than the serving one"):
        made.set_shadow(2)
    with pytest.raises(CheckpointError, match="no earlier version to roll back to from 2"):
        made.rollback()
    (made.folder(1) / WEIGHTS).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="sha256"):
        made.promote(1)
    assert (made.root / STATE).read_bytes() == before


def test_a_rollback_passes_over_a_version_that_is_damaged_on_the_disk(tmp_path: Path) -> None:
    made = versions(tmp_path, 3)
    for number in (1, 2, 3):
        made.promote(number)
    (made.folder(2) / WEIGHTS).write_bytes(b"x")
    assert made.rollback().serving == 1


def test_old_versions_go_but_never_those_in_use(tmp_path: Path) -> None:
    made = versions(tmp_path, 5, keep=2)
    assert made.numbers() == [4, 5]
    made = versions(tmp_path / "b", 4)
    made.promote(1)
    made.promote(2)
    made.set_shadow(3)
    made.save_report(2, {"passed": True})
    made.save_report(4, {"passed": True})
    made.keep = 1
    for number in (5, 6):
        write_critic(tmp_path / f"new{number}", number)
        assert made.publish(tmp_path / f"new{number}") == number
    assert roles(made) == {1: "previous", 2: "serving", 3: "shadow", 6: ""}
    assert made.report(2) == {"passed": True} and made.report(4) is None
    assert [path.name for path in (made.root / CHECKS).iterdir()] == ["000002.json"]
    assert made.rollback().serving == 1


def test_a_number_is_not_given_twice_though_its_folder_was_deleted_by_hand(tmp_path: Path) -> None:
    made = versions(tmp_path, 3)
    made.promote(3)
    made.promote(2)
    for path in made.folder(3).iterdir():
        path.unlink()
    made.folder(3).rmdir()
    write_critic(tmp_path / "new", 4)
    assert made.publish(tmp_path / "new") == 4


def test_a_version_that_is_replaced_and_removed_while_it_is_read_is_no_error(tmp_path: Path) -> None:
    made = versions(tmp_path, 2, keep=1)
    made.promote(2)
    seen = []

    def slow(folder: Path) -> dict:
        seen.append(folder.name)
        if len(seen) == 1:
            for number in range(5):
                write_critic(tmp_path / f"new{number}", number)
                made.promote(made.publish(tmp_path / f"new{number}"))
        return read_manifest(folder)

    assert made.load(slow) == (7, made.verify(7)) and seen == ["000002", "000007"]
    assert 2 not in made.numbers()
    (made.folder(7) / WEIGHTS).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="sha256"):
        made.load(read_manifest)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "serving": 1, "shadow": null, "earlier": [], "history": []}',
        '{"format": 1, "serving": null, "shadow": "2", "earlier": [], "history": []}',
        '{"format": 1, "serving": null, "shadow": null, "earlier": [1, 1], "history": []}',
        '{"format": 1, "serving": null, "shadow": null, "earlier": 5, "history": []}',
        '{"format": 1, "serving": null, "shadow": null, "earlier": [], "history": [{"action": "promote"}]}',
    ],
)
def test_a_damaged_state_is_named_and_nothing_is_published_or_removed(tmp_path: Path, content: str) -> None:
    made = versions(tmp_path, 2, keep=1)
    write_critic(tmp_path / "new", 3)
    (made.root / STATE).write_text(content)
    for use in (made.state, made.list, made.rollback, lambda: made.publish(tmp_path / "new")):
        with pytest.raises(CheckpointError, match=STATE):
            use()
    assert made.numbers() == [2]


def test_a_damaged_manifest_is_listed_with_its_problem(tmp_path: Path) -> None:
    made = versions(tmp_path, 1)
    (made.folder(1) / MANIFEST).write_text("{")
    (found,) = made.list()
    assert found.version == "" and MANIFEST in found.problem


def test_a_full_disk_is_one_line_and_leaves_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = versions(tmp_path, 1)
    write_critic(tmp_path / "new", 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(CheckpointError, match="not published: .*No space left"):
        made.publish(tmp_path / "new")
    assert made.numbers() == [1] and not list((made.root / DRAFTS).iterdir())


def _publish(root: Path, source: Path) -> None:
    CriticVersions(root).publish(source)


def test_writers_take_turns(tmp_path: Path) -> None:
    made = versions(tmp_path, 0)
    for number in range(4):
        write_critic(tmp_path / f"new{number}", number)
    made.root.mkdir()
    with (made.root / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threads = [
            threading.Thread(target=_publish, args=(made.root, tmp_path / f"new{number}"))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        threads[0].join(timeout=0.2)
        assert all(thread.is_alive() for thread in threads) and made.numbers() == []
    for thread in threads:
        thread.join()
    assert sorted(version.step or 0 for version in made.list()) == [0, 1, 2, 3]


def test_another_writer_does_not_remove_a_draft_that_is_being_filled(tmp_path: Path) -> None:
    made = versions(tmp_path, 0)
    with made.draft() as draft:
        write_critic(draft, 1)
        write_critic(tmp_path / "new", 2)
        process = multiprocessing.get_context("spawn").Process(
            target=_publish, args=(made.root, tmp_path / "new")
        )
        process.start()
        process.join()
        assert process.exitcode == 0 and made.publish(draft) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["publish", "promote", "force", "shadow", "clear", "rollback"]), st.integers(1, 9)
        ),
        max_size=25,
    ),
    st.integers(1, 3),
)
def test_any_sequence_of_calls_keeps_the_rules(tmp_path_factory, steps, keep: int) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path_factory.mktemp("any")
    made = CriticVersions(root / "versions", keep=keep)
    served: list[int] = []  # the model: what a rollback walks back through
    withdrawn: set[int] = set()
    published = 0
    for place, (what, number) in enumerate(steps):
        before = made.state()
        there = made.numbers()
        try:
            if what == "publish":
                write_critic(root / f"{place}", place)
                published += 1
                assert made.publish(root / f"{place}") == published
            elif what in ("promote", "force"):
                made.promote(number, "r", force=what == "force")
                assert number in there and (what == "force" or number not in withdrawn)
                withdrawn.discard(number)
                served = [*(n for n in served if n != number), number]
            elif what == "shadow":
                made.set_shadow(number)
                assert number in there and number != before.serving
            elif what == "clear":
                made.set_shadow(None)
            else:
                made.rollback()
                assert len(served) > 1
                withdrawn.add(served.pop())
        except (CheckpointError, ConfigError):
            assert made.state() == before and made.numbers() == there
            possible = {
                "publish": True,
                "promote": number in there and number not in withdrawn,
                "force": number in there,
                "shadow": number in there and number != before.serving,
                "clear": bool(published),
                "rollback": len(served) > 1,
            }
            assert not possible[what]
        state = made.state()
        served = served[-MOST_EARLIER - 1 :]
        assert [*state.earlier, *([state.serving] if state.serving else [])] == served
        assert state.withdrawn == withdrawn
        assert state.shadow is None or state.shadow != state.serving
        assert state.in_use <= set(made.numbers())
        assert made.numbers()[-keep:] == sorted({*range(1, published + 1)} & set(made.numbers()))[-keep:]
        assert published == 0 or max(made.numbers()) == published
        assert VersionState.from_json(state.to_json(), "again") == state
