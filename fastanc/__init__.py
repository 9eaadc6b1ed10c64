"""Compress a big image classifier into a small one: `fastanc.compress(teacher, student, data)`.

The names below are what a script needs; each is imported when it is first asked for, so that `import fastanc` costs
nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastanc import methods as methods
    from fastanc import train as train
    from fastanc.api import Result as Result
    from fastanc.api import compress as compress
    from fastanc.batch import Batch as Batch
    from fastanc.batch import Outputs as Outputs
    from fastanc.config import Config as Config
    from fastanc.methods.base import Method as Method
    from fastanc.methods.base import Play as Play
    from fastanc.methods.base import Played as Played
    from fastanc.methods.registered import register_method as register_method
    from fastanc.models.registered import register_network as register_network
    from fastanc.models.taps import Tapped as Tapped
    from fastanc.models.zoo import tap as tap
    from fastanc.parsing import configure as configure
    from fastanc.pipelines.catalogue import register_dataset as register_dataset
    from fastanc.pipelines.own_looks import register_look as register_look
    from fastanc.teacher.online import Online as Online
    from fastanc.training.players import Players as Players
    from fastanc.training.players import players_of as players_of
    from fastanc.training.step import play as play

__version__ = "0.1.0"

_HOMES = {
    "Batch": "batch",
    "Config": "config",
    "Method": "methods.base",
    "Online": "teacher.online",
    "Outputs": "batch",
    "Play": "methods.base",
    "Played": "methods.base",
    "Players": "training.players",
    "Result": "api",
    "Tapped": "models.taps",
    "compress": "api",
    "configure": "parsing",
    "play": "training.step",
    "players_of": "training.players",
    "register_dataset": "pipelines.catalogue",
    "register_look": "pipelines.own_looks",
    "register_method": "methods.registered",
    "register_network": "models.registered",
    "tap": "models.zoo",
}
_MODULES = ("losses", "methods", "train")  # `fastanc.train` can be called: it is the module and the function
__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"fastanc.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'fastanc' has no attribute {name!r}")
    return getattr(import_module(f"fastanc.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
