"""The optimizers a player can have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

_NAMES = ("sgd", "adam", "adamw")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How one player's weights are moved."""

    name: str = "sgd"
    """sgd, adam or adamw."""
    lr: float = 0.01
    """Base learning rate; the schedule multiplies it."""
    momentum: float = 0.9
    """SGD's momentum, or Adam's beta1."""
    nesterov: bool = False
    """Nesterov momentum (sgd only)."""
    weight_decay: float = 5e-4
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    clip: float = 0.0
    """Largest gradient norm of this player; 0 does not clip."""

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise ValueError(f"optimizer name {self.name!r} is unknown: use one of {', '.join(_NAMES)}")
        if self.nesterov and self.name != "sgd":
            raise ValueError(f"nesterov is an option of sgd, not of {self.name}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimizer of these parameters, fused where the device has it."""
        parameters = list(parameters)
        fused = bool(parameters) and all(p.is_cuda for p in parameters)
        if self.name == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                fused=fused,
            )
        family = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return family(
            parameters, lr=self.lr, betas=(self.momentum, 0.999), weight_decay=self.weight_decay, fused=fused
        )
