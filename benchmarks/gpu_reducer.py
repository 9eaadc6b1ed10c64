"""DistributedDataParallel around the student, by hand, in a group of one process: is it the bare module's step?

Accelerate wraps nothing where there is one process, so `torchrun --nproc_per_node 1` runs the bare module. Here the
reducer is real: its hooks, its buckets (gradients are views of them), channels_last strides, weights that are frozen
on the opponent's turn, and, compiled, the graph that Dynamo cuts at the buckets. With one process the mean over all
is the gradient itself, so every weight must be what the bare module's step makes it.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu_rows import Row, begin, device_of, row

if TYPE_CHECKING:
    from benchmarks.step_game import Game, Setting

LR_FACTOR = 100.0
"""The benchmark's rate is so small that rounding the weights would be most of a step."""
Wrap = Callable[[nn.Module], nn.Module]


@contextmanager
def group_of_one(device: torch.device) -> Generator[None, None, None]:
    """Be a group of one process while the block lasts: NCCL on a GPU, gloo on a CPU."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def in_ddp(module: nn.Module) -> nn.Module:
    """Wrap a module as Accelerate does for several processes, see `training.processes.make_accelerator`."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # of broadcast_buffers, whose successor does something else
        return DistributedDataParallel(module, gradient_as_bucket_view=True, broadcast_buffers=False)


class State(NamedTuple):
    """What a step changes."""

    weights: Tensor
    statistics: Tensor


class Contestant:
    """A game from the weights that all have, its student wrapped; it watches its gradients' strides."""

    def __init__(self, game: Game, wrap: Wrap | None):
        self.game, player = game, game.players["student"]
        if wrap is not None:
            player.wrapped = wrap(player.wrapped)
        self.parameters = player.parameters
        self.strange = 0
        """Gradients whose strides are not their weight's."""
        optimizer = getattr(player.optimizer, "optimizer", player.optimizer)
        optimizer.register_step_pre_hook(lambda *_: self._watch())

    def _watch(self) -> None:
        grads = [(p, p.grad) for p in self.parameters if p.grad is not None]
        self.strange += sum(grad.stride() != p.stride() for p, grad in grads)

    def state(self) -> State:
        """Return the weights of all players as one vector, and their statistics (BatchNorm's) as another."""
        modules = self.game.players.modules().values()
        return State(
            *(
                torch.cat([t.detach().double().flatten() for module in modules for t in kind(module)])
                for kind in (nn.Module.parameters, nn.Module.buffers)
            )
        )


def rows_of(
    setting: Setting, device: torch.device, mode: str, wraps: dict[str, Wrap | None], steps: int
) -> Iterator[Row]:
    """Play some steps of cached ANC in every wrapper from the same weights; compare with the first."""
    from benchmarks.step import enter
    from benchmarks.step_game import frozen_teacher

    torch.manual_seed(0)
    teacher = frozen_teacher(setting, device, "eager")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        games = {}
        for name in wraps:
            torch.manual_seed(1)
            games[name] = enter("anc cached", setting, teacher, device, Path(folder) / name, mode).game
            stack.callback(games[name].teacher.close)
        stack.enter_context(group_of_one(device))  # after Accelerate, which was told of one process
        first: State | None = None
        bare_ms: float | None = None
        for name, wrap in wraps.items():
            case = f"{mode}, {name}"
            begin(case)
            contestant = Contestant(games[name], wrap)
            contestant.game.players.set_lr(LR_FACTOR)
            before = contestant.state()
            contestant.game.turn(steps)
            after = contestant.state()
            ms = contestant.game.turn(setting.steps)["step"]
            first, bare_ms = (after, ms) if first is None or bare_ms is None else (first, bare_ms)
            yield row(case, verdict(before, after, first, contestant.strange), ms=ms, ratio=ms / bare_ms)


def verdict(before: State, after: State, first: State, strange: int) -> str:
    """Return how far the weights are from the first game's, relative to how far those went."""
    strides = f"; {strange} gradients with other strides" if strange else ""
    if all(map(torch.equal, after, first)):
        return f"the same bits as the bare module's{strides}"
    far = float((after.weights - first.weights).norm() / (first.weights - before.weights).norm())
    says = f"{far:.1e} of the way from the bare module's weights{strides}"
    # Sums in another order differ in last bits; a wrong gradient goes a way of its own.
    return says if far < 0.05 else f"FAILED: {says}"


def reducer(rehearse: bool) -> Iterator[Row]:
    """The step in DDP beside the bare module's, eager and compiled, with and without Dynamo's cuts at the buckets."""
    from benchmarks.gpu_steps import setting_of

    device, setting = device_of(rehearse), setting_of("resnet18", rehearse)
    wraps: dict[str, Wrap | None] = {"bare": None, "bare again": None, "DDP": in_ddp}
    yield from rows_of(setting, device, "eager", wraps, 3)
    if rehearse:
        return
    for optimised in ("ddp_optimizer", False):
        torch._dynamo.reset()
        torch._dynamo.config.optimize_ddp = optimised  # type: ignore[attr-defined]
        named = f"DDP, optimize_ddp {optimised}"
        yield from rows_of(setting, device, "compiled", {"bare": None, named: in_ddp}, 3)
