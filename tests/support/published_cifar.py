"""The networks of the CIFAR-100 comparisons as formulas over a state dict, read off RepDistiller's module names.

A parameter is drawn when a formula first asks for it, so that one pass gives the whole published layout with its
shapes; a further pass with the same dictionary gives the outputs of these weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class State(dict[str, Tensor]):
    """A state dict that draws what it is asked for and lacks."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(seed)
        self.maps: list[Tensor] = []

    def get_or_draw(self, key: str, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        """Return a tensor by its name, drawn evenly between two bounds where it is new."""
        if key not in self:
            self[key] = torch.rand(shape, generator=self.random, dtype=torch.float64) * (high - low) + low
        assert self[key].shape == shape, key
        return self[key]

    def conv(
        self, x: Tensor, key: str, out: int, k: int, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> Tensor:
        """Convolve with padding k // 2."""
        inside = x.shape[1] // groups
        bound = (3 / (inside * k * k)) ** 0.5  # keeps the size of what passes through
        weight = self.get_or_draw(f"{key}.weight", out, inside, k, k, low=-bound, high=bound)
        offset = self.get_or_draw(f"{key}.bias", out) if bias else None
        return F.conv2d(x, weight, offset, stride, k // 2, groups=groups)

    def norm(self, x: Tensor, key: str) -> Tensor:
        """Normalise by what was learnt, as in evaluation."""
        c = x.shape[1]
        weight = self.get_or_draw(f"{key}.weight", c, low=0.8, high=1.2)
        bias = self.get_or_draw(f"{key}.bias", c, low=-0.2, high=0.2)
        if (
            f"{key}.running_var" not in self
        ):  # near those of these images, or little of them would be left at the end
            var, mean = torch.var_mean(x, (0, 2, 3))
            noise = self.get_or_draw(f"{key}.running_mean", c, low=-0.1, high=0.1)
            self[f"{key}.running_mean"] = mean + noise * var.sqrt()
            self[f"{key}.running_var"] = var * self.get_or_draw(f"{key}.running_var", c, low=0.8, high=1.2)
        mean, var = self[f"{key}.running_mean"], self[f"{key}.running_var"]
        self.setdefault(f"{key}.num_batches_tracked", torch.tensor(7))
        shape = (1, c, 1, 1)
        scale = weight / (var + 1e-5).sqrt()
        return x * scale.view(shape) + (bias - mean * scale).view(shape)

    def linear(self, x: Tensor, key: str, out: int) -> Tensor:
        """Return the logits of features."""
        bound = (3 / x.shape[1]) ** 0.5
        weight = self.get_or_draw(f"{key}.weight", out, x.shape[1], low=-bound, high=bound)
        return x @ weight.T + self.get_or_draw(f"{key}.bias", out)

    def seen(self, x: Tensor) -> Tensor:
        """Keep a stage map, of those that get_feat_modules' neighbours return."""
        self.maps.append(x)
        return x


def _shuffle(x: Tensor, groups: int) -> Tensor:
    order = [g * (x.shape[1] // groups) + c for c in range(x.shape[1] // groups) for g in range(groups)]
    return x[:, order]


def resnet(s: State, x: Tensor, depth: int, widths: tuple[int, ...], classes: int) -> Tensor:
    x = s.norm(s.conv(x, "conv1", widths[0], 3), "bn1").relu()
    for number, width in enumerate(widths[1:], 1):
        for block in range((depth - 2) // 6):
            at, stride = f"layer{number}.{block}", 2 if number > 1 and block == 0 else 1
            y = s.norm(s.conv(x, f"{at}.conv1", width, 3, stride), f"{at}.bn1").relu()
            y = s.norm(s.conv(y, f"{at}.conv2", width, 3), f"{at}.bn2")
            if stride == 2 or x.shape[1] != width:
                x = s.norm(s.conv(x, f"{at}.downsample.0", width, 1, stride), f"{at}.downsample.1")
            x = (y + x).relu()
        s.seen(x)
    return s.linear(x.mean((2, 3)), "fc", classes)


def resnet50(s: State, x: Tensor, classes: int) -> Tensor:
    x = s.norm(s.conv(x, "conv1", 64, 3), "bn1").relu()
    for number, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            at, stride = f"layer{number}.{block}", 2 if number > 1 and block == 0 else 1
            y = s.norm(s.conv(x, f"{at}.conv1", width, 1), f"{at}.bn1").relu()
            y = s.norm(s.conv(y, f"{at}.conv2", width, 3, stride), f"{at}.bn2").relu()
            y = s.norm(s.conv(y, f"{at}.conv3", 4 * width, 1), f"{at}.bn3")
            if block == 0:
                x = s.norm(s.conv(x, f"{at}.shortcut.0", 4 * width, 1, stride), f"{at}.shortcut.1")
            x = (y + x).relu()
        s.seen(x)
    return s.linear(x.mean((2, 3)), "linear", classes)


def wide(s: State, x: Tensor, depth: int, times: int, classes: int) -> Tensor:
    x = s.conv(x, "conv1", 16, 3)
    for number, base in enumerate((16, 32, 64), 1):
        for block in range((depth - 4) // 6):
            at, stride = f"block{number}.layer.{block}", 2 if number > 1 and block == 0 else 1
            active = s.norm(x, f"{at}.bn1").relu()
            y = s.norm(s.conv(active, f"{at}.conv1", base * times, 3, stride), f"{at}.bn2").relu()
            y = s.conv(y, f"{at}.conv2", base * times, 3)
            if x.shape[1] != base * times:
                x = s.conv(active, f"{at}.convShortcut", base * times, 1, stride)
            x = x + y
        s.seen(x)
    return s.linear(s.norm(x, "bn1").relu().mean((2, 3)), "fc", classes)


def vgg(s: State, x: Tensor, layers: tuple[int, ...], classes: int) -> Tensor:
    for block, (width, count) in enumerate(zip((64, 128, 256, 512, 512), layers)):
        for layer in range(count):
            at = f"block{block}.{3 * layer}"
            x = s.norm(s.conv(x, at, width, 3, bias=True), f"block{block}.{3 * layer + 1}").relu()
        if block:
            s.seen(x)
        if block < 3:
            x = F.max_pool2d(x, 2)
    return s.linear(x.mean((2, 3)), "classifier", classes)


def mobilenetv2(s: State, x: Tensor, classes: int) -> Tensor:
    x = s.norm(s.conv(x, "conv1.0", 16, 3, 2), "conv1.1").relu()
    table = (
        (1, 8, 1, 1),
        (6, 12, 2, 1),
        (6, 16, 3, 2),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 160, 1, 1),
    )
    for group, (t, c, n, first) in enumerate(table):
        for block in range(n):
            at, stride, wide = f"blocks.{group}.{block}.conv", 1 if block else first, t * x.shape[1]
            y = s.norm(s.conv(x, f"{at}.0", wide, 1), f"{at}.1").relu()
            y = s.norm(s.conv(y, f"{at}.3", wide, 3, stride, groups=wide), f"{at}.4").relu()
            y = s.norm(s.conv(y, f"{at}.6", c, 1), f"{at}.7")
            x = x + y if stride == 1 and x.shape[1] == c else y
        if group in (1, 2, 4, 6):
            s.seen(x)
    x = s.norm(s.conv(x, "conv2.0", 1280, 1), "conv2.1").relu()
    return s.linear(x.mean((2, 3)), "classifier.0", classes)


def shufflenetv1(s: State, x: Tensor, classes: int) -> Tensor:
    x = s.norm(s.conv(x, "conv1", 24, 1), "bn1").relu()
    for number, (width, count) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
        for unit in range(count):
            at, out = f"layer{number}.{unit}", width - (0 if unit else x.shape[1])
            g = 1 if x.shape[1] == 24 else 3
            y = s.norm(s.conv(x, f"{at}.conv1", out // 4, 1, groups=g), f"{at}.bn1").relu()
            y = s.conv(_shuffle(y, g), f"{at}.conv2", out // 4, 3, 1 if unit else 2, groups=out // 4)
            y = s.norm(s.conv(s.norm(y, f"{at}.bn2").relu(), f"{at}.conv3", out, 1, groups=3), f"{at}.bn3")
            x = (y + x if unit else torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1)).relu()
        s.seen(x)
    return s.linear(x.mean((2, 3)), "linear", classes)


def shufflenetv2(s: State, x: Tensor, classes: int) -> Tensor:
    x = s.norm(s.conv(x, "conv1", 24, 1), "bn1").relu()
    for number, (width, count) in enumerate(((116, 3), (232, 7), (464, 3)), 1):
        half, at, c = width // 2, f"layer{number}.0", x.shape[1]
        a = s.norm(s.conv(x, f"{at}.conv1", c, 3, 2, groups=c), f"{at}.bn1")
        a = s.norm(s.conv(a, f"{at}.conv2", half, 1), f"{at}.bn2").relu()
        b = s.norm(s.conv(x, f"{at}.conv3", half, 1), f"{at}.bn3").relu()
        b = s.norm(s.conv(b, f"{at}.conv4", half, 3, 2, groups=half), f"{at}.bn4")
        b = s.norm(s.conv(b, f"{at}.conv5", half, 1), f"{at}.bn5").relu()
        x = _shuffle(torch.cat([a, b], 1), 2)
        for unit in range(1, count + 1):
            at, a, b = f"layer{number}.{unit}", x[:, :half], x[:, half:]
            b = s.norm(s.conv(b, f"{at}.conv1", half, 1), f"{at}.bn1").relu()
            b = s.norm(s.conv(b, f"{at}.conv2", half, 3, groups=half), f"{at}.bn2")
            b = s.norm(s.conv(b, f"{at}.conv3", half, 1), f"{at}.bn3").relu()
            x = _shuffle(torch.cat([a, b], 1), 2)
        s.seen(x)
    x = s.norm(s.conv(x, "conv2", 1024, 1), "bn2").relu()
    return s.linear(x.mean((2, 3)), "linear", classes)


_NARROW, _WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
FORMULAS: dict[str, Callable[[State, Tensor, int], Tensor]] = {
    "cifar_resnet8": lambda s, x, k: resnet(s, x, 8, _NARROW, k),
    "cifar_resnet14": lambda s, x, k: resnet(s, x, 14, _NARROW, k),
    "cifar_resnet20": lambda s, x, k: resnet(s, x, 20, _NARROW, k),
    "cifar_resnet32": lambda s, x, k: resnet(s, x, 32, _NARROW, k),
    "cifar_resnet44": lambda s, x, k: resnet(s, x, 44, _NARROW, k),
    "cifar_resnet56": lambda s, x, k: resnet(s, x, 56, _NARROW, k),
    "cifar_resnet110": lambda s, x, k: resnet(s, x, 110, _NARROW, k),
    "cifar_resnet8x4": lambda s, x, k: resnet(s, x, 8, _WIDE, k),
    "cifar_resnet32x4": lambda s, x, k: resnet(s, x, 32, _WIDE, k),
    "cifar_resnet50_bottleneck": resnet50,
    "wrn-16-1": lambda s, x, k: wide(s, x, 16, 1, k),
    "wrn-16-2": lambda s, x, k: wide(s, x, 16, 2, k),
    "wrn-40-1": lambda s, x, k: wide(s, x, 40, 1, k),
    "wrn-40-2": lambda s, x, k: wide(s, x, 40, 2, k),
    "cifar_vgg8": lambda s, x, k: vgg(s, x, (1, 1, 1, 1, 1), k),
    "cifar_vgg11": lambda s, x, k: vgg(s, x, (1, 1, 2, 2, 2), k),
    "cifar_vgg13": lambda s, x, k: vgg(s, x, (2, 2, 2, 2, 2), k),
    "cifar_vgg16": lambda s, x, k: vgg(s, x, (2, 2, 3, 3, 3), k),
    "cifar_vgg19": lambda s, x, k: vgg(s, x, (2, 2, 4, 4, 4), k),
    "cifar_mobilenetv2": mobilenetv2,
    "cifar_shufflenetv1": shufflenetv1,
    "cifar_shufflenetv2": shufflenetv2,
}
"""Our name of each network -> (state, normalised images [B, 3, 32, 32], classes) -> logits [B, K]."""
