"""The probe: two images through a network, to see which layer its logits come from and what its stages give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.batch import Outputs
from fastanc.models.headless import features_in
from fastanc.models.heads import may_be_head, pooled
from fastanc.models.stages import entered_by_stem, has_channels_last
from fastanc.models.taps import Tapped, logits_of

_IMAGES = 2


class _Call(NamedTuple):
    """What a layer as wide as the logits read, and the noise that took the place of what it gave."""

    module: nn.Module
    read: Tensor
    noise: Tensor


class _Pass(NamedTuple):
    logits: Tensor
    given_dim: int | None
    """Width of the features that the network itself gives beside the logits."""
    calls: dict[str, _Call]
    """By name, in the order in which they were made; of several calls of one layer the last."""
    stages: dict[str, object]


def checked(tapped: Tapped, *, usual_px: int | None = None) -> Tapped:
    """Return `tapped` with the head and the stage maps that a pass of two images shows it to have.

    In that pass every layer as wide as the logits gives noise of its own: the head is the one whose noise comes
    out. So two averaged heads, a head under a ReLU, and auxiliary ones are told apart, whatever the weights
    (many untrained heads are all zero). Where there is no such layer the network has no features, and `no_head`
    says why. Modes, statistics, gradients and random numbers stay as they are; on the meta device, which has
    no values, the last layer that fits is taken for the head.

    Args:
        tapped: is changed in place.
        usual_px: a size that the network takes for certain, for the message.

    Raises:
        ValueError: the network cannot read its images or gives no logits, a head that was named does not give
            them, or a stage is no map [B, C, H, W].
    """
    with _undisturbed(tapped, _place(tapped)[0]):
        probed = _run(tapped, usual_px)
        _check_head(tapped, probed)
    _check_stages(tapped, probed)
    return tapped


def can_read(network: nn.Module, in_channels: int, image_px: int) -> bool:
    """Return whether a bare network takes images [B, C, H, W] of this size."""
    device, dtype = _place(network)
    with _undisturbed(network, device):
        try:
            network(_Noise()((_IMAGES, in_channels, image_px, image_px)).to(device, dtype))
        except Exception:  # whatever a network says to a size that it does not know
            return False
    return True


def answers_of(tapped: Tapped) -> list[int]:
    """Return eight small numbers that tell what a network answers to a fixed image, for its identity in a cache.

    Weights alone do not: a user's class may be edited, or hold a number that counts. Logits are summed with fixed
    signs and rounded coarsely, so that another order of summation gives the same (nearly always; else rows are
    computed again).
    """
    noise, px = _Noise(), tapped.image_px
    place = tapped.scale.device
    with _undisturbed(tapped, place):
        images = (noise((1, tapped.in_channels, px, px)) * 32 + 128).clamp(0, 255).to(torch.uint8)
        out = tapped(images.to(place))
        logits = (
            (out.features if tapped.headless and out.features is not None else out.logits)[0].double().cpu()
        )
    if not logits.isfinite().all():
        raise ValueError(
            "the teacher's logits are not finite on a picture of noise: its weights hold NaN or infinite values, or"
            " negative variances; give a sound file by teacher.weights"
        )
    signs = noise((len(logits), 8)).sign().double()
    sums = logits @ signs / logits.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return [int(value) for value in (16 * sums).round()]


@contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a network into evaluation mode for a while, and everything back."""
    modes = [(module, module.training) for module in network.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        network.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _place(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros((), device="cpu"))
    return weight.device, weight.dtype


class _Noise:
    """Normal numbers on the CPU, other ones at every call, the same in every process."""

    def __init__(self) -> None:
        self.generator = torch.Generator("cpu").manual_seed(0)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device="cpu")


def _run(tapped: Tapped, usual_px: int | None) -> _Pass:
    noise, calls = _Noise(), dict[str, _Call]()
    stages: dict[str, object] = dict.fromkeys(tapped.stage_names)
    hooks = [
        module.register_forward_hook(partial(_replace, noise, calls, name, tapped.num_classes))
        for name, module in tapped.bare.named_modules()
        if may_be_head(module)
    ]
    for name in tapped.stage_names:
        if (first := entered_by_stem(tapped.bare, name)) is not None:
            hooks.append(first.register_forward_pre_hook(partial(_note_entering, stages, name)))
        else:
            hooks.append(tapped.bare.get_submodule(name).register_forward_hook(partial(_note, stages, name)))
    px = tapped.image_px
    images = (noise((_IMAGES, tapped.in_channels, px, px)).to(tapped.scale.device) * 32 + 128).clamp(0, 255)
    try:
        output = tapped.bare(tapped.normalise(images.to(torch.uint8)))
        logits = features_in(output) if tapped.headless else logits_of(output)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        size = f"a size that it takes, e.g. {usual_px}" if usual_px not in (None, px) else "another size"
        raise ValueError(
            f"{tapped.title} cannot read images of {px} x {px} with {tapped.in_channels} channels ({reason}):"
            f" set data.image_px to {size}, or take another network"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if tapped.headless:
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
            given = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(
                f"{tapped.title} gives {given} for two images and no features [2, D]: take a network that gives one"
                " vector an image"
            )
        return _Pass(logits[:, :0], logits.shape[1], {}, stages)
    wanted = (_IMAGES, tapped.num_classes)
    if not isinstance(logits, Tensor) or logits.shape != wanted:
        given = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(
            f"{tapped.title} gives {given} for two images and no logits {list(wanted)}: take a classifier of"
            f" {tapped.num_classes} classes"
        )
    beside = output.features if isinstance(output, Outputs) else None
    return _Pass(logits, None if beside is None else beside.shape[1], calls, stages)


def _replace(
    noise: _Noise,
    calls: dict[str, _Call],
    name: str,
    classes: int,
    module: nn.Module,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor | None:
    """Give noise in the place of the output of a layer as wide as the logits."""
    if not args or output.dim() < 2 or output.shape[1 if isinstance(module, nn.Conv2d) else -1] != classes:
        return None
    calls.pop(name, None)
    calls[name] = _Call(module, args[0], noise(output.shape).to(output))
    return calls[name].noise.clone()  # a ReLU may write into what it gets


def _note_entering(stages: dict[str, object], name: str, module: nn.Module, args: tuple[object, ...]) -> None:
    stages[name] = args[0]


def _note(stages: dict[str, object], name: str, module: nn.Module, args: object, output: object) -> None:
    stages[name] = output


def _check_head(tapped: Tapped, probed: _Pass) -> None:
    head = next((name for name in reversed(probed.calls) if _makes_logits(name, probed)), None)
    if not tapped.head_given:
        tapped.tap_head(head, "" if head else _why_none(probed, tapped.num_classes))
        tapped.given_dim = None if head else probed.given_dim
    elif head != tapped.head_name and not probed.logits.is_meta:
        hint = (
            f"name {head}, or none" if head else f"name none, since {_why_none(probed, tapped.num_classes)}"
        )
        raise ValueError(
            f"head {tapped.head_name!r} of {tapped.title} does not give its logits from its features: {hint}"
        )


def _makes_logits(name: str, probed: _Pass) -> bool:
    """Return whether a layer's noise came out as the logits, and the layer is the linear map that it should be."""
    module, read, noise = probed.calls[name]
    if pooled(module, noise).shape != probed.logits.shape:
        return False
    if probed.logits.is_meta:
        return True
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    inputs = _Noise()(read.shape).to(weight)
    mapped = F.linear(pooled(module, inputs), weight.flatten(1), bias)  # type: ignore[arg-type]
    return _equal(pooled(module, noise), probed.logits) and _equal(pooled(module, module(inputs)), mapped)


def _equal(one: Tensor, two: Tensor) -> bool:
    # A GPU may multiply in TF32, which has ten bits.
    tolerance = max(1e-2 if one.is_cuda else 1e-4, 8 * torch.finfo(two.dtype).eps)
    return bool((one - two).abs().max() <= tolerance * two.abs().max())


def _why_none(probed: _Pass, classes: int) -> str:
    if not classes:
        return "it knows no classes"
    if not probed.calls:
        return f"no linear layer of {classes} outputs is run"
    *rest, last = list(probed.calls)[-4:]
    named = f"{', '.join(rest)} and {last} are" if rest else f"{last} is"
    return f"its logits are more than one linear layer's output ({named} {classes} wide)"


def _check_stages(tapped: Tapped, probed: _Pass) -> None:
    channels_last = set()
    for name, output in probed.stages.items():
        try:
            if has_channels_last(tapped.bare, output):
                channels_last.add(name)
        except ValueError as reason:
            raise ValueError(
                f"stage {name!r} of {tapped.title} {reason}, and no map [B, C, H, W]: name modules that give maps"
                " in student.stages and teacher.stages, or take a method that reads none, e.g. kd or anc"
            ) from None
    tapped.maps_channels_last = frozenset(channels_last)
