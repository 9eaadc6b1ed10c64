"""One network of the game with its optimizer, and the moving average of one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastanc.training.zero import take_whole_state, whole_state


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

    @property
    def zero(self) -> Any | None:
        """The optimizer of ZeRO 1 or 2, which has only a part of the state; None with a whole one."""
        inner = getattr(self.optimizer, "optimizer", None)
        return inner if hasattr(inner, "single_partition_of_fp32_groups") else None

    def state(self) -> dict[str, Any]:
        """Return weights and optimizer as one process alone would have them; every process calls it."""
        whole = self.optimizer.state_dict() if self.zero is None else whole_state(self.zero)
        return {"module": self.module.state_dict(), "optimizer": whole}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take weights and optimizer, whatever number of processes they come from."""
        self.module.load_state_dict(state["module"])
        if self.zero is None:
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            take_whole_state(self.zero, state["optimizer"])

    def set_lr(self, factor: float) -> None:
        """Set every learning rate to its base times `factor`."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor


class Average:
    """The exponential moving average of a network: of its weights and of BatchNorm's statistics.

    With `warmup` the decay of step t is min(decay, (1 + t) / (10 + t)), as TensorFlow's moving average has it: else a
    short run's average would be of the initial weights. A function of the step, so a run that goes on needs no count.
    """

    def __init__(self, network: nn.Module, decay: float, device: torch.device, *, warmup: bool = False):
        self.network = copy.deepcopy(network).to(device).requires_grad_(False)
        self.decay, self.warmup = decay, warmup

    def decay_at(self, step: int) -> float:
        """Return what is kept of the average at a step, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int = 0) -> None:
        """Move towards the network's present weights by 1 - the step's decay; whole numbers are copied."""
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(
            [mine for mine, _ in floats], [theirs for _, theirs in floats], 1 - self.decay_at(step)
        )
        if wholes := [pair for pair in pairs if not pair[0].is_floating_point()]:
            torch._foreach_copy_([mine for mine, _ in wholes], [theirs for _, theirs in wholes])


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
