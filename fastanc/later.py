"""torch, imported when something of it is first used.

What declares methods and fields imports it from here, so that a mistake in a command line is found, and help given,
before the seconds that torch takes to load.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
    from torch import Tensor as Tensor
    from torch import nn as nn
else:

    class _Later:
        """Stands for a module; whoever asks it for something imports the module."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(import_module(self._name), name)

    torch, nn, F = _Later("torch"), _Later("torch.nn"), _Later("torch.nn.functional")
    Tensor = Any  # for annotations alone


def arrive() -> None:
    """Put the modules in the place of what stands for them, everywhere: a compiler cannot see through it."""
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()) if isinstance(module, ModuleType) else ():
            if type(value).__name__ == "_Later" and type(value).__module__ == __name__:
                setattr(module, name, import_module(value._name))
