"""fastanc's own networks by name, and those that a user's file registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from fastanc.models.builder_arguments import built_with
from fastanc.models.lenet import LeNet4, LeNet5
from fastanc.models.libraries import Bare, Shape
from fastanc.models.mobile_cifar import HalfMobileNetV2, ShuffleNetV1, ShuffleNetV2
from fastanc.models.names import family_of, unknown
from fastanc.models.nin import NiN
from fastanc.models.registered import make_registered, registered_names
from fastanc.models.resnet_cifar import PostActResNet, PreActResNet
from fastanc.models.resnet_imagenet import BottleneckResNetV2, small_input_resnet
from fastanc.models.resnet_projected import ProjectedResNet, ProjectedResNet50
from fastanc.models.vgg_cifar import CifarVgg
from fastanc.models.wide_resnet import WideResNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# As RepDistiller and mdistiller print them.
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "resnet": lambda s, g, **k: PreActResNet(int(g[0]), s.num_classes, s.in_channels, **k),
    "resnet_v1": lambda s, g, **k: PostActResNet(int(g[0]), s.num_classes, s.in_channels, **k),
    "resnet_bottleneck": lambda s, g, **k: PreActResNet(
        int(g[0]), s.num_classes, s.in_channels, **{"bottleneck": True, **k}
    ),
    "resnet_8x": lambda s, g, **k: small_input_resnet(int(g[0]), s.num_classes, s.in_channels, **k),
    "imagenet_resnet": lambda s, g, **k: BottleneckResNetV2(int(g[0]), s.num_classes, s.in_channels, **k),
    "wrn": lambda s, g, **k: WideResNet(
        int(g[0]), int(g[1]), s.num_classes, s.in_channels, **{"dropout": float(g[2] or 0), **k}
    ),
    "cifar_resnet": lambda s, g, **k: ProjectedResNet(
        int(g[0]), s.num_classes, s.in_channels, **{"wide": bool(g[1]), **k}
    ),
    "cifar_resnet50": lambda s, g, **k: ProjectedResNet50(s.num_classes, s.in_channels, **k),
    "cifar_vgg": lambda s, g, **k: CifarVgg(int(g[0]), s.num_classes, s.in_channels, **k),
    "cifar_mobilenetv2": lambda s, g, **k: HalfMobileNetV2(s.num_classes, s.in_channels, **k),
    "cifar_shufflenetv1": lambda s, g, **k: ShuffleNetV1(s.num_classes, s.in_channels, **k),
    "cifar_shufflenetv2": lambda s, g, **k: ShuffleNetV2(s.num_classes, s.in_channels, **k),
    "nin": lambda s, g, **k: NiN(s.num_classes, s.in_channels, s.image_px, **k),
    "lenet4": lambda s, g, **k: LeNet4(s.num_classes, s.in_channels, s.image_px, **k),
    "lenet5": lambda s, g, **k: LeNet5(s.num_classes, s.in_channels, s.image_px, **{"half": bool(g[0]), **k}),
}
"""What builds a family of `names`, from the numbers in the name."""


def is_registered(name: str) -> bool:
    """Tell whether a user's file made this name known."""
    return name in registered_names()


def _published_by(family: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The normalisation of a family's published weights."""
    if family == "resnet_v1":
        return IMAGENET_MEAN, IMAGENET_STD
    return (CIFAR100_MEAN, CIFAR100_STD) if family.startswith("cifar_") else (None, None)


def own_network(name: str, shape: Shape, kwargs: Mapping[str, Any]) -> Bare:
    """Return the network of a name without a library; ValueError for one that nobody knows."""
    if (found := family_of(name)) is not None:
        if is_registered(name):
            raise ValueError(f"network {name!r} is fastanc's own: register yours under another name")
        family, numbers = found
        mean, std = _published_by(family.key)
        make = partial(_MAKERS[family.key], shape, numbers)
        return Bare(built_with(name, make, kwargs), mean, std, source="its published weights")
    if (bare := make_registered(name, shape, kwargs)) is not None:
        return bare
    raise unknown(name, tuple(registered_names()))
