"""A network with its normalisation and its taps, without editing the network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastanc.batch import Outputs
from fastanc.models.headless import features_in
from fastanc.models.heads import as_linear, last_linear, may_be_head, pooled, width
from fastanc.models.stages import entered_by_stem, stages_of


class _Frames:
    """The tensors of the passes that are under way, innermost last; shared by a network's hooks.

    An object, since torch.export puts copies in the place of a module's plain lists.
    """

    def __init__(self) -> None:
        self.open: list[dict[str, Tensor]] = []


def _keep_input(frames: _Frames, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    if frames.open:
        frames.open[-1]["features"] = pooled(module, args[0])


def _keep_output(frames: _Frames, name: str, module: nn.Module, args: object, output: Tensor) -> None:
    if frames.open:
        frames.open[-1][name] = output


def _keep_entering(frames: _Frames, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    if frames.open:
        frames.open[-1][name] = args[0]


def logits_of(output: Any) -> Tensor:
    """Return the logits of a network's output: itself, its `logits`, or its first part.

    torchvision's Inceptions add auxiliary ones while they train; transformers' networks give objects.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    # Whatever else it is, whoever probes the network says that it is no logits.
    return output[0] if isinstance(output, (tuple, list)) and output else output


class Wrapper(nn.Module):
    """A module around one network, which it holds under the name in `holds`.

    Until the name said what it is, every wrapper's was `network`: state dicts from then load as well.
    """

    holds: ClassVar[str] = "student"
    student: Any

    def changed(self, out: Outputs) -> Outputs:
        """Return what the wrapper makes of the outputs of the network in it."""
        raise TypeError(f"{type(self).__name__} must define changed(), or forward")

    def forward(self, images: Tensor) -> Outputs:
        """Return the network's outputs, changed."""
        out: Outputs = self.student(images)
        return self.changed(out)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        old, new = f"{prefix}network.", f"{prefix}{self.holds}."
        for key in [key for key in state_dict if key.startswith(old)]:
            state_dict[new + key.removeprefix(old)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Tapped(Wrapper):
    """A network that normalises its own input and says what it computed: images -> Outputs.

    `head` names the linear layer whose input are the features; by default it is the last nn.Linear. Without one
    as wide as the logits the features are None. `stages` names the modules whose outputs are the stage maps;
    "auto" takes the family's own; `stem`, where no module is called so, is what enters the first of these.
    `mean` and `std` are per channel on the 0..1 scale. The state dict is the
    bare network's with every key under `bare.`. Raises ValueError when a name fits no module.
    A `headless` network gives features [B, D] alone, and logits [B, 0].
    What is built here is taken at its word: `probe.checked` runs it and finds the head that it really has.
    """

    holds = "bare"
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        head: str | None = None,
        stages: Sequence[str] | str = (),
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int | None = None,
        name: str = "",
        in_channels: int = 3,
        image_px: int = 32,
        headless: bool = False,
    ) -> None:
        super().__init__()
        self.bare, self.headless = network, headless
        self.name, self.in_channels, self.image_px = name, in_channels, image_px
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        # Whoever builds it by name says where they are from, and what its library publishes.
        self.normalised_by, self.published_by = "the caller", ""
        self.weights_from, self.licence = "", ""
        self.new_head, self.kwargs = False, dict[str, Any]()
        self.published: tuple[Sequence[float], Sequence[float]] = (), ()
        self.stage_names = stages_of(network) if stages == "auto" else _as_names(stages)
        self.maps_channels_last: frozenset[str] = frozenset()
        self.head_given, self.head_name, self.no_head = bool(head), head or last_linear(network), ""
        # The width of features that a network without a head gives beside its logits, as Outputs: a probe finds it.
        self.given_dim: int | None = None
        if num_classes is None:
            if self.head is None:
                raise ValueError(f"{self.title} has no linear head: say its num_classes")
            num_classes = self.head.out_features
        elif headless or (head is None and self.head is not None and self.head.out_features != num_classes):
            self.head_name = None
        self.num_classes = num_classes
        scale = 1 / torch.tensor(self.std, dtype=torch.float64)
        shift = -torch.tensor(self.mean, dtype=torch.float64) * scale
        self.register_buffer("scale", scale.float().view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(-1, 1, 1), persistent=False)
        self._frames = _Frames()
        self._head_hook: RemovableHandle | None = None
        self.tap_head(self.head_name)
        for stage in self.stage_names:
            if (first := entered_by_stem(network, stage)) is not None:
                first.register_forward_pre_hook(partial(_keep_entering, self._frames, stage))
            else:
                self._module(stage).register_forward_hook(partial(_keep_output, self._frames, stage))

    def tap_head(self, name: str | None, why_none: str = "") -> None:
        """Read the features at the layer `name` from now on; without one, `why_none` is the reason."""
        if self._head_hook is not None:
            self._head_hook.remove()
        self.head_name, self.no_head, self._head_hook = name, why_none, None
        if (head := self._head) is not None:
            self._head_hook = head.register_forward_pre_hook(partial(_keep_input, self._frames))

    @property
    def _head(self) -> nn.Module | None:
        if self.head_name is None:
            return None
        head = self._module(self.head_name)
        if not may_be_head(head):
            raise ValueError(
                f"head {self.head_name!r} of {self.title} is no nn.Linear and no 1 x 1 convolution:"
                " name one, or none"
            )
        return head

    @property
    def head(self) -> nn.Linear | None:
        """The linear map [K, D] that makes the logits of the features, or None; `no_head` may say why."""
        head = self._head
        return None if head is None else as_linear(head)

    @property
    def feature_dim(self) -> int | None:
        """D; None without a head, unless the network gives features by itself."""
        head = self._head
        return self.given_dim if head is None else width(head)

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or type(self.bare).__name__

    def _module(self, name: str) -> nn.Module:
        try:
            return self.bare.get_submodule(name)
        except AttributeError:
            names = ", ".join(name for name, _ in self.bare.named_children())
            raise ValueError(f"{self.title} has no module {name!r} to tap: its parts are {names}") from None

    def normalise(self, images: Tensor) -> Tensor:
        """Return (x - mean) / std of uint8 images (0..255) or float ones (0..1), in their memory format.

        Raises TypeError for other whole numbers, whose range nothing says.
        """
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images are uint8 (0..255) or floats (0..1), not {images.dtype}: convert them")
        if getattr(self.bare, "normalises", False):
            return images
        if images.dtype == torch.uint8:
            return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale / 255)
        return torch.addcmul(self.shift, images, self.scale)

    def forward(self, images: Tensor) -> Outputs:
        """Return logits [B, K], features [B, D] and the stage maps asked for, of images [B, C, H, W]."""
        # A stack, so that a pass inside a pass keeps its own tensors and a recomputation outside leaves none.
        frame: dict[str, Tensor] = {}
        self._frames.open.append(frame)
        try:
            output = self.bare(self.normalise(images))
        finally:
            self._frames.open.pop()
        if self.headless:
            features = features_in(output)
            output = features[:, :0]
        else:
            features = output.features if isinstance(output, Outputs) else frame.get("features")
        maps = tuple(
            frame[name].permute(0, 3, 1, 2) if name in self.maps_channels_last else frame[name]
            for name in self.stage_names
        )
        return Outputs(logits_of(output), features, maps if self.stage_names else None)

    @torch.no_grad()
    def stage_channels(self, image_px: int | None = None, in_channels: int | None = None) -> tuple[int, ...]:
        """Return C_i of every stage map, from a dry run without memory or arithmetic."""
        twin = copy.deepcopy(self).to("meta").eval()
        px, channels = image_px or self.image_px, in_channels or self.in_channels
        stages = twin(torch.empty(1, channels, px, px, device="meta")).stages
        return () if stages is None else tuple(stage.shape[1] for stage in stages)


def _as_names(stages: Sequence[str] | str) -> tuple[str, ...]:
    return (stages,) if isinstance(stages, str) else tuple(stages)


def per_channel(what: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a mean or std with a value for each channel, of which one may stand for all.

    Raises ValueError for any other number of values, which calls them `what`.
    """
    if len(values) not in (1, channels):
        counts = "1 value" if channels == 1 else f"1 or {channels} values"
        raise ValueError(
            f"{what} is {tuple(values)}, but the images have {channels} channel{'s'[: channels > 1]}: give {counts}"
        )
    return tuple(values) * channels if len(values) == 1 else tuple(values)


def unwrapped(student: nn.Module) -> Tapped:
    """Return the tapped network inside what a method has put around it; each layer calls it `.student`."""
    while not isinstance(student, Tapped):
        inner = student.student
        assert isinstance(inner, nn.Module)
        student = inner
    return student


def changed_by(player: nn.Module, out: Outputs) -> Outputs:
    """Return what a student's wrappers, from the innermost on, make of the tapped network's outputs."""
    if isinstance(player, Tapped):
        return out
    assert isinstance(player, Wrapper)
    return player.changed(changed_by(player.student, out))


class Adapted(Wrapper):
    """A tapped student whose features pass a linear map to the teacher's width: images -> Outputs.

    The logits do not depend on the map, so `.student` is what is evaluated and exported.
    Raises ValueError when the student has no features.
    """

    def __init__(self, student: Tapped, feature_dim: int) -> None:
        super().__init__()
        if student.feature_dim is None:
            why = student.no_head or "name its head"
            raise ValueError(f"{student.name} has no linear head, so no features to adapt: {why}")
        self.student = student
        self.adapter = nn.Linear(student.feature_dim, feature_dim)
        self.feature_dim = feature_dim
        self.num_classes, self.stage_names = student.num_classes, student.stage_names
        self.name, self.in_channels, self.image_px = student.name, student.in_channels, student.image_px
        self.mean, self.std = student.mean, student.std

    @property
    def head(self) -> nn.Linear | None:
        """The student's last linear layer; it reads the features before the map."""
        return self.student.head

    def stage_channels(self, image_px: int | None = None, in_channels: int | None = None) -> tuple[int, ...]:
        """Return C_i of every stage map of the student."""
        return self.student.stage_channels(image_px, in_channels)

    def changed(self, out: Outputs) -> Outputs:
        """Return the student's outputs with features [B, D of the teacher]."""
        return out._replace(features=self.adapter(out.features))


def untap(network: nn.Module) -> None:
    """Take the taps out of a bare network again."""
    for module in network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "func", None) in (_keep_input, _keep_output, _keep_entering):
                    del hooks[key]
