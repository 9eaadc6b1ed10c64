"""The teacher's network and how it is run: everything that its outputs, and so a cache of them, depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fastanc.cache.identity import identity
from fastanc.cache.rows import Field
from fastanc.cache.top import TOP
from fastanc.methods.base import TeacherSpec, spec_of
from fastanc.models.attention import Squeezed
from fastanc.models.taps import Tapped, unwrapped
from fastanc.models.weights import head_digest, weights_digest
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.viewing import Views
from fastanc.teacher.online import Online, Played

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class FrozenTeacher:
    """A teacher that no longer learns."""

    network: Tapped | Squeezed
    """In eval mode, without gradients to its weights."""
    name: str
    precision: str = "fp32"
    """Arithmetic of its pass: fp32, or autocast to bf16 or fp16."""
    folded: bool = False
    """Whether BatchNorm was folded into the convolutions."""
    members: Sequence[Mapping[str, Any]] = ()
    """Name, digest and builder's arguments of each network of an ensemble, in their order."""
    average: str = "logits"
    """What an ensemble has the mean of."""
    kwargs: Mapping[str, Any] | None = None
    """Arguments of its builder."""
    answers: Sequence[int] | None = None
    """`probe.answers_of` a user's own class, whose code its weights do not tell."""

    @property
    def spec(self) -> TeacherSpec:
        """What a method may know of it."""
        return spec_of(self.network)

    @property
    def plain(self) -> FrozenTeacher:
        """The same teacher without KSANC's estimators."""
        if not isinstance(self.network, Squeezed):
            return self
        return replace(self, network=unwrapped(self.network))

    @property
    def played(self) -> nn.Module:
        """What a method passes its own images through, in the arithmetic of the rows."""
        autocast = AUTOCAST[self.precision]
        return self.network if autocast is None else Played(self.network, autocast)

    def online(self, device: torch.device) -> Online:
        """Return what runs it on every batch, on this device."""
        self.network.to(device)
        return Online(self.network, AUTOCAST[self.precision])

    def fields(self, rows: str, align: int = 1) -> list[Field]:
        """Return a cache's columns: features, logits where no head makes them of these, descriptors where there are.

        `rows` is their type (fp16, fp32, uint8, or of logits alone one of `top.TOP`), `align` the bytes at whose
        multiples they begin. ValueError where there are no more classes than a row would keep.
        """
        if rows in TOP:
            return [Field("logits", self.network.num_classes, rows, align)]
        fields = []
        if self.network.feature_dim is not None:
            fields.append(Field("features", self.network.feature_dim, rows, align))
        if self.network.head is None and self.network.num_classes:
            fields.append(Field("logits", self.network.num_classes, rows, align))
        if isinstance(self.network, Squeezed):
            fields.append(Field("descriptors", self.network.estimators.descriptor_dim, rows, align))
        return fields

    def identity(self, dataset: DataSet, views: Views, name: str) -> dict[str, Any]:
        """Return everything that its rows on these views of a set, called `name`, depend on."""
        return identity(
            dataset={"name": name, **dataset.describe()},
            rule=views.describe(),
            checks=views.checks(dataset.sizes(np.arange(dataset.num_images))),
            teacher=self._facts(),
        )

    @property
    def digest(self) -> str:
        """What tells this teacher from others, in a few letters."""
        answers = "" if self.answers is None else "".join(f"{value:+d}" for value in self.answers)
        return weights_digest(unwrapped(self.network))[:16] + answers

    def _facts(self) -> Mapping[str, Any]:
        bare = unwrapped(self.network)
        facts: dict[str, Any] = {
            "name": self.name,
            "weights": weights_digest(bare),
            "precision": self.precision,
            "head": head_digest(bare),
            "folded": self.folded,
        }
        if self.kwargs:
            facts["kwargs"] = dict(self.kwargs)
        if self.members:
            facts |= {"members": list(self.members), "average": self.average}
        if self.answers is not None:
            facts["answers"] = list(self.answers)
        if isinstance(self.network, Squeezed):
            facts["estimators"] = weights_digest(self.network.estimators)
        return facts
