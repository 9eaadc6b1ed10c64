"""fastanc's own networks by family: what builds them, and the normalisation of the weights that are published."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fastanc.models.lenet import LeNet4, LeNet5
from fastanc.models.libraries import Bare, Shape
from fastanc.models.mobile_cifar import HalfMobileNetV2, ShuffleNetV1, ShuffleNetV2
from fastanc.models.names import Family
from fastanc.models.nin import NiN
from fastanc.models.resnet_cifar import PostActResNet, PreActResNet
from fastanc.models.resnet_imagenet import BottleneckResNetV2, small_input_resnet
from fastanc.models.resnet_projected import ProjectedResNet, ProjectedResNet50
from fastanc.models.vgg_cifar import CifarVgg
from fastanc.models.wide_resnet import WideResNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# As RepDistiller and mdistiller print them.
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

_MAKERS: dict[str, Callable[[Shape, tuple[str, ...]], nn.Module]] = {
    "resnet": lambda s, g: PreActResNet(int(g[0]), s.num_classes, s.in_channels),
    "resnet_v1": lambda s, g: PostActResNet(int(g[0]), s.num_classes, s.in_channels),
    "resnet_bottleneck": lambda s, g: PreActResNet(int(g[0]), s.num_classes, s.in_channels, bottleneck=True),
    "resnet_8x": lambda s, g: small_input_resnet(int(g[0]), s.num_classes, s.in_channels),
    "imagenet_resnet": lambda s, g: BottleneckResNetV2(int(g[0]), s.num_classes, s.in_channels),
    "wrn": lambda s, g: WideResNet(
        int(g[0]), int(g[1]), s.num_classes, s.in_channels, dropout=float(g[2] or 0)
    ),
    "cifar_resnet": lambda s, g: ProjectedResNet(int(g[0]), s.num_classes, s.in_channels, wide=bool(g[1])),
    "cifar_resnet50": lambda s, g: ProjectedResNet50(s.num_classes, s.in_channels),
    "cifar_vgg": lambda s, g: CifarVgg(int(g[0]), s.num_classes, s.in_channels),
    "cifar_mobilenetv2": lambda s, g: HalfMobileNetV2(s.num_classes, s.in_channels),
    "cifar_shufflenetv1": lambda s, g: ShuffleNetV1(s.num_classes, s.in_channels),
    "cifar_shufflenetv2": lambda s, g: ShuffleNetV2(s.num_classes, s.in_channels),
    "nin": lambda s, g: NiN(s.num_classes, s.in_channels, s.image_px),
    "lenet4": lambda s, g: LeNet4(s.num_classes, s.in_channels, s.image_px),
    "lenet5": lambda s, g: LeNet5(s.num_classes, s.in_channels, s.image_px, half=bool(g[0])),
}
"""What builds a family of `names`, from the numbers in the name."""


def make_own(family: Family, numbers: tuple[str, ...], shape: Shape) -> Bare:
    """Return the network of a family with these numbers, and the mean and std of its published weights."""
    mean, std = None, None
    if family.key == "resnet_v1":
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    elif family.key.startswith("cifar_"):
        mean, std = CIFAR100_MEAN, CIFAR100_STD
    return Bare(_MAKERS[family.key](shape, numbers), mean, std, source="its published weights")
