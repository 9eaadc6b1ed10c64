"""The networks that are trained, their optimizers, and whose turn it is.

Only the student is given to `Accelerator.prepare` (DDP, any ZeRO stage). Every other player is a plain module
with a plain optimizer whose gradients are averaged over the processes by one flat all-reduce, so that the same
code gives the same weights plain, under DDP and under DeepSpeed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from fastanc.methods.base import Method, Nets, TeacherSpec, check_needs, spec_of
from fastanc.models.attention import Squeezed
from fastanc.models.taps import Tapped
from fastanc.optimizers import OptimizerConfig
from fastanc.training.groups import groups_of
from fastanc.training.player import Player
from fastanc.training.processes import average_flat, make_accelerator


def _sum(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([term.float() for term in terms.values()]).sum()


class Players(Mapping[str, Player]):
    """All players of a method; one is on turn at a time, the others are frozen meanwhile.

    An unfrozen opponent would gather gradients of another player's loss: silently wrong with DDP and ZeRO-1.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, OptimizerConfig],
        *,
        frozen: Mapping[str, nn.Module] | None = None,
        skip_nonfinite: int = 0,
        constant_rates: frozenset[str] = frozenset(),
    ):
        """Prepare every player.

        Args:
            accelerator: of this process.
            networks: players by name, one of them "student".
            optimizers: of the players that have one of their own; the student's serves the rest.
            frozen: networks that a play may pass through and nobody moves, by name: the teacher.
            skip_nonfinite: updates that may be left out because the loss is not finite on some process.
            constant_rates: players whose learning rate `set_lr` leaves as it is.
        """
        self.accelerator = accelerator
        self._skips_left, self._rehearses = skip_nonfinite, False
        self._constant_rates = constant_rates
        self._frozen = dict(frozen or {})
        self._players: dict[str, Player] = {}
        for name, network in networks.items():
            spec = optimizers.get(name, optimizers["student"])
            if name == "student":
                self._players[name] = self._prepared(network, spec)
            else:
                self._players[name] = self._beside(network, spec)

    def _prepared(self, network: nn.Module, spec: OptimizerConfig) -> Player:
        network.to(self.accelerator.device)
        check_optimizer(self.accelerator, spec)
        with warnings.catch_warnings():
            # No other word says that buffers are synchronised neither at the start nor in a pass.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped, optimizer = self.accelerator.prepare(network, spec.build(groups_of(network, spec)))
        return Player(network, wrapped, optimizer, spec.clip)

    def _beside(self, network: nn.Module, spec: OptimizerConfig) -> Player:
        same_everywhere(self.accelerator, network)
        spec = replace(spec, layer_decay=1.0)  # of the student's blocks, and its optimizer may be shared
        return Player(network, network, spec.build(groups_of(network, spec)), spec.clip)

    def __getitem__(self, name: str) -> Player:
        return self._players[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._players)

    def __len__(self) -> int:
        return len(self._players)

    @contextmanager
    def turn(self, name: str) -> Iterator[Nets]:
        """Freeze every player but `name` and yield all networks by name, the one on turn in its wrapper."""
        for other, player in self._players.items():
            player.freeze(other != name)
        mine = {n: p.wrapped if n == name else p.module for n, p in self._players.items()}
        yield {**self._frozen, **mine}

    def update(self, name: str, terms: Mapping[str, Tensor]) -> None:
        """Minimise the sum of a play's terms by one step of the player's optimizer."""
        loss = _sum(terms)
        if self._rehearses:
            self._grads(name, loss)
        elif not self._skips(loss):
            self._backward(name, loss)
            self._move(name)

    def update_in_parts(self, name: str, parts: Sequence[Callable[[], Mapping[str, Tensor]]]) -> None:
        """Minimise the mean over parts of a batch by one step of the player's optimizer.

        Each of `parts` makes the player's turn with one part and returns its terms.
        """
        player = self._players[name]
        if self._rehearses:
            for terms in parts:
                self._grads(name, _sum(terms()))
            return
        if self.accelerator.gradient_accumulation_steps != len(parts):
            # A loop of one's own: DeepSpeed's engine alone is told at its start and never again.
            if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
                raise ValueError(f"give make_accelerator accumulate={len(parts)} for a step in so many parts")
            self.accelerator.gradient_accumulation_steps = len(parts)
        try:
            for number, terms in enumerate(parts, 1):
                # Accelerate counts the student's parts: no all-reduce before the last, and no step.
                counting = self.accelerator.accumulate(player.wrapped) if name == "student" else nullcontext()
                with counting:
                    loss = _sum(terms())
                    self._backward(name, loss if name == "student" else loss / len(parts))
                    if number == len(parts):
                        self._move(name)
        except BaseException:
            # Left between two parts, Accelerate would take no step in this process any more, whoever asks for it.
            self.accelerator.step, self.accelerator.sync_gradients = 0, True
            player.optimizer.zero_grad()
            raise

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Let plays go through and back and move nobody meanwhile: what a step compiles is compiled."""
        self._rehearses = True
        try:
            yield
        finally:
            self._rehearses = False

    def _grads(self, name: str, loss: Tensor) -> None:
        # Not `backward`: no gradient is left behind, and no hook of DDP or ZeRO begins to wait for the others.
        torch.autograd.grad(loss, self._players[name].parameters, allow_unused=True)

    def _skips(self, loss: Tensor) -> bool:
        if not self._skips_left:
            return False
        bad = self.accelerator.reduce((~loss.detach().isfinite()).float(), reduction="sum")
        skips = bool(bad.item() > 0)
        self._skips_left -= skips
        return skips

    def _backward(self, name: str, loss: Tensor) -> None:
        if name == "student":
            self.accelerator.backward(loss)
        else:
            loss.backward()

    def _move(self, name: str) -> None:
        player = self._players[name]
        if name == "student":
            if player.clip:
                self.accelerator.clip_grad_norm_(player.wrapped.parameters(), player.clip)
        else:
            average_flat(self.accelerator, [p.grad for p in player.parameters if p.grad is not None])
            if player.clip:
                torch.nn.utils.clip_grad_norm_(player.parameters, player.clip)
        player.optimizer.step()
        player.optimizer.zero_grad()

    def set_lr(self, factor: float) -> None:
        """Set every player's learning rate to its base times `factor`; those that are constant keep their base."""
        for name, player in self._players.items():
            player.set_lr(1.0 if name in self._constant_rates else factor)

    @torch.no_grad()
    def agreed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the means of tensors over all processes, each of which calls it; in a rehearsal the own ones."""
        own = {name: value.detach().clone() for name, value in values.items()}
        if not self._rehearses:
            average_flat(self.accelerator, list(own.values()))
        return own

    def state(self) -> dict[str, dict[str, Any]]:
        """Return weights and optimizer of every player, for a checkpoint; every process calls it."""
        return {name: player.state() for name, player in self._players.items()}

    def load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take weights and optimizers from a checkpoint; ValueError names a player that does not fit."""
        if set(state) != set(self):
            raise ValueError(f"the checkpoint holds the players {sorted(state)}, this run has {sorted(self)}")
        for name, player in self._players.items():
            try:
                player.load_state(state[name])
            except (RuntimeError, ValueError) as error:
                first = str(error).strip().splitlines()[-1].strip()
                raise ValueError(f"the checkpoint is of another {name}: {first}") from error

    @torch.no_grad()
    def spoiled(self) -> str | None:
        """Return the name of a player whose weights are not all finite, or None; the host waits for the device."""
        for name, player in self._players.items():
            if not torch.stack([p.sum() for p in player.parameters]).isfinite().all():
                return name
        return None

    @torch.no_grad()
    def assert_equal_everywhere(self) -> None:
        """Raise RuntimeError where the processes' weights are no longer the same to the last bit."""
        sums = [sum(w.double().abs().sum() for w in p.module.parameters()) for p in self._players.values()]
        everyone = self.accelerator.gather(torch.stack([torch.as_tensor(s) for s in sums])[None])
        if not bool((everyone == everyone[:1]).all()):
            raise RuntimeError(
                f"the processes' weights drifted apart: {everyone.tolist()}; please report this"
            )

    def modules(self) -> dict[str, nn.Module]:
        """Return every player's bare network by name."""
        return {name: player.module for name, player in self._players.items()}


def players_of(
    method: Method,
    student: Tapped,
    teacher: Tapped | Squeezed | TeacherSpec,
    optimizer: OptimizerConfig | None = None,
    accelerator: Accelerator | None = None,
) -> Players:
    """Return the players of a method between this teacher and this student.

    Args:
        method: says which networks there are.
        student: tapped; it is trained in place.
        teacher: tapped, or what may be known of it.
        optimizer: the student's, and every player's that has none of its own.
        accelerator: of this process; by default one for a process of its own.

    Raises:
        ValueError: the two networks do not fit each other or the method.
    """
    if not isinstance(teacher, TeacherSpec):
        teacher = spec_of(teacher.eval().requires_grad_(False))
    check_needs(method)
    check_classes(student, teacher.num_classes)
    optimizers = {"student": optimizer or OptimizerConfig(), **method.optimizers()}
    networks = method.networks(student.train(), teacher)
    return Players(
        accelerator or make_accelerator(),
        networks,
        optimizers,
        frozen=frozen_of(method, teacher),
        constant_rates=method.constant_rates,
    )


def same_everywhere(accelerator: Accelerator, network: nn.Module) -> None:
    """Give every process the first one's weights and buffers, on its device."""
    network.to(accelerator.device)
    if accelerator.num_processes > 1:
        for tensor in [*network.parameters(), *network.buffers()]:
            torch.distributed.broadcast(tensor.data, 0)


def check_optimizer(accelerator: Accelerator, spec: OptimizerConfig) -> None:
    """Raise ValueError where ZeRO would cut up what the student's optimizer has to see whole."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if spec.name == "lamb" and plugin is not None and plugin.zero_stage > 0:
        raise ValueError(
            "optimizer.name lamb compares whole layers, which ZeRO cuts into parts: launch by"
            " fastanc/recipes/launch/gpus.yaml, or take adamw"
        )


def check_classes(student: Tapped, num_classes: int) -> None:
    """Raise ValueError where a student does not give as many logits as there are classes to learn."""
    if student.num_classes != num_classes:
        raise ValueError(
            f"the student gives {student.num_classes} logits where {num_classes} classes are to be learnt: give one"
            f" with {num_classes}"
        )


def frozen_of(method: Method, teacher: TeacherSpec) -> dict[str, nn.Module]:
    """Return the networks beside the players: the teacher's, where the method passes through it."""
    if "network" not in method.needs:
        return {}
    assert teacher.network is not None
    return {"teacher": teacher.network}
