"""A game small enough to check by hand: float64 networks of a few hundred weights, played as in train.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.methods.base import Method, TeacherSpec
from fastanc.methods.ksanc import SqueezeConfig
from fastanc.models.ksanc_teacher import KsancTeacher
from fastanc.models.taps import Tapped
from fastanc.optimizers import OptimizerConfig
from fastanc.training.players import Players, frozen_of
from fastanc.training.step import Move, moves

NUM_CLASSES, BATCH, PX, LATENT_DIM = 5, 6, 8, 7
MEAN, STD = (0.5, 0.25, 0.5), (0.25, 0.5, 0.125)  # exact in fp32, in which a network keeps them
SGD = OptimizerConfig(lr=0.02, momentum=0.9, weight_decay=2e-4)
OPTIONS = {"datafree": {"latent_dim": LATENT_DIM}}


class TinyNet(nn.Module):
    """Two stages, a pooled feature, a head."""

    def __init__(self, *channels: int):
        super().__init__()
        first, second = channels
        self.layer1 = nn.Sequential(nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(first, second, 3, 2, 1), nn.BatchNorm2d(second), nn.ReLU())
        self.fc = nn.Linear(second, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


@contextmanager
def same_weights_everywhere() -> Iterator[None]:
    """Let fp32 `uniform_`, which layers are initialised by, give the same bits on every CPU.

    It is u * (high - low) + low for a u that is the same everywhere; PyTorch rounds that once where the CPU has FMA
    and twice where not, and a golden loss sees the difference. Here it is rounded once, from float64.
    """

    def uniform_(tensor: Tensor, low: float = 0, high: float = 1, generator: torch.Generator | None = None):
        low, high = torch.tensor([low, high]).unbind()
        u = torch.rand(tensor.shape, generator=generator).double()
        return tensor.copy_(u * (high - low).double() + low.double())

    torch.Tensor.uniform_ = uniform_  # over the base class's
    try:
        yield
    finally:
        del torch.Tensor.uniform_


def tapped(*channels: int, seed: int) -> Tapped:
    """Return a float64 network with all its taps."""
    torch.manual_seed(seed)
    with same_weights_everywhere():
        network = TinyNet(*channels)
    return Tapped(network, stages="auto", mean=MEAN, std=STD, image_px=PX, name="tiny").double()


class Game:
    """A method between a teacher and a student, and the batches of a few steps."""

    def __init__(self, method: Method, teacher: Sequence[int] = (6, 9), student: Sequence[int] = (3, 4)):
        self.teacher = tapped(*teacher, seed=1).eval().requires_grad_(False)
        torch.manual_seed(2)
        squeeze = getattr(method, "squeeze", SqueezeConfig())
        with same_weights_everywhere():
            self.squeezed = KsancTeacher(copy.deepcopy(self.teacher), **asdict(squeeze)).double().squeezed
        self.method = method
        self.spec = TeacherSpec(NUM_CLASSES, teacher[-1], self.teacher.stage_channels(), self.teacher)
        self.student = tapped(*student, seed=3)
        torch.manual_seed(4)
        with same_weights_everywhere():
            networks = {name: net.double() for name, net in method.networks(self.student, self.spec).items()}
        self.start = copy.deepcopy(networks)
        self.players = Players(
            Accelerator(cpu=True),
            networks,
            {"student": SGD, **method.optimizers()},
            frozen=frozen_of(method, self.spec),
            constant_rates=method.constant_rates,
        )

    def batch(self, step: int) -> Batch:
        """Return the images of a step with what the method needs, and nothing else."""
        torch.manual_seed(1000 + step)
        images = torch.rand(BATCH, 3, PX, PX, dtype=torch.float64)
        latents = torch.randn(BATCH, LATENT_DIM, dtype=torch.float64)
        labels = torch.randint(NUM_CLASSES, (BATCH,))
        needs = self.method.needs
        where = np.arange(BATCH)
        return Batch(
            images=latents if "latents" in needs else images,
            index=where,
            view=where,
            labels=labels if needs & {"labels", "soft_labels"} else None,
            step=step,
            target=self.answer(images),
        )

    @torch.no_grad()
    def answer(self, images: Tensor) -> Outputs | None:
        """Return the teacher's outputs that the method needs; the logits come with any of them."""
        needs = self.method.needs
        if not needs & {"logits", "features", "stages", "descriptors"}:
            return None
        out = self.squeezed(images)
        return Outputs(
            out.logits,
            out.features if "features" in needs else None,
            out.stages if "stages" in needs else None,
            out.descriptors if "descriptors" in needs else None,
        )

    def step(self, step: int) -> list[dict[str, Tensor]]:
        """Make one step as train.py does and return the terms of every play."""
        results = [move.played for move in self.moves(self.batch(step))]
        return [{k: v.detach() for k, v in {**r.terms, **r.measures}.items()} for r in results]

    def moves(self, batch: Batch) -> Iterator[Move]:
        """Make the moves of a step one by one."""
        torch.manual_seed(batch.step)
        return moves(self.method, self.players, batch)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of every weight and buffer of every player."""
        return {
            f"{name}.{key}": value.clone()
            for name, net in self.players.modules().items()
            for key, value in net.state_dict().items()
        }


def make_game(name: str, **options: object) -> Game:
    """Return the game of a method by its name, with its defaults but for the options."""
    method = Method.get_choice_class(name)(**{**OPTIONS.get(name, {}), **options})
    same = name in ("fsp", "ksanc_teacher")
    return Game(method, student=(6, 9) if same else (3, 4))
