"""Looks that a user's file registers: pure functions of the pictures and of numbers drawn for each view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fastanc.pipelines.look_policies import Draws, policy_of
from fastanc.registry import is_same, remember

if TYPE_CHECKING:
    from torch import Tensor

Look = TypeVar("Look", bound="Callable[[Tensor, Draws], Tensor]")


@dataclass(frozen=True)
class OwnLook:
    """A registered look."""

    name: str
    version: int
    apply: Callable[[Tensor, Draws], Tensor]


_REGISTERED: dict[str, OwnLook] = {}


def register_look(name: str, version: int = 1) -> Callable[[Look], Look]:
    """Return a decorator that makes a function a look, which `--data.looks NAME` finds.

    It takes pictures [B, C, H, W] uint8 on their device and `draws`, whose `uniform(k)` is the k-th random number of
    every view, [B] float64 in NumPy; it returns new pictures of the same shape. What becomes of a picture must depend
    on that picture and its numbers alone. Name and version are part of what a teacher's cache is kept for: count the
    version up when the function changes. In a file that `run.plugin` names::

        @register_look("dark")
        def dark(images, draws):
            factor = torch.from_numpy(draws.uniform(0) * 256).int()[:, None, None, None]
            return (images.int() * factor.to(images.device) >> 8).to(torch.uint8)

    Raises ValueError for a name that is taken.
    """

    def register(apply: Look) -> Look:
        other = _REGISTERED.get(name)
        if other is None and _is_policy(name):
            raise ValueError(f"the look {name!r} is one of fastanc's own: register yours under another name")
        if other is not None and not is_same(other.apply, apply):
            raise ValueError(f"the look {name!r} is registered twice: give one of them another name")
        _REGISTERED[name] = OwnLook(name, int(version), apply)
        remember(apply)
        return apply

    return register


def own_look(name: str) -> OwnLook | None:
    """Return the look that is registered under a name, if there is one."""
    return _REGISTERED.get(name)


def check_look(name: str) -> None:
    """Raise ValueError for a name that is neither a policy's nor a registered look's."""
    if own_look(name) is None:
        policy_of(name)


def _is_policy(name: str) -> bool:
    try:
        policy_of(name)
    except ValueError as error:
        return "is not known" not in str(error)
    return True
