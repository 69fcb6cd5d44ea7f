"""Folders are replaced as a whole, whatever happens while they are written."""

import os
import subprocess
import sys
import threading

import pytest

from valueguide.critics import folders
from valueguide.critics.folders import replacing


def _write(folder, text):
    with replacing(folder) as draft:
        (draft / "a").write_text(text)
        (draft / "b").write_text(text)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_new_content_replaces_the_old(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(folders, "exchange_names", lambda *_: False)
    folder = tmp_path / "deep" / "critic"
    _write(folder, "old")
    (folder / "extra").write_text("of the old")
    _write(folder, "new")
    assert _names(folder) == ["a", "b"] and (folder / "a").read_text() == "new"
    assert _names(folder.parent) == ["critic"]


def test_an_error_while_writing_leaves_the_old_content_and_no_draft(tmp_path):
    folder = tmp_path / "critic"
    _write(folder, "old")
    with pytest.raises(RuntimeError), replacing(folder) as draft:
        (draft / "a").write_text("half")
        raise RuntimeError
    assert (folder / "b").read_text() == "old" and _names(tmp_path) == ["critic"]


def test_a_reader_always_finds_a_folder(tmp_path):
    folder, missing, done = tmp_path / "critic", [], threading.Event()
    _write(folder, "0")
    if not folders.exchange_names(folder, folder.parent / "critic"):
        # Without an exchange there is an instant without the folder, as `replacing` says; nothing to test.
        pytest.skip("this file system cannot exchange two names")

    def read():
        while not done.is_set():
            if not folder.is_dir():
                missing.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        _write(folder, str(turn))
    done.set()
    reader.join()
    assert not missing


def test_drafts_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = tmp_path / f".critic.{child.pid}.new"
    alive = tmp_path / f".critic.{os.getppid()}.new"
    for draft in (dead, alive):
        draft.mkdir()
    _write(tmp_path / "critic", "text")
    assert _names(tmp_path) == sorted([alive.name, "critic"])


@pytest.mark.parametrize("died", ["between the renames", "before the old one was removed"])
def test_a_death_where_names_cannot_be_exchanged_loses_neither_folder(tmp_path, monkeypatch, died):
    monkeypatch.setattr(folders, "exchange_names", lambda *_: False)
    folder = tmp_path / "critic"
    _write(folder, "old")
    with monkeypatch.context() as patch:
        if died == "between the renames":
            rename = folders.Path.rename
            moves = []

            def rename_once(self, target):
                if moves:
                    raise KeyboardInterrupt
                moves.append(target)
                return rename(self, target)

            patch.setattr(folders.Path, "rename", rename_once)
        else:
            patch.setattr(folders.shutil, "rmtree", lambda path, **_: None)
        try:
            _write(folder, "new")
        except KeyboardInterrupt:
            assert not folder.exists()
    folders.restore_interrupted(folder)
    assert (folder / "a").read_text() == ("old" if died == "between the renames" else "new")
    _write(folder, "newer")
    assert (folder / "a").read_text() == "newer" and not list(tmp_path.glob("*.old"))
