"""KSANC's teacher: a trained network with attention estimators, how they are trained and kept in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastanc.batch import Outputs
from fastanc.models.attention import Squeezed, estimators_for
from fastanc.models.taps import Tapped
from fastanc.models.weights import fit_weights, read_weights, weights_digest, write_safetensors


class KsancTeacher(nn.Module):
    """The frozen teacher with trainable estimators and a head on their descriptors.

    Its `squeezed` is what a KSANC student's teacher is: the teacher's own logits, and the descriptors.
    `squeeze` are the options of `estimators_for`. Raises ValueError for a network without stages or head.
    """

    def __init__(self, teacher: Tapped, **squeeze: Any):
        super().__init__()
        teacher.requires_grad_(False)
        self.squeezed = Squeezed(teacher, estimators_for(teacher, **squeeze))
        self.head = nn.Linear(self.squeezed.estimators.descriptor_dim, teacher.num_classes)
        self.train(self.training)

    @property
    def student(self) -> Tapped:
        """The frozen teacher, which has the student's place while its estimators are trained."""
        return self.squeezed.student

    def train(self, mode: bool = True) -> KsancTeacher:
        """Set the mode of the estimators; the teacher's BatchNorm stays as it was trained."""
        super().train(mode)
        self.squeezed.student.eval()
        return self

    def forward(self, images: Tensor) -> Outputs:
        """Return the descriptors and the logits that the head reads from them."""
        out = self.squeezed(images)
        return out._replace(logits=self.head(out.descriptors))


def save_estimators(player: KsancTeacher, path: Path) -> None:
    """Write estimators and head, how they squeeze, and the digest of the network that they were trained on."""
    state = {k: v.detach().cpu().contiguous() for k, v in _trained(player).state_dict().items()}
    squeeze = json.dumps(player.squeezed.estimators.options)
    write_safetensors(path, state, {"squeeze": squeeze, "network": weights_digest(player.student)})


def load_estimators(teacher: Tapped, path: str | Path) -> KsancTeacher:
    """Put the estimators of a file on the teacher that they were trained on.

    Raises FileNotFoundError without the file; ValueError when it is of another teacher or no such file.
    """
    state, metadata, *_ = read_weights(path)
    try:
        squeeze = json.loads(metadata["squeeze"])
    except (KeyError, ValueError):
        raise ValueError(
            f"{path} holds no estimators: name the estimators.safetensors of a ksanc_teacher run"
        ) from None
    if metadata.get("network") != weights_digest(teacher):
        raise ValueError(
            f"the estimators in {path} were trained on other weights than this {teacher.name}'s: set"
            " teacher.weights to the student.safetensors beside them (and teacher.fold to false)"
        )
    player = KsancTeacher(teacher, **squeeze)
    fit_weights(_trained(player), state, path)
    return player


def _trained(player: KsancTeacher) -> nn.ModuleDict:
    return nn.ModuleDict({"estimators": player.squeezed.estimators, "head": player.head})
