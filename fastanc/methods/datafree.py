"""Compression without data (after Jin et al., ICCCS 2021): a generator makes the images.

Teacher and student judge the generator's images; then they are themselves told apart by a fully connected
discriminator. Only the paper's abstract was at hand: this is DAFL + DFAD + ANC composed, and each of the
first two is a setting of the weights (docs/methods.md). `batch.images` are latent vectors [B, Z].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastanc.batch import Batch, Outputs
from fastanc.fields import BelowOne, OneOf, Range, Text, Weight, Width
from fastanc.later import F, Tensor, nn, torch
from fastanc.losses import (
    absolute_error,
    activation,
    as_teacher,
    disagreement,
    discriminator_loss,
    fooling_loss,
    information,
    judgement_measures,
    one_hotness,
    soft_kl,
    squared_error,
)
from fastanc.methods.base import (
    WON,
    Method,
    Nets,
    Play,
    Played,
    TeacherSpec,
    Watch,
    own_optimizer,
    seen,
)
from fastanc.optimizers import Decay, Optimizer, OptimizerConfig, Rate

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped

_SHOWN = 64  # images of the sample sheet


@dataclass(frozen=True, kw_only=True)
class GeneratorOptimizer(OptimizerConfig):
    """DFAD's on CIFAR (DAFL: Adam 0.02, MNIST 0.2); a class, so that setting one field keeps the others."""

    name: Optimizer = "adam"
    """sgd, adam, adamw or lamb."""
    lr: Rate = 1e-3
    """Base learning rate."""
    weight_decay: Decay = 0.0
    """L2 penalty."""


@Method.register_subclass("datafree")
@dataclass(frozen=True, kw_only=True)
class DataFree(Method):
    """Three players: discriminator and student `student_steps` times, then the generator.

    DAFL: student_steps 1, latents batch, distance kl, generator dafl, disagreement and fool 0.

    DFAD: one_hot, information, activation and fool 0.
    """

    student_steps: Annotated[int, Range(1, 1000)] = 5
    """Moves of discriminator and student per move of the generator."""
    latents: Annotated[str, OneOf(("fresh", "batch"))] = "fresh"
    """fresh: every play draws its own latent vectors (DFAD); batch: all plays of a step share them (DAFL)."""
    distance: Annotated[str, OneOf(("l1", "mse", "kl"))] = "l1"
    """What the student minimises on the logits: l1 or mse (means, DFAD's is l1), or kl at T = 1 (DAFL)."""
    one_hot: Weight = 0.05
    """Generator's factor of the cross entropy of the teacher's logits with their own arg max (DAFL)."""
    information: Weight = 5.0
    """Generator's factor of the negative entropy of the batch's mean class (DAFL)."""
    activation: Weight = 0.01
    """Generator's factor of minus the teacher's mean absolute feature (DAFL)."""
    disagreement: Weight = 1.0
    """Generator's factor of minus the mean absolute difference of teacher's and student's logits (DFAD)."""
    student_eval: bool = False
    """Put the student into eval mode while the generator moves (CMI and Fast do, DFAD does not)."""
    fool: Weight = 1.0
    """Student's factor of -log D; 0 leaves the discriminator out of the game."""
    on: Annotated[str, OneOf(("logits", "features"))] = "logits"
    """What the discriminator sees: logits or features."""
    dropout: BelowOne = 0.5
    """Probability of dropping an entry of the adversarial sample, as in anc."""
    regulariser: Annotated[str, OneOf(("none", "adversarial"))] = "adversarial"
    """What holds the discriminator back: none, or adversarial samples as in anc."""
    discriminator: Text = "128-256-128"
    """Layout of the discriminator's hidden layers."""
    discriminator_optimizer: OptimizerConfig | None = None
    """The discriminator's optimizer; none takes the student's. Set one field and the rest are OptimizerConfig's."""
    generator_optimizer: GeneratorOptimizer = GeneratorOptimizer()
    """The generator's optimizer."""
    latent_dim: Width = 256
    """Width of a latent vector (DFAD 256; DAFL 1000)."""
    generator: Annotated[str, OneOf(("dafl", "dfad"))] = "dfad"
    """dafl or dfad: one network, whose inner BatchNorm has the published eps 0.8, or the usual 1e-5."""
    generator_width: Annotated[int, Range(1, 2**10)] = 64
    """Channels of the generator's last map, half of those before it (the papers 64; cost grows with the square)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any((self.one_hot, self.information, self.activation, self.disagreement)):
            raise ValueError("method.one_hot, information, activation and disagreement are all 0: set one")

    needs = frozenset({"network", "latents"})

    @property
    def plays(self) -> tuple[Play, ...]:
        """The matching moves, then the generator's."""
        moves = [Play("student", self.student_play)]
        if self.fool > 0:
            moves.insert(0, Play("discriminator", self.discriminator_play))
        return (*moves * self.student_steps, Play("generator", self.generator_play))

    @property
    def watches(self) -> tuple[Watch, ...]:
        """A discriminator that has won."""
        return (WON,)

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return student (with an adapter where features differ), generator and, if needed, discriminator.

        ValueError without the teacher's network, or its features where they count.
        """
        from fastanc.models.discriminators import discriminator
        from fastanc.models.generators import dafl_generator, dfad_generator
        from fastanc.models.taps import Adapted, Tapped

        t, width = teacher.network, teacher.feature_dim
        if not isinstance(t, Tapped):
            raise ValueError("datafree sends gradients through the teacher: set teacher.cache to off")
        if width is None and (self.activation > 0 or (self.fool > 0 and self.on == "features")):
            raise ValueError(
                "the teacher has no last linear layer to tap: set method.on to logits, method.activation to 0"
            )
        made = dafl_generator if self.generator == "dafl" else dfad_generator
        generator = made(
            self.latent_dim, t.in_channels, t.image_px, mean=t.mean, std=t.std, width=self.generator_width
        )
        nets: dict[str, nn.Module] = {"student": student, "generator": generator}
        if self.fool > 0:
            if self.on == "logits":
                width = teacher.num_classes
            elif student.feature_dim != width:
                assert width is not None
                nets["student"] = Adapted(student, width)
            assert width is not None
            nets["discriminator"] = discriminator(self.discriminator, width)
        return nets

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Return the optimizers of generator and discriminator, the latter unless it is the student's."""
        own = own_optimizer("discriminator", self.discriminator_optimizer)
        return {"generator": self.generator_optimizer, **own}

    def forward(self, nets: Nets, batch: Batch) -> Outputs | None:
        """Nothing: every play makes its own images."""
        return None

    def discriminator_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise BCE(D(h_T), 1) + BCE(D(h_S), 0), and -log D of adversarial samples."""
        with torch.no_grad():
            images = nets["generator"](self._latents(batch))
            t = seen(nets["teacher"](images), self.on)
            s = seen(nets["student"](images), self.on)
        regularised = self.regulariser == "adversarial"
        samples = [t, s, self._adversarial(s)] if regularised else [t, s]
        on_t, on_s, *on_adversarial = nets["discriminator"](torch.cat(samples)).chunk(len(samples))
        terms = {"discriminate": discriminator_loss(on_t, on_s)}
        if regularised:
            terms["regularise"] = as_teacher(on_adversarial[0])
        return Played(terms, judgement_measures(on_t, on_s))

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the distance to the teacher and -eta log D(h_S) on images that are held fixed."""
        with torch.no_grad():
            images = nets["generator"](self._latents(batch))
            teacher = nets["teacher"](images)
        student = nets["student"](images)
        terms = {"data": self._distance(student.logits, teacher.logits)}
        if self.fool > 0:
            judged = nets["discriminator"](self._adversarial(seen(student, self.on)))
            terms["fool"] = self.fool * fooling_loss(judged)
        return Played(terms)

    def generator_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise DAFL's terms on the teacher and DFAD's between teacher and student."""
        images = nets["generator"](self._latents(batch))
        teacher = nets["teacher"](images)
        terms: dict[str, Tensor] = {}
        if self.one_hot > 0:
            terms["one_hot"] = self.one_hot * one_hotness(teacher.logits)
        if self.information > 0:
            terms["information"] = self.information * information(teacher.logits)
        if self.activation > 0:
            assert teacher.features is not None
            terms["activation"] = self.activation * activation(teacher.features)
        if self.disagreement > 0:
            with _eval_mode(nets["student"], self.student_eval):
                student = nets["student"](images)
            terms["disagreement"] = self.disagreement * disagreement(student.logits, teacher.logits)
        return Played(terms)

    def save(self, nets: Nets, folder: Path) -> None:
        """Write samples.png: what the generator makes of latent vectors that are the same in every run."""
        from fastanc.models.generators import save_sheet

        draw = torch.Generator().manual_seed(0)
        latents = torch.randn(_SHOWN, self.latent_dim, generator=draw)
        save_sheet(nets["generator"], latents, folder / "samples.png")

    def _latents(self, batch: Batch) -> Tensor:
        """Return latent vectors [B, Z]: the batch's, or new ones (the step's seed makes them repeatable)."""
        return batch.images if self.latents == "batch" else torch.randn_like(batch.images)

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the student's distance to the teacher, mean over the batch."""
        if self.distance == "kl":
            return soft_kl(student, teacher)
        error = absolute_error if self.distance == "l1" else squared_error
        return error(student, teacher, "mean")

    def _adversarial(self, sample: Tensor) -> Tensor:
        """Return the adversarial sample."""
        return F.dropout(sample, self.dropout)


@contextmanager
def _eval_mode(network: nn.Module, wanted: bool) -> Iterator[None]:
    """Put the network into eval mode for a while, if wanted."""
    before = network.training
    network.train(before and not wanted)
    try:
        yield
    finally:
        network.train(before)
