"""Arguments that a user gives to whatever builds a network, and what is said of one that it does not take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

_OURS = ("num_classes", "in_channels", "in_chans", "image_px", "weights", "pretrained")
_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_MANY = 24


def refuse_ours(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that fastanc gives itself."""
    for key in kwargs:
        if key in _OURS:
            raise ValueError(
                f"kwargs of {name}: {key} is what the data set, data.image_px or the weights say: leave it out"
            )


def built_with(name: str, make: Callable[..., nn.Module], kwargs: Mapping[str, Any]) -> nn.Module:
    """Return make(**kwargs); ValueError names an argument that the builder does not take, and those it takes."""
    if not kwargs:
        return make()
    try:
        return make(**kwargs)
    except Exception as error:  # whatever a builder says to a value that it cannot take
        if isinstance(error, OSError):
            raise
        plain = make()  # raises what is wrong without any arguments
        unknown = [key for key in kwargs if key not in arguments_of(type(plain))]
        if unknown and isinstance(error, TypeError):
            raise ValueError(not_taken(name, unknown[0], type(plain))) from error
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise ValueError(
            f"kwargs of {name}: {type(plain).__name__} refuses {given} ({said}): give others"
        ) from error


def not_taken(name: str, key: str, builder: Callable[..., Any]) -> str:
    """Return the sentence about an argument that a builder lacks."""
    known = [one for one in arguments_of(builder) if one not in _OURS]
    listed = ", ".join(known[:_MANY]) + (f" and {len(known) - _MANY} more" if len(known) > _MANY else "")
    title = getattr(builder, "__name__", str(builder))
    return f"kwargs of {name}: {title} takes no {key!r}, but {listed or 'none'}: correct it, or leave it out"


def arguments_of(builder: Callable[..., Any]) -> list[str]:
    """Return the names of a builder's arguments that have a default, its base classes' where it hands them on."""
    found: dict[str, None] = {}
    kinds: list[Callable[..., Any]] = [builder]
    if isinstance(builder, type):
        kinds = [vars(kind)["__init__"] for kind in builder.__mro__[:-1] if "__init__" in vars(kind)]
    for make in kinds:
        parameters = inspect.signature(make).parameters.values()
        found |= {p.name: None for p in parameters if p.kind in _KEYWORDS and p.default is not p.empty}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(found)
