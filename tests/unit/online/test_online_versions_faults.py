"""Critic versions through deaths: at every file operation, at any moment, readers see old or new."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from critic_folders import versions, write_critic

from valueguide.critics.manifest import read_manifest
from valueguide.errors import CheckpointError
from valueguide.online.versions import DRAFTS, CriticVersions


def _all_is_whole(root: Path) -> set[int]:
    """What a reader sees now, each version read to its end; one may be pruned meanwhile, never halved."""
    made = CriticVersions(root)
    state = made.state()
    visible = set()
    for number in made.numbers():
        try:
            made.verify(number)
            visible.add(number)
        except CheckpointError:
            assert not made.folder(number).exists(), f"version {number} is visible but not whole"
    assert state.serving is None or made.load(read_manifest) is not None
    return visible


def _dies_at(event: int, work: Callable[[], object]) -> bool:
    """Whether `work` in a process of its own came to that many file operations and was killed there."""
    child = os.fork()
    if not child:
        left = [event]

        def hook(name: str, _: object) -> None:
            left[0] -= name.startswith(("open", "os.", "shutil.", "tempfile."))
            if left[0] == -1 and name != "os.kill":
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.faults
@pytest.mark.parametrize("what", ["publish", "promote", "rollback", "shadow"])
def test_death_at_every_single_file_operation_leaves_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    first = versions(tmp_path, 4)
    first.promote(2)
    first.promote(3)
    write_critic(tmp_path / "new", 5)
    before, event, went_on = first.state(), 0, True
    while went_on:
        made = CriticVersions(tmp_path / f"{event}", keep=2)  # a publication prunes version 1
        shutil.copytree(first.root, made.root)
        calls: dict[str, Callable[[], object]] = {
            "publish": partial(made.publish, tmp_path / "new"),
            "promote": partial(made.promote, 4),
            "rollback": made.rollback,
            "shadow": partial(made.set_shadow, 4),
        }
        went_on = _dies_at(event, calls[what])
        visible, state = _all_is_whole(made.root), made.state()
        assert {2, 3, 4} <= visible and (1 in visible or 5 in visible)
        changed = {"promote": state.serving == 4, "rollback": state.serving == 2, "shadow": state.shadow == 4}
        assert state == before or changed[what]
        made.publish(tmp_path / "new")  # whoever comes next
        assert not list((made.root / DRAFTS).iterdir()) and state.in_use < set(made.numbers())
        event += 1
    assert event > {"publish": 30}.get(what, 7)
    assert what == "publish" or state != before


_WRITER = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from critic_folders import write_critic
from valueguide.online.versions import CriticVersions
made = CriticVersions({root!r}, keep=2)
for i in itertools.count():
    with made.draft() as draft:
        write_critic(draft, i, 2_000_000)
        number = made.publish(draft)
    print("published", number, flush=True)
    state = made.promote(number)
    print("changes", len(state.history), flush=True)
    if i % 3 == 2:
        print("changes", len(made.rollback("third").history), flush=True)
    elif i % 3 == 1:
        made.set_shadow(state.previous)
"""


@pytest.mark.faults
def test_a_publisher_killed_at_any_moment_leaves_whole_versions_and_a_valid_state(tmp_path: Path) -> None:
    """KILLS: how many, 5 by default."""
    root, rng = tmp_path / "versions", np.random.default_rng(0)
    code = _WRITER.format(tests=str(Path(__file__).parent), root=str(root))
    for _ in range(int(os.environ.get("KILLS", "5"))):
        before = len(CriticVersions(root).state().history)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        until = time.monotonic() + float(rng.uniform(0.0, 0.15))
        while time.monotonic() < until:
            _all_is_whole(root)
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        words = [line.split() for line in lines]
        published = max(int(n) for word, n in words if word == "published")
        changes = max([int(n) for word, n in words if word == "changes"], default=before)
        visible, state = _all_is_whole(root), CriticVersions(root).state()
        assert state.in_use <= visible
        # What was acknowledged holds, and at most one call more.
        assert max(visible) - published in (0, 1) and len(state.history) - changes in (0, 1)
    made = CriticVersions(root, keep=2)
    write_critic(tmp_path / "after", 1)
    made.publish(tmp_path / "after")
    assert not list((root / DRAFTS).iterdir())  # what the killed ones left is gone
