"""What makes a host wait for its device, by what PyTorch is asked to do: a machine without a GPU tells."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Refuse the operations for which a host waits for its device."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indexed = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert name not in self.names, name
        assert not any(k is not None and k.dtype in (torch.bool, torch.uint8) for k in indexed), name
        return func(*args, **(kwargs or {}))
