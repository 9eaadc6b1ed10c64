"""A user's own methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastanc.methods.base import Method
from fastanc.quoting import shown
from fastanc.registry import is_same, remember

Kind = TypeVar("Kind", bound=type)


def register_method(name: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes a method's class known under a name: `--method.type NAME`.

    What is defined again (`registry.is_same`) takes its own name over. Raises ValueError for a name that is taken,
    TypeError for what is no dataclass of `Method`.
    """

    def register(kind: Kind) -> Kind:
        if not (isinstance(kind, type) and issubclass(kind, Method) and "__dataclass_params__" in vars(kind)):
            raise TypeError(
                f"{shown(kind)} is no method: write @dataclass(frozen=True, kw_only=True) below register_method"
            )
        known = Method.get_known_choices().get(name)
        if known is not None and is_same(known, kind):
            Method._choice_registry.pop(name)
        elif known is not None:
            raise ValueError(f"the method name {shown(name)} is taken by {known.__module__}: choose another")
        Method.register_subclass(name, kind)
        remember(kind)
        return kind

    return register
