"""A game small enough to check by hand: float64 networks of a few hundred weights, played as in train.py."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.methods.base import Method, MethodConfig, Play, Played, TeacherSpec
from fastanc.methods.ksanc import SqueezeConfig
from fastanc.models.ksanc_teacher import KsancTeacher
from fastanc.models.taps import Tapped
from fastanc.optimizers import OptimizerConfig
from fastanc.training.players import Players

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


def tapped(*channels: int, seed: int) -> Tapped:
    """Return a float64 network with all its taps."""
    torch.manual_seed(seed)
    return Tapped(TinyNet(*channels), stages="auto", mean=MEAN, std=STD, image_px=PX, name="tiny").double()


class Game:
    """A method between a teacher and a student, and the batches of a few steps."""

    def __init__(
        self, config: MethodConfig, teacher: Sequence[int] = (6, 9), student: Sequence[int] = (3, 4)
    ):
        self.teacher = tapped(*teacher, seed=1).eval().requires_grad_(False)
        torch.manual_seed(2)
        squeeze = getattr(config, "squeeze", SqueezeConfig())
        self.squeezed = KsancTeacher(copy.deepcopy(self.teacher), **asdict(squeeze)).double().squeezed
        self.method: Method = config.build(
            TeacherSpec(NUM_CLASSES, teacher[-1], self.teacher.stage_channels(), self.teacher)
        )
        self.student = tapped(*student, seed=3)
        torch.manual_seed(4)
        networks = {name: net.double() for name, net in self.method.networks(self.student).items()}
        self.start = copy.deepcopy(networks)
        self.players = Players(Accelerator(cpu=True), networks, {"student": SGD, **self.method.optimizers()})

    def batch(self, step: int) -> Batch:
        """Return the images of a step with what the method needs, and nothing else."""
        torch.manual_seed(1000 + step)
        images = torch.rand(BATCH, 3, PX, PX, dtype=torch.float64)
        latents = torch.randn(BATCH, LATENT_DIM, dtype=torch.float64)
        labels = torch.randint(NUM_CLASSES, (BATCH,))
        needs = self.method.needs
        where = np.arange(BATCH)
        return Batch(
            images=latents if "network" in needs else images,
            index=where,
            view=where,
            labels=labels if "labels" in needs else None,
            step=step,
            target=self.answer(images),
        )

    @torch.no_grad()
    def answer(self, images: Tensor) -> Outputs | None:
        """Return the teacher's outputs that the method needs; the logits come with any of them."""
        needs = self.method.needs
        if not needs - {"labels", "network"}:
            return None
        out = self.squeezed(images)
        return Outputs(
            out.logits,
            out.features if "features" in needs else None,
            out.stages if "stages" in needs else None,
            out.descriptors if "descriptors" in needs else None,
        )

    def step(self, step: int) -> list[dict[str, Tensor]]:
        """Play one step as train.py does and return the terms of every play."""
        batch = self.batch(step)
        out = self.forward(batch)
        moves = [play for play in self.method.plays for _ in range(play.repeats)]
        results = [self.move(play, batch, out) for play in moves]
        return [{k: v.detach() for k, v in {**r.terms, **r.measures}.items()} for r in results]

    def forward(self, batch: Batch) -> Outputs | None:
        """Seed the step and run the student's one pass."""
        torch.manual_seed(batch.step)
        with self.players.turn("student") as nets:
            return self.method.forward(nets, batch)

    def move(self, play: Play, batch: Batch, out: Outputs | None) -> Played:
        """Make one play."""
        with self.players.turn(play.player) as nets:
            played = play.loss(nets, batch, out)
            self.players.update(play.player, played.terms)
            return played

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of every weight and buffer of every player."""
        return {
            f"{name}.{key}": value.clone()
            for name, net in self.players.modules().items()
            for key, value in net.state_dict().items()
        }


def make_game(name: str, **options: object) -> Game:
    """Return the game of a method by its name, with its defaults but for the options."""
    config = MethodConfig.get_choice_class(name)(**{**OPTIONS.get(name, {}), **options})
    same = name in ("fsp", "ksanc_teacher")
    return Game(config, student=(6, 9) if same else (3, 4))
