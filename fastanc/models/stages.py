"""Stage maps: where a family's stages end, and whether what comes out there is a map [B, C, H, W]."""

from __future__ import annotations

import re
import sys

from torch import Tensor, nn

STEM = "stem"
"""Names, among stages, the map that enters the family's first stage: RepDistiller's first map for FSP."""
_SWIN = r"layers\.\d+"  # MNASNet has single convolutions under such names
_STAGE_PATTERNS = (
    r"layer\d+",  # ResNets, own and torchvision's and timm's
    r"block\d+",  # NiN, LeNets
    r"stages\.\d+",  # timm: ConvNeXt, RegNet and others
    r"blocks\.\d+",  # timm: EfficientNet, MobileNet
    _SWIN,
    r"features\.denseblock\d+",
    r"trunk_output\.block\d+",
)


def stages_of(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules whose outputs are the network's stage maps, shallow to deep.

    A network may say them itself, as `own_stages`. Raises ValueError where the family is unknown.
    """
    if told := getattr(network, "own_stages", ()):
        return tuple(told)
    names = [name for name, _ in network.named_modules()]
    for pattern in _STAGE_PATTERNS:
        found = tuple(name for name in names if re.fullmatch(pattern, name))
        single = pattern == _SWIN and not all([*network.get_submodule(name).children()] for name in found)
        if len(found) > 1 and not single:
            return found
    raise ValueError(
        f"{type(network).__name__} has no stages that fastanc knows: name the modules to tap in `stages`, "
        f"e.g. {', '.join(name for name, _ in network.named_children())}"
    )


def entered_by_stem(network: nn.Module, name: str) -> nn.Module | None:
    """Return the family's first stage where `name` is its stem and no module's; None for a module's name."""
    inside, _, last = name.rpartition(".")
    if last != STEM:
        return None
    owner = network.get_submodule(inside)
    return None if hasattr(owner, STEM) else owner.get_submodule(stages_of(owner)[0])


def has_channels_last(network: nn.Module, output: object) -> bool:
    """Return whether a stage's output on square images is [B, H, W, C], in a family known to compute so.

    Raises ValueError, the end of a sentence, where it is no map at all, or of a family that nobody knows.
    """
    if output is None:
        raise ValueError("is not run in a pass")
    if not isinstance(output, Tensor):
        raise ValueError(f"gives a {type(output).__name__}")
    shape = list(output.shape)
    if len(shape) == 3:
        raise ValueError(f"gives token sequences [B, T, D], here {shape}")
    if len(shape) != 4:
        raise ValueError(f"gives {shape}")
    torchvision = sys.modules.get("torchvision")  # what is not imported has made no network
    swin = torchvision is not None and isinstance(network, torchvision.models.SwinTransformer)
    known = swin or _says_channels_last(network)
    if known:
        return shape[1] == shape[2]
    if shape[1] == shape[2] != shape[3]:
        raise ValueError(f"gives {shape}, where the channels seem to come last")
    return False


def _says_channels_last(network: nn.Module) -> bool:
    """Return what timm's networks say of themselves: Swin, MambaOut, Sequencer and others are NHWC inside."""
    said = getattr(network, "output_fmt", None)
    return getattr(said, "value", said) == "NHWC"
