"""What the processes that train a critic together do without talking to each other."""

from __future__ import annotations

import argparse

import pytest
import torch

from valueguide.cli.processes import refuse_processes
from valueguide.critics.processes import ALONE, Processes, joined
from valueguide.errors import ConfigError, DataError


def test_rows_that_cannot_be_shared_out_are_refused() -> None:
    assert [Processes(rank, 4).share(8) for rank in (0, 3)] == [slice(0, 2), slice(6, 8)]
    assert ALONE.share(7) == slice(0, 7)
    with pytest.raises(ConfigError, match=r"batch size: value: expected a multiple of 3 processes, found 16"):
        Processes(0, 3).share(16)


def test_each_process_and_step_has_a_random_stream_of_its_own_and_one_alone_keeps_its_own() -> None:
    def drawn(processes: Processes, step: int, seed: int = 0) -> list[float]:
        torch.manual_seed(5)
        processes.reseed(seed, step)
        return torch.rand(3).tolist()

    cases = [(Processes(0, 2), 0), (Processes(1, 2), 0), (Processes(0, 2), 1), (ALONE, 0)]
    streams = [drawn(*case) for case in cases]
    assert len({tuple(stream) for stream in streams}) == 4
    assert [drawn(*case) for case in cases] == streams
    assert drawn(ALONE, 9) == streams[3] and drawn(Processes(0, 2), 0, seed=1) != streams[0]


def test_one_alone_changes_nothing() -> None:
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.tensor([1.0, 2.0])
    ALONE.average_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]
    assert ALONE.average_metrics({"a": 0.1}, torch.device("cpu")) == {"a": 0.1}
    ALONE.check_alike("weights", 3, torch.device("cpu"))
    ALONE.wait()
    assert ALONE.leads and ALONE.device("cuda") == "cuda"
    assert Processes(3, 4, local_rank=1).device("cuda") == "cuda:1"


@pytest.mark.parametrize("leads", [True, False])
def test_the_first_process_prepares_before_the_others(leads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(Processes, "wait", lambda self: order.append("wait"))
    with Processes(0 if leads else 1, 2).leader_first():
        order.append("block")
    assert order == (["block", "wait"] if leads else ["wait", "block"])


def test_without_a_launcher_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a cluster may set it for other ends
    with joined("cpu") as processes:
        assert processes is ALONE


@pytest.mark.parametrize(
    ("what", "algo", "refused"), [("critic", "aloe", 0), ("critic", "iql", 1), ("online", "", 1)]
)
def test_what_is_written_for_one_process_is_refused(
    what: str, algo: str, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    args = argparse.Namespace(what=what, algo=algo)
    if not refused:
        refuse_processes(args)
        return
    with pytest.raises(ConfigError, match=rf"^train {what}: processes: expected one, .*, found 2"):
        refuse_processes(args)
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_processes(args)


def test_a_loss_that_is_not_finite_anywhere_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from critics_batches import make_batch, make_trainer

    trainer = make_trainer("iql")
    monkeypatch.setattr(Processes, "average_metrics", lambda *_: {"td_loss": float("nan")})
    with pytest.raises(DataError, match="td_loss: expected a finite number, found nan"):
        trainer.update(make_batch())
