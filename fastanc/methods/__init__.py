"""One file and one dataclass a method; a method is found by its file, nothing else has to be edited."""

from __future__ import annotations


def __getattr__(name: str) -> type:
    """Return a method's class, e.g. `fastanc.methods.Kd`."""
    from fastanc.methods.base import Method

    if not name.startswith("_"):
        for kind in Method.get_known_choices().values():
            if kind.__name__ == name:
                return kind
    raise AttributeError(f"fastanc.methods has no {name!r}")


def __dir__() -> list[str]:
    from fastanc.methods.base import Method

    return sorted(kind.__name__ for kind in Method.get_known_choices().values())
