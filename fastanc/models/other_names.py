"""What other projects call the weights of networks that are the same."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_RULES = (
    (  # Wide ResNets: xternalz's, which RepDistiller and mdistiller took over
        (r"(^|\.)block(\d)\.layer\.", r"\1layer\2."),
        (r"\.convShortcut\.", ".shortcut."),
        (r"^((?:module\.)?)bn1\.", r"\1bn."),
    ),
)


def translated(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict by a network's `own` names where it has all of them by another project's; else as it is."""
    names = {name for name in own if not name.endswith("num_batches_tracked")}
    if not names or names <= state.keys():
        return dict(state)
    for rules in _RULES:
        found = {_by(rules, key): value for key, value in state.items()}
        if names <= {key.removeprefix("module.") for key in found}:
            return found
    return dict(state)


def _by(rules: tuple[tuple[str, str], ...], key: str) -> str:
    for pattern, other in rules:
        key = re.sub(pattern, other, key)
    return key
