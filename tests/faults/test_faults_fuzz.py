"""The fuzzer finds what is planted, and nothing in what reads from a network."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from valueguide.bench import fuzz as fuzzing
from valueguide.bench.fuzz_mutate import mutated_bytes, mutated_tree
from valueguide.bench.fuzz_targets import TARGETS, Sample
from valueguide.errors import ConfigError, DataError

pytestmark = pytest.mark.faults
_PLANTED = """
from valueguide.errors import DataError


def read(data):
    if len(data) < 4 or data[0] != 0x56:
        raise DataError("first byte")
    if data[1] == 0x41:
        if data[2] == 0x41:
            if data[3] == 0x41:
                raise IndexError("planted")
    raise DataError("rest")
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A reader with a fault behind three comparisons."""
    (tmp_path / "planted_reader.py").write_text(_PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_reader", raising=False)
    import planted_reader  # type: ignore[import-not-found]

    return planted_reader


class FakeTarget:
    """Changes one byte at a time, to one of four values."""

    def __init__(self, module: ModuleType) -> None:
        self.modules = (module,)
        self._read = module.read

    def valid(self) -> list[Sample]:
        return [(b"VVVV",)]

    def read(self, sample: Sample) -> None:
        if sample != (b"VVVV",):
            self._read(sample[0])

    def mutate(self, sample: Sample, draw: random.Random) -> Sample:
        data = bytearray(sample[0])
        data[draw.randrange(4)] = draw.choice(b"\x41\x56\x00\xff")
        return (bytes(data),)


def test_what_is_reached_guides_the_search(planted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte at a time from VVVV never gives VAAA; from what reached a new line it does."""
    found = fuzzing.fuzz(FakeTarget(planted), 1, 2000, lambda outcome: None)
    assert found.crash_count > 0 and found.corpus >= 3
    assert found.crashes[0] == {"error": "IndexError: planted", "message": b"VAAA".hex()}
    assert found.accepted + found.refused + found.crash_count == found.messages == 2000
    monkeypatch.setattr(fuzzing, "_LARGEST_CORPUS", 0)
    sys.modules.pop("planted_reader")
    assert fuzzing.fuzz(FakeTarget(planted), 1, 2000, lambda outcome: None).crash_count == 0


def _misbehaving(monkeypatch: pytest.MonkeyPatch, module: str, body: str, tmp_path: Path) -> None:
    """A target in a file of its own, so that the child process finds it by name."""
    (tmp_path / f"{module}.py").write_text(
        "import os, time\n"
        "import numpy as np\n"
        "from valueguide.bench import fuzz_targets\n"
        "from valueguide.errors import DataError\n"
        "class T:\n    modules = ()\n    n = 0\n"
        "    def valid(self): return [(b'a',)]\n"
        "    def mutate(self, sample, draw): return sample\n"
        f"    def read(self, sample):\n        self.n += 1\n        if self.n > 3: {body}\n"
        "def child(name, seed, count, parent):\n"
        "    from valueguide.bench import fuzz\n"
        "    fuzz_targets.TARGETS['wire'] = T\n"
        "    fuzz._child(name, seed, count, parent)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fuzzing, "_child", __import__(module).child)


def test_a_reader_that_kills_its_process_is_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _misbehaving(monkeypatch, "planted_death", "os._exit(11)", tmp_path)
    found = fuzzing.run(10, 1, ("wire",), lambda done: None)["wire"]
    assert found["crash_count"] == 1 and "the process died, exit code 11" in found["crashes"][0]["error"]


def test_a_reader_that_never_ends_is_a_hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _misbehaving(monkeypatch, "planted_loop", "time.sleep(999)", tmp_path)
    monkeypatch.setattr(fuzzing, "_HANG_S", 1.5)
    start = time.monotonic()
    assert fuzzing.run(10, 1, ("wire",), lambda done: None)["total"]["hangs"] == 1
    assert time.monotonic() - start < 60


def test_an_allocation_without_bound_is_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _misbehaving(monkeypatch, "planted_memory", "np.ones(1 << 29)", tmp_path)
    found = fuzzing.run(5, 1, ("wire",), lambda done: None)["wire"]
    assert found["crash_count"] == 3 and "MemoryError" in found["crashes"][0]["error"]


@pytest.mark.parametrize("name", TARGETS)
def test_readers_of_network_messages_refuse_or_read_all_of_them(name: str) -> None:
    done: list[int] = []
    found = fuzzing.run(4000, 7, (name,), done.append)
    one = found[name]
    assert one["crashes"] == [] and (one["crash_count"], one["hangs"]) == (0, 0)
    assert sum(done) == one["messages"] == 4000 and one["accepted"] > 50 and one["refused"] > 1000
    assert one["peak_allocated"] < 1 << 20 and one["slowest_ms"] < 500
    assert one["rss_mb"][1] < one["rss_mb"][0] + 20
    assert one["lines"][0] > 20


@pytest.mark.parametrize("name", TARGETS)
def test_valid_messages_are_read_and_mutated_ones_are_other_messages(name: str) -> None:
    target, draw = TARGETS[name](), random.Random(3)
    for sample in target.valid():
        target.read(sample)
        assert sum(target.mutate(sample, draw) != sample for _ in range(20)) > 10
    with pytest.raises(DataError):
        target.read((b"",))


def test_mutations_leave_their_input_alone_and_follow_the_seed() -> None:
    tree = {"a": [1, {"b": b"xyz"}], "c": "text"}
    before = repr(tree)
    trees = [repr(mutated_tree(tree, random.Random(seed))) for seed in range(100)]
    assert repr(tree) == before and len(set(trees)) > 50
    assert trees == [repr(mutated_tree(tree, random.Random(seed))) for seed in range(100)]
    data = bytes(range(50))
    assert len({mutated_bytes(data, random.Random(seed)) for seed in range(100)}) > 80
    assert mutated_bytes(b"", random.Random(1)) is not None


def test_targets_that_are_not_there() -> None:
    for targets in (("wings",), ()):
        with pytest.raises(ConfigError, match="expected some of"):
            fuzzing.run(10, 1, targets, lambda done: None)
