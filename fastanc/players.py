"""The networks that are trained, their optimizers, and whose turn it is.

Only the student is given to `Accelerator.prepare` (DDP, any ZeRO stage). Every other player is a plain module
with a plain optimizer whose gradients are averaged over the processes by one flat all-reduce, so that the same
code gives the same weights plain, under DDP and under DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fastanc.methods.base import Nets
from fastanc.optimizers import OptimizerConfig
from fastanc.processes import average_flat


class Player:
    """One network of the game with its optimizer."""

    def __init__(self, module: nn.Module, wrapped: nn.Module, optimizer: torch.optim.Optimizer, clip: float):
        self.module = module
        self.wrapped = wrapped
        self.optimizer = optimizer
        self.clip = clip
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]

    def freeze(self, frozen: bool) -> None:
        """Let no gradient reach the weights, or let it again."""
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)

    def set_lr(self, factor: float) -> None:
        """Set every learning rate to its base times `factor`."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor


class Players(Mapping[str, Player]):
    """All players of a method; one is on turn at a time, the others are frozen meanwhile.

    An unfrozen opponent would gather gradients of another player's loss: silently wrong with DDP and ZeRO-1.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, OptimizerConfig],
    ):
        self.accelerator = accelerator
        self._players: dict[str, Player] = {}
        for name, network in networks.items():
            spec = optimizers.get(name, optimizers["student"])
            if name == "student":
                self._players[name] = self._prepared(network, spec)
            else:
                self._players[name] = self._beside(network, spec)

    def _prepared(self, network: nn.Module, spec: OptimizerConfig) -> Player:
        network.to(self.accelerator.device)
        trainable = [p for p in network.parameters() if p.requires_grad]
        wrapped, optimizer = self.accelerator.prepare(network, spec.build(trainable))
        return Player(network, wrapped, optimizer, spec.clip)

    def _beside(self, network: nn.Module, spec: OptimizerConfig) -> Player:
        network.to(self.accelerator.device)
        if self.accelerator.num_processes > 1:
            for tensor in [*network.parameters(), *network.buffers()]:
                torch.distributed.broadcast(tensor.data, 0)
        trainable = [p for p in network.parameters() if p.requires_grad]
        return Player(network, network, spec.build(trainable), spec.clip)

    def __getitem__(self, name: str) -> Player:
        return self._players[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._players)

    def __len__(self) -> int:
        return len(self._players)

    @contextmanager
    def turn(self, name: str) -> Iterator[Nets]:
        """Freeze every player but `name` and yield the networks by name, the one on turn in its wrapper."""
        for other, player in self._players.items():
            player.freeze(other != name)
        yield {n: p.wrapped if n == name else p.module for n, p in self._players.items()}

    def update(self, name: str, terms: Mapping[str, Tensor]) -> None:
        """Minimise the sum of a play's terms by one step of the player's optimizer."""
        player = self._players[name]
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        if name == "student":
            self.accelerator.backward(loss)
            if player.clip:
                self.accelerator.clip_grad_norm_(player.wrapped.parameters(), player.clip)
        else:
            loss.backward()
            average_flat(self.accelerator, [p.grad for p in player.parameters if p.grad is not None])
            if player.clip:
                torch.nn.utils.clip_grad_norm_(player.parameters, player.clip)
        player.optimizer.step()
        player.optimizer.zero_grad()

    def set_lr(self, factor: float) -> None:
        """Set every player's learning rate to its base times `factor`."""
        for player in self._players.values():
            player.set_lr(factor)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return weights and optimizer of every player, for a checkpoint."""
        return {
            name: {"module": player.module.state_dict(), "optimizer": player.optimizer.state_dict()}
            for name, player in self._players.items()
        }

    def load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take weights and optimizers from a checkpoint; ValueError names a player that does not fit."""
        if set(state) != set(self):
            raise ValueError(f"the checkpoint holds the players {sorted(state)}, this run has {sorted(self)}")
        for name, player in self._players.items():
            try:
                player.module.load_state_dict(state[name]["module"])
                player.optimizer.load_state_dict(state[name]["optimizer"])
            except (RuntimeError, ValueError) as error:
                first = str(error).strip().splitlines()[-1].strip()
                raise ValueError(f"the checkpoint is of another {name}: {first}") from error

    def modules(self) -> dict[str, nn.Module]:
        """Return every player's bare network by name."""
        return {name: player.module for name, player in self._players.items()}
