"""The optimizers a player can have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastanc.fields import BelowOne, Fields, OneOf, Range, Weight

if TYPE_CHECKING:
    import torch
    from torch import nn

Optimizer = Annotated[str, OneOf(("sgd", "adam", "adamw"))]
Rate = Annotated[float, Range(0, 1000)]
Decay = Annotated[float, Range(0, 10)]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Fields):
    """How one player's weights are moved."""

    group = "optimizer"
    name: Optimizer = "sgd"
    """sgd, adam or adamw."""
    lr: Rate = 0.01
    """Base learning rate; the schedule multiplies it."""
    momentum: BelowOne = 0.9
    """SGD's momentum, or Adam's beta1."""
    nesterov: bool = False
    """Nesterov momentum (sgd only)."""
    weight_decay: Decay = 5e-4
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    clip: Weight = 0.0
    """Largest gradient norm of this player; 0 does not clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.name != "sgd":
            raise ValueError(f"nesterov is an option of sgd, not of {self.name}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimizer of these parameters, fused where the device has it."""
        import torch

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
