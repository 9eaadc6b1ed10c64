"""A student's weights as torchvision or timm lay them out: they are read without fastanc."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fastanc.files import write_text
from fastanc.jobs.classifier import Classifier
from fastanc.models.names import TIMM, TORCHVISION
from fastanc.models.taps import Tapped, logits_of
from fastanc.models.weights import write_safetensors


class Native(NamedTuple):
    """The call by which a library makes the network that a student's weights fit into."""

    library: str
    name: str
    arguments: dict[str, Any]

    @property
    def call(self) -> str:
        """The call as it is written in Python."""
        words = "".join(f", {key}={value!r}" for key, value in self.arguments.items())
        make = "timm.create_model" if self.library == TIMM else "torchvision.models.get_model"
        return f'{make}("{self.name}"{words})'


@torch.no_grad()
def native_of(student: Tapped, classifier: Classifier, images: torch.Tensor) -> Native | None:
    """Return how the student's library makes it, tried on some images [B, C, S, S]; None where none does."""
    library, _, rest = student.name.partition(":")
    if library not in (TORCHVISION, TIMM):
        return None
    state = classifier.bare.state_dict()
    normalised, expected = torch.addcmul(classifier.shift, images, classifier.scale), classifier(images)
    for arguments in _arguments(library, student):
        found = Native(library, rest.partition("@")[0], arguments)
        try:
            with torch.random.fork_rng(devices=[]):
                network = _made(found).eval()
            network.load_state_dict(state)
            logits = logits_of(network(normalised))
        except Exception:  # another family's argument, or another layout
            continue
        if logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-4, atol=1e-4):
            return found
    return None


def _arguments(library: str, student: Tapped) -> Iterator[dict[str, Any]]:
    """What a library may have been asked for: as `models.libraries` asks, plainly first."""
    px = student.image_px
    if library == TIMM:
        own = {"num_classes": student.num_classes, "in_chans": student.in_channels, **student.kwargs}
        yield from ({**own, **size} for size in ({}, {"img_size": px}))
        return
    sizes: tuple[dict[str, Any], ...] = ({}, {"image_size": px}, {"input_size": (px, px)})
    # Published weights of the Inceptions come with the first, and without what only trains them.
    others: tuple[dict[str, Any], ...] = ({}, {"transform_input": True})
    helps: tuple[dict[str, Any], ...] = ({}, {"aux_logits": False})
    for size, other, help_ in itertools.product(sizes, others, helps):
        yield {"num_classes": student.num_classes, **student.kwargs, **size, **other, **help_}


def _made(native: Native) -> nn.Module:
    if native.library == TIMM:
        import timm

        network: nn.Module = timm.create_model(native.name, pretrained=False, **native.arguments)
        return network
    import torchvision

    made: nn.Module = torchvision.models.get_model(native.name, weights=None, **native.arguments)
    return made


def write_native(classifier: Classifier, path: Path) -> None:
    """Write the weights under the library's own keys, as the hub's readers want them."""
    state = {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in classifier.bare.state_dict().items()
    }
    write_safetensors(path, state, {"format": "pt"})


def write_timm_config(native: Native, says: Mapping[str, Any], labels: list[str], path: Path) -> None:
    """Write the config.json by which timm makes a network of a folder, or of a repository of the hub."""
    side = says["image_px"]
    views = {
        "num_classes": says["classes"],
        "input_size": [len(says["mean"]), side, side],
        "interpolation": says["interpolation"],
        "crop_pct": side / says["resize_px"],
        "crop_mode": "center",
        "mean": says["mean"],
        "std": says["std"],
        **({"label_names": labels} if labels else {}),
    }
    arguments = {k: v for k, v in native.arguments.items() if k not in ("num_classes", "in_chans")}
    config = {
        "architecture": native.name.partition(".")[0],
        "num_classes": says["classes"],
        "pretrained_cfg": views,
        **({"model_args": arguments} if arguments else {}),
    }
    write_text(path, json.dumps(config, indent=1))
