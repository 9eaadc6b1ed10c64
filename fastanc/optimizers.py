"""The optimizers a player can have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from fastanc.fields import BelowOne, Fields, OneOf, Range, Share, Weight

if TYPE_CHECKING:
    import torch
    from torch import nn

Optimizer = Annotated[str, OneOf(("sgd", "adam", "adamw", "lamb"))]
Rate = Annotated[float, Range(0, 1000)]
Decay = Annotated[float, Range(0, 10)]
_BETA2 = 0.999


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Fields):
    """How one player's weights are moved."""

    group = "optimizer"
    name: Optimizer = "sgd"
    """sgd, adam, adamw or lamb (timm's, for large batches; pip install timm)."""
    lr: Rate = 0.01
    """Base learning rate; the schedule multiplies it."""
    momentum: BelowOne = 0.9
    """SGD's momentum, or beta1 of the others."""
    beta2: BelowOne = _BETA2
    """Decay of the mean of squared gradients (not of sgd); recipes for transformers have 0.95 to 0.999."""
    nesterov: bool = False
    """Nesterov momentum (sgd only)."""
    weight_decay: Decay = 5e-4
    """L2 penalty (sgd, adam), decoupled decay (adamw), or part of the update before its trust ratio (lamb)."""
    decay_norms: bool = True
    """Whether norms and biases, the weights of one dimension, decay too; false spares them, as strong recipes do."""
    layer_decay: Share = 1.0
    """Factor of the learning rate from each block to the one before it, for a student that was trained before (the
    student's alone); 1 gives all blocks the same."""
    clip: Weight = 0.0
    """Largest gradient norm of this player; 0 does not clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.name != "sgd":
            raise ValueError(f"nesterov is an option of sgd, not of {self.name}")
        if self.beta2 != _BETA2 and self.name == "sgd":
            raise ValueError("beta2 is an option of adam, adamw and lamb, not of sgd")

    def check_library(self) -> None:
        """Raise ValueError where the optimizer is a library's that is not installed; nothing is imported."""
        if self.name == "lamb" and find_spec("timm") is None:
            raise ValueError("optimizer lamb needs timm: pip install timm")

    def build(self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameters, or groups of them, fused where torch and the device have it."""
        import torch

        groups: list[Any] = list(parameters)
        weights = [
            w for group in groups for w in (group["params"] if isinstance(group, Mapping) else [group])
        ]
        fused = bool(weights) and all(w.is_cuda for w in weights)
        if self.name == "sgd":
            return torch.optim.SGD(
                groups,
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                fused=fused,
            )
        betas = (self.momentum, self.beta2)
        if self.name == "lamb":
            self.check_library()
            from timm.optim import Lamb

            # Its own clip is off: `clip` says it for every optimizer.
            lamb: torch.optim.Optimizer = Lamb(
                groups, lr=self.lr, betas=betas, weight_decay=self.weight_decay, max_grad_norm=None
            )
            return lamb
        family = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return family(groups, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=fused)
