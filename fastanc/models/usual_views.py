"""The side at which a network by name is used, and what its images are scaled to before the centre crop."""

from __future__ import annotations

from typing import NamedTuple

from fastanc.models.names import TIMM, TORCHVISION, check_name, described_elsewhere, family_of


class UsualViews(NamedTuple):
    """How its library, or its paper, shows images to a network."""

    image_px: int
    resize_px: int
    source: str


def usual_views(name: str) -> UsualViews | None:
    """Return how a network's images are scaled and cut for evaluation; None where nobody says it.

    ValueError for a name that no network has.
    """
    check_name(name, may_be_registered=True)
    library, _, rest = name.partition(":")
    name_alone, _, tag = rest.partition("@")
    if library == TORCHVISION:
        import torchvision

        choices = torchvision.models.get_model_weights(name_alone)
        views = (choices[tag] if tag in choices.__members__ else choices.DEFAULT).transforms()
        return UsualViews(views.crop_size[0], views.resize_size[0], "torchvision's transforms")
    if library == TIMM:
        import timm

        if described_elsewhere(rest):
            return None
        says = timm.models.get_pretrained_cfg(name_alone, allow_unregistered=False)
        if says is None:
            return None
        px = says.input_size[-1]
        return UsualViews(px, int(px / says.crop_pct), "timm's pretrained_cfg")
    found = family_of(name)
    if found is None:
        return None
    imagenet = found[0].key.startswith("imagenet")
    return UsualViews(224, 256, "its paper") if imagenet else UsualViews(32, 32, "its paper")
