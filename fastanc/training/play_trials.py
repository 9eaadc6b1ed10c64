"""The plays of one batch, called again and again in every spelling without anybody moving.

Each is held to the same play in float64, with the same dropout masks: `_dropout_of_fp32` lets the wide play draw
those of the narrow one. Kernels that draw masks of their own are compared without dropout.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.batch import Batch, Outputs
from fastanc.kernels.choice import TOLERANCE, Cost, Trial, cost_of, fastest, tried
from fastanc.methods.base import Method, Nets, Played
from fastanc.training.players import Players
from fastanc.training.spellings import Choice, Loss, said, spelled

_SEED = 20_180_314


class PlayTrials:
    """The plays of one batch, ready to be called again and again without anybody moving."""

    def __init__(self, method: Method, players: Players, batch: Batch, precision: str):
        self.method, self.players, self.batch, self.precision = method, players, batch, precision
        self.device = batch.images.device
        with players.turn("student") as nets:
            # The bare one: nobody's hooks, and no other process is waited for. With gradient, as a step's pass has
            # it: a compiled network would otherwise be compiled once more.
            self.out = method.forward({**nets, "student": players["student"].module}, batch)
        self._plain: dict[int, Trial] = {}

    def key(self) -> str:
        """What a choice depends on, as a file's name."""
        shapes = [[*value.shape, str(value.dtype), *value.stride()] for value in _tensors(self.out)]
        place = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else _processor()
        players = {
            name: [list(p.shape) for p in module.parameters()]
            for name, module in self.players.modules().items()
            if name != "student"
        }
        facts = [
            str(self.method),
            shapes,
            players,
            place,
            torch.get_num_threads(),
            torch.__version__,
            self.precision,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def cost_s(self) -> float:
        """Seconds of all plays of a step as they are written."""
        costs = [self.trial(place, play.loss).cost for place, play in enumerate(self.method.plays)]
        return sum(max(cost) for cost in costs if cost is not None)

    def forced(self, wanted: str) -> Choice:
        """The wanted spelling wherever a play has it."""
        names = []
        for place, play in enumerate(self.method.plays):
            with self.players.turn(play.player) as nets:
                loss = spelled(wanted, self.method, play, nets)
            if loss is None:
                names.append("plain")
                continue
            trial = self._judged(wanted, place, loss)
            if trial.cost is None or not trial.error <= self._tolerance(place):
                why = trial.failure or f"it is {trial.error:.2g} away from float64"
                raise ValueError(
                    f"run.kernels {wanted} does not work for the play of the {play.player}: {why}; set it to auto"
                )
            names.append(wanted)
        if wanted not in names:
            raise ValueError(
                f"run.kernels {wanted}: no play of {type(self.method).__name__} has it: set it to auto"
            )
        return Choice(names=tuple(names), notes=(said(self.method, names, ", as run.kernels says"),))

    def measured(self) -> tuple[Choice, list[dict[str, Any]]]:
        """The fastest right spelling of every play, and what was measured."""
        names, told, rows = [], [], []
        step = self._step()
        for place, play in enumerate(self.method.plays):
            trials = {"plain": self.trial(place, play.loss)}
            for name in ("compiled", "captured", "triton") if self.device.type == "cuda" else ("compiled",):
                with self.players.turn(play.player) as nets:
                    loss = spelled(name, self.method, play, nets)
                if loss is not None:
                    trials[name] = self._judged(name, place, loss)
            chosen = fastest(trials, step, self._tolerance(place))
            names.append(chosen)
            before, after = (trials[name].cost for name in ("plain", chosen))
            if before is not None and after is not None:
                told.append(
                    f"{chosen} {1e3 * after.bound(step):.2f} ms ({play.player}, {1e3 * before.bound(step):.2f} plain)"
                )
            rows += [
                {"player": play.player, "spelling": name, **_row(trial)} for name, trial in trials.items()
            ]
        return Choice(names=tuple(names), notes=("plays: " + ", ".join(told),)), rows

    def trial(self, place: int, loss: Loss) -> Trial:
        """The plain spelling, measured once."""
        if place not in self._plain:
            self._plain[place] = self._judged("plain", place, loss)
        return self._plain[place]

    def _tolerance(self, place: int) -> float:
        return max(TOLERANCE[self.precision], 4 * self.trial(place, self.method.plays[place].loss).error)

    def _judged(self, name: str, place: int, loss: Loss) -> Trial:
        """Time a spelling of a play and hold it to float64.

        The kernels draw masks of their own: there both sides are without dropout.
        """
        still = _still(self.method) if name == "triton" else self.method
        player = self.method.plays[place].player
        with self.players.turn(player) as nets:
            used, truth = self._truth(still, place, nets)
            right = loss
            if still is not self.method:
                found = spelled(name, still, still.plays[place], nets)
                assert found is not None
                right = found
            made = tried(self._call(right, nets, player, used), truth, self.device, seed=_SEED)
            if right is loss or made.cost is None:
                return made
            return replace(made, cost=cost_of(self._call(loss, nets, player, used), self.device))

    def _call(
        self, loss: Loss, nets: Nets, player: str, used: Sequence[int]
    ) -> Callable[[], Sequence[Tensor]]:
        leaves = _leaves(self.out, player == "student")
        inputs = _inputs(leaves, self.players[player].module)
        wanted = [inputs[k] for k in used]

        def call() -> Sequence[Tensor]:
            total = _sum(loss(nets, self.batch, leaves))
            return total, *torch.autograd.grad(total, wanted)

        return call

    def _truth(self, method: Method, place: int, nets: Nets) -> tuple[list[int], list[Tensor]]:
        """Which inputs a play has a gradient for, and loss and these gradients in float64."""
        player = method.plays[place].player
        modules = {name: _double(module) for name, module in self.players.modules().items()}
        wide = {**nets, **modules}
        leaves = _leaves(_as(self.out, torch.float64), player == "student")
        target = None if self.batch.target is None else _as(self.batch.target, torch.float64)
        inputs = _inputs(leaves, modules[player])
        torch.manual_seed(_SEED)
        with _dropout_of_fp32():
            total = _sum(method.plays[place].loss(wide, replace(self.batch, target=target), leaves))
        slopes = torch.autograd.grad(total, inputs, allow_unused=True)
        used = [k for k, slope in enumerate(slopes) if slope is not None]
        return used, [total, *(slope for slope in slopes if slope is not None)]

    def _step(self) -> Cost:
        """The student's pass and its gradient, which say whether host or device is waited for; a CPU is both."""
        if self.device.type != "cuda":
            return Cost(0.0, 0.0)
        student = self.players["student"].module
        weights = [p for p in student.parameters() if p.requires_grad]

        def call() -> Sequence[Tensor]:
            with self.players.turn("student") as nets:
                out = self.method.forward({**nets, "student": student}, self.batch)
            assert out is not None
            return torch.autograd.grad(out.logits.float().square().sum(), weights, allow_unused=True)

        return cost_of(call, self.device, rounds=5)


def _row(trial: Trial) -> dict[str, Any]:
    host, device = (None, None) if trial.cost is None else (1e3 * seconds for seconds in trial.cost)
    return {"host_ms": host, "device_ms": device, "error": trial.error, "failure": trial.failure}


def _still(method: Method) -> Method:
    """The method without dropout."""
    return replace(method, **{"dropout": 0.0}) if hasattr(method, "dropout") else method


def _sum(played: Played) -> Tensor:
    return torch.stack([term.reshape(()) for term in played.terms.values()]).sum()


def _tensors(out: Outputs | None) -> list[Tensor]:
    if out is None:
        return []
    flat = [out.logits, out.features, *(out.stages or ()), out.descriptors]
    return [value for value in flat if value is not None]


def _map(out: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    return Outputs(
        change(out.logits),
        None if out.features is None else change(out.features),
        None if out.stages is None else tuple(map(change, out.stages)),
        None if out.descriptors is None else change(out.descriptors),
    )


def _as(out: Outputs | None, dtype: torch.dtype) -> Outputs | None:
    return None if out is None else _map(out, lambda value: value.to(dtype))


def _leaves(out: Outputs | None, graded: bool) -> Outputs | None:
    """The outputs as if a network had just given them."""
    return None if out is None else _map(out, lambda value: value.detach().requires_grad_(graded))


def _inputs(leaves: Outputs | None, module: nn.Module) -> list[Tensor]:
    """Whatever a play may have a gradient for: outputs of the student, weights of who is on turn."""
    return [
        *(value for value in _tensors(leaves) if value.requires_grad),
        *(weight for weight in module.parameters() if weight.requires_grad),
    ]


def _double(module: nn.Module) -> nn.Module:
    wide = copy.deepcopy(module).double()
    for part in wide.modules():
        part._compiled_call_impl = None
    return wide


@contextmanager
def _dropout_of_fp32() -> Iterator[None]:
    """Let dropout of float64 values draw the mask of float32 ones, from the same place of the generator."""
    real = F.dropout

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return input * real(torch.ones_like(input, dtype=torch.float32), p, training).to(input.dtype)

    F.dropout = dropout
    try:
        yield
    finally:
        F.dropout = real


def _processor() -> str:
    """The CPU's model, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "cpu")
