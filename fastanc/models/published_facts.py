"""What is published beside a network's weights: the names of its classes, and a licence."""

from __future__ import annotations

from contextlib import suppress

from fastanc.models.hub import licence_of as licence_of_hub
from fastanc.models.hub import names_of as names_of_hub
from fastanc.models.names import HF, TIMM, TORCHVISION, has_published


def class_names(name: str) -> list[str]:
    """Return the names of the classes that the published weights in a name know, in their order; none where nobody
    says them."""
    library, _, rest = name.partition(":")
    if not has_published(name):
        return []
    if library == HF:
        return names_of_hub(name)
    name, _, tag = rest.partition("@")
    if library == TORCHVISION:
        import torchvision

        weights = torchvision.models.get_model_weights(name).__members__
        return list(weights[tag].meta["categories"]) if tag in weights else []
    return _names_of_timm(name) if library == TIMM else []


def _names_of_timm(name: str) -> list[str]:
    try:
        from timm.data import ImageNetInfo, infer_imagenet_subset
        from timm.models import get_pretrained_cfg
    except ImportError:
        return []
    published = get_pretrained_cfg(name, allow_unregistered=False)
    if published is None:
        return []
    if published.label_names:
        return [str(label) for label in published.label_names]
    subset = infer_imagenet_subset(published.to_dict())
    return [] if subset is None else list(ImageNetInfo(subset).label_descriptions())


def licence_of(name: str) -> str:
    """Return the licence of the published weights in a name, with who says it; an empty text where nobody does."""
    if not has_published(name):
        return ""
    library, _, rest = name.partition(":")
    if library == HF:
        with suppress(OSError):  # a repository that cannot be reached now
            return licence_of_hub(rest)
    if library == TIMM:
        with suppress(ImportError, RuntimeError):
            from timm.models import get_pretrained_cfg

            published = get_pretrained_cfg(rest.partition("@")[0])
            if published is not None and published.license:
                return f"{published.license} by timm"
    return ""
