"""Networks compiled in place, where that works."""

from __future__ import annotations

import torch
from torch import nn


def compile_in_place(module: nn.Module, sample: torch.Tensor, mode: str = "default") -> str | None:
    """Compile a network's forward; return one sentence when that fails and eager mode stays.

    `sample` is a batch of the real size: another one would make the compiler think that sizes vary.
    """
    # All networks share Tapped.forward, so that their variants (who, in which mode, with a gradient or not, the
    # last batch of an evaluation) count together against Dynamo's limit of 8, beyond which it stays eager.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    module.to(sample.device).compile(mode=mode)
    try:
        with torch.no_grad():
            module(sample)
    except Exception as error:  # any compiler error: eager is always right, only slower
        module._compiled_call_impl = None
        return f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}): running eager"
    return None
