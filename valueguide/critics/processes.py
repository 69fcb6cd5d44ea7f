"""The processes that train one critic together: each has a share of every batch, gradients are averaged.

`torchrun` and `accelerate launch` start them and say in the environment who is who. Without either there is
one process, `ALONE`, for which nothing here costs anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from valueguide.errors import ConfigError, DataError, EnvironmentSetupError, mismatch

#: Seconds without word from another process after which it counts as hung. Death is noticed at once.
TIMEOUT_S = 600.0
#: While the first process prepares data (decoded pictures, vision features), the others wait this long.
_PREPARE_S = 6 * 3600.0


class Processes:
    """count: how many there are. rank: which one this is, from 0. local_rank: the same on this machine.

    Methods that talk must be called by all processes, in the same order. They raise EnvironmentSetupError
    when another process died, or was not heard of for the group's timeout.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0) -> None:
        self.rank, self.count, self.local_rank = rank, count, local_rank
        self._patient: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's part of `rows` rows. Raises ConfigError when they cannot be shared out evenly."""
        if rows % self.count:
            raise ConfigError(mismatch("batch size", "value", f"a multiple of {self.count} processes", rows))
        each = rows // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def device(self, name: str) -> str:
        """The device of this process where the user asked for `name`: "cuda" is one GPU for each."""
        return f"cuda:{self.local_rank}" if self.count > 1 and name == "cuda" else name

    def reseed(self, seed: int, step: int) -> None:
        """Begin torch's global stream anew at step `step`: another in each process, the same when resumed.

        One process alone keeps the stream that it has.
        """
        if self.count > 1:
            drawn = np.random.SeedSequence((seed, step, self.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(drawn[0]) >> 1)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Put into each parameter's gradient the mean over all processes, equal in every bit everywhere."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._mean(flat, "gradients")
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def average_metrics(self, metrics: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """The mean of each over all processes; not finite anywhere is not finite everywhere."""
        if self.count == 1:
            return dict(metrics)
        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
        self._mean(values, "metrics")
        return dict(zip(metrics, values.tolist(), strict=True))

    def check_alike(self, what: str, digest: int, device: torch.device) -> None:
        """Raises DataError, in every process, unless all have the same 0 <= digest < 2**62."""
        if self.count == 1:
            return
        pair = torch.tensor([digest, -digest], dtype=torch.int64, device=device)
        with self._together(what):
            dist.all_reduce(pair, dist.ReduceOp.MAX)
        if int(pair[0]) != -int(pair[1]):
            hint = "All processes must see the same files and settings"
            raise DataError(mismatch(self._name, what, "the same in all processes", "a difference", hint))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            with self._together("a process that prepares"):
                dist.all_reduce(torch.zeros(1), group=self._patient)

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """The first process runs the block alone; then all others do, and find what it made."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    @property
    def _name(self) -> str:
        return f"process {self.rank} of {self.count}"

    def _mean(self, values: Tensor, what: str) -> None:
        with self._together(what):
            dist.all_reduce(values)
        values /= self.count

    @contextlib.contextmanager
    def _together(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what every backend of torch raises
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            hint = "Its own output says why; start all of them again, they go on from the last saved state"
            found = f"one that died or hangs ({reason})"
            raise EnvironmentSetupError(mismatch(self._name, what, "all processes", found, hint)) from error


#: One process on its own.
ALONE = Processes()


def started_together() -> int:
    """How many processes `torchrun` or `accelerate launch` started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextlib.contextmanager
def joined(device: str, timeout_s: float = TIMEOUT_S) -> Iterator[Processes]:
    """The group of processes that this one was started in, or `ALONE`. device: "cpu" or "cuda".

    Raises EnvironmentSetupError when the others cannot be reached.
    """
    count = started_together()
    if count == 1:
        yield ALONE
        return
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(processes.device(device))
    with processes._together("start"):
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        processes._patient = dist.new_group(backend="gloo", timeout=timedelta(seconds=_PREPARE_S))
    try:
        yield processes
    finally:
        dist.destroy_process_group()
