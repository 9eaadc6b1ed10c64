"""DDP and DeepSpeed ZeRO 0, 1, 2 give the weights of one process, and a checkpoint of any goes on in any.

Two processes (gloo), forked from a server that has imported everything once, with the environment that
`accelerate launch` gives them; one test launches for real. Every game is in fp32 with BatchNorm in eval mode and
without dropout, because these two see the split of the batch by their nature.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("deepspeed", reason="pip install deepspeed transformers")
pytestmark = pytest.mark.slow

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "fastanc.training.players",
        "fastanc.training.processes",
        "deepspeed",
        "transformers",
        "support.tiny_game",
    ]
)
LAUNCH_FILES = Path(__file__).parent.parent / "fastanc" / "recipes" / "launch"
ANC = {"discriminator": "8-8", "dropout": 0.0}
GROUPED = {"decay_norms": False, "layer_decay": 0.5}
GAMES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{
        f"anc {r}": ("anc", {**ANC, "regulariser": r, "mu": 0.01}, {})
        for r in ("none", "l1", "l2", "adversarial")
    },
    "anc by adam": ("anc", ANC, {"name": "adam"}),
    "anc in groups": ("anc", ANC, GROUPED),
    "anc by adam in groups": ("anc", ANC, {"name": "adam", "beta2": 0.95, **GROUPED}),
    "datafree": ("datafree", {"latent_dim": 7}, {}),
}
STEPS = 5


def _play(kind: str, rank: int, world: int, port: int, out: Path, begin: Path | None) -> None:
    """Play every game in this process; save the players' state after STEPS, from the file `begin` if given."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    if kind.startswith("zero"):
        os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE=kind[-1])
    elif world > 1:
        os.environ.update(ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    from fastanc.batch import Outputs
    from fastanc.methods.base import Method
    from fastanc.optimizers import OptimizerConfig
    from fastanc.training.processes import make_accelerator
    from support import tiny_game

    accelerator = make_accelerator(batch=tiny_game.BATCH)
    tiny_game.Accelerator = lambda cpu: accelerator
    tiny_game.nn.Module.double = lambda self: self.float()  # ZeRO keeps its weights in fp32
    answer = tiny_game.Game.answer
    tiny_game.Game.answer = lambda self, images: answer(self, images.float())
    mine = slice(rank * tiny_game.BATCH // world, (rank + 1) * tiny_game.BATCH // world)
    result = {}
    for name, (method, options, optimizer) in GAMES.items():
        accelerator.deepspeed_engine_wrapped = None  # an Accelerator keeps the first engine it makes
        tiny_game.SGD = OptimizerConfig(**{"lr": 0.02, "momentum": 0.9, "weight_decay": 2e-4, **optimizer})
        game = tiny_game.Game(Method.get_choice_class(method)(**options))
        for player in game.players.values():
            player.module.eval()
            player.wrapped.eval()
        first = 0
        if begin is not None:
            game.players.load_state(torch.load(begin, weights_only=True)[name])
            first = STEPS
        for step in range(first, first + STEPS):
            batch = game.batch(step)
            batch.images = batch.images.float()[mine]
            if batch.labels is not None:
                batch.labels = batch.labels[mine]
            if batch.target is not None:
                batch.target = Outputs(*(t if t is None else t.float()[mine] for t in batch.target[:2]))
            list(game.moves(batch))
        result[name] = game.players.state()
    if rank == 0:
        torch.save(result, out)


def play(folder: Path, kind: str, world: int, out: str, begin: str | None = None) -> dict[str, Any]:
    """Play all games with so many processes and return {game: state of the players}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path, start = folder / f"{out}.pt", None if begin is None else folder / f"{begin}.pt"
    processes = [FORKS.Process(target=_play, args=(kind, r, world, port, path, start)) for r in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=1800)
    assert [p.exitcode for p in processes] == [0] * world, kind
    return torch.load(path, weights_only=True)


def distance(one: Any, two: Any) -> float:
    """Return the norm of the difference of all players' weights, relative to the norm of the weights."""
    pairs = [(one[p]["module"][k], two[p]["module"][k]) for p in one for k in one[p]["module"]]
    gap = sum((a.double() - b.double()).square().sum().item() for a, b in pairs)
    return (gap / sum(a.double().square().sum().item() for a, _ in pairs)) ** 0.5


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("deepspeed")
    kinds = {"one": 1, "ddp": 2, "zero0": 2, "zero1": 2, "zero2": 2}
    return folder, {kind: play(folder, kind, world, kind) for kind, world in kinds.items()}


@pytest.mark.parametrize("game", GAMES)
def test_every_backend_gives_the_same_weights(played: tuple[Path, dict[str, Any]], game: str) -> None:
    _, results = played
    for kind in ("zero0", "zero1", "zero2"):
        assert distance(results["ddp"][game], results[kind][game]) < 1e-6, kind
    if game != "datafree":  # its loss on the batch's mean sees the split
        assert distance(results["one"][game], results["ddp"][game]) < (1e-4 if "adam" in game else 1e-6)
    control = distance(results["one"]["anc none"], results["one"]["anc adversarial"])
    assert control > 1e-4  # what the tolerance would not miss


@pytest.mark.parametrize(
    ("saved", "kind", "world"), [("zero2", "zero1", 2), ("zero1", "one", 1), ("ddp", "zero2", 2)]
)
def test_a_checkpoint_goes_on_under_another_backend(
    played: tuple[Path, dict[str, Any]], saved: str, kind: str, world: int
) -> None:
    folder, _ = played
    stayed = play(folder, "ddp", 2, "stayed", begin="ddp")
    moved = play(folder, kind, world, "moved", begin=saved)
    for game in set(GAMES) - {"datafree"}:
        assert distance(stayed[game], moved[game]) < (1e-4 if "adam" in game else 1e-6), game


def test_a_real_launch_of_zero_1_trains(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(LAUNCH_FILES / "zero1.yaml"),
    ]
    train = ["--num_processes", "2", "--main_process_port", "0", "-m", "fastanc.train", "--data.batch", "32"]
    short = ["--run.log_every", "1", "--run.checkpoint_every", "3", "--name", "z", "--run.eval_every", "0"]
    teacher = ["--teacher.weights", "random", "--teacher.name", "resnet8", "--run.resume", "latest"]
    for steps in ("4", "6"):
        command = [*launch, *train, *short, *teacher, "--run.max_steps", steps]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed from" in done.stderr
    summary = json.loads((tmp_path / "runs" / "z" / "summary.json").read_text())
    assert (summary["world"], summary["steps"]) == (2, 6)
