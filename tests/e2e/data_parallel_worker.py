"""One of the processes of `test_data_parallel`: learns and leaves its weights, or fails as told."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from valueguide.critics.config import CriticSpec, NetworkConfig, TrainConfig
from valueguide.critics.normalizer import Normalizer
from valueguide.critics.processes import Processes, joined
from valueguide.critics.trainer import CriticTrainer, Normalizers
from valueguide.errors import ValueguideError
from valueguide.online.learner import CriticLearner, LearnerSettings
from valueguide.testing.fakes import FakeProposer

SPEC = CriticSpec(4, ("a", "b", "c"), 6, environment_state_dim=5)
STEPS, TIMEOUT_S = 12, 6.0
TASKS = ["open", "close", "press"]


def make_learner(replay: Path, processes: Processes, dropout: float = 0.0, seed: int = 0) -> CriticLearner:
    def plain(size: int) -> Normalizer:
        return Normalizer(np.zeros(size, np.float32), np.ones(size, np.float32))

    trainer = CriticTrainer(
        SPEC,
        NetworkConfig("state", members=3, hidden=32, own_encoders=True, language_dim=3, dropout=dropout),
        TrainConfig("aloe", negative_share=0.3, gradient_clip=1.0, warmup_steps=3, seed=seed),
        Normalizers(plain(3), plain(6), plain(5)),
        np.eye(3, dtype=np.float32),
        processes=processes,
    )
    return CriticLearner(replay, trainer, TASKS, FakeProposer(4, 3), LearnerSettings(16, 2, seed=7))


def weights(learner: CriticLearner) -> dict[str, torch.Tensor]:
    networks = {"critic": learner.trainer.critic, "target": learner.trainer.target}
    return {f"{n}.{key}": v.clone() for n, net in networks.items() for key, v in net.state_dict().items()}


def work(what: str, rank: int, port: int, replay: Path, out: Path) -> None:
    """What one of two does. what: learn, dropout, differ (they begin so), die or hang (the second does)."""
    torch.set_num_threads(1)
    os.dup2(os.open(out / f"errors-{rank}", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with joined("cpu", TIMEOUT_S) as processes:
            seed = processes.rank if what == "differ" else 0
            learner = make_learner(replay, processes, 0.2 if what == "dropout" else 0.0, seed)
            for _ in learner.learn(STEPS):
                if rank == 1 and learner.trainer.step == STEPS // 2:
                    if what == "die":
                        os._exit(7)
                    if what == "hang":
                        os.kill(os.getpid(), signal.SIGSTOP)
            save_file(weights(learner), out / f"weights-{rank}")
    except ValueguideError as error:  # as the command line does
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
