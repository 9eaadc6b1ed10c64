"""Networks that give features and know no classes: how one is made of a classifier, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

PROBED_CLASSES = 10
"""What a classifier is built for whose head is then taken away."""
_PARTS = ("pooler_output", "image_embeds", "features", "logits")  # these of a classifier whose head was taken


def features_in(output: Any) -> Any:
    """Return the features of a network without a head: its output, or what transformers' objects call pooled.

    [B, D, 1, 1] become [B, D].
    """
    if isinstance(output, (tuple, list)) and output and not hasattr(output, "_fields"):
        output = output[0]
    if not isinstance(output, Tensor):
        found = [getattr(output, part, None) for part in _PARTS]
        output = next((part for part in found if isinstance(part, Tensor)), output)
    if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:] == (1, 1):
        return output.flatten(1)
    return output


def beheaded(network: nn.Module, head: str | None, title: str) -> nn.Module:
    """Take a classifier's last layer away, in place; ValueError where nothing is one linear layer's output."""
    if head is None:
        raise ValueError(
            f"{title} has no last linear layer to leave out, so what its features are is not known: register a"
            " network that returns them"
        )
    network.set_submodule(head, nn.Identity())
    return network


def without_head(state: Mapping[str, Tensor], network: nn.Module, head: str | None) -> dict[str, Tensor]:
    """Return a classifier's weights without those of its head, which a network without one has no place for.

    `head` is what was taken away; of timm's networks their own `pretrained_cfg` says it.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    said = head if head is not None else config.get("classifier")
    heads = (said,) if isinstance(said, str) else tuple(said or ())
    own = network.state_dict().keys()
    return {
        key: value
        for key, value in state.items()
        if key in own or not any(key.startswith(f"{one}.") for one in heads)
    }
