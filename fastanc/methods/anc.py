"""Adversarial network compression (Belagiannis, Farshad, Galasso 2018): a game on features, no labels.

Per step: the discriminator learns to tell the teacher's features (1) from the student's (0), held back by a
regulariser; then the student fools it with dropped features while it matches the teacher's logits (eq. 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastanc.batch import Batch, Outputs
from fastanc.fields import BelowOne, Count, OneOf, Range, Text, Weight
from fastanc.later import F, Tensor, nn, torch
from fastanc.losses import judgement_measures, squared_error, weight_penalty
from fastanc.losses_of_games import (
    as_odds,
    on_student,
    on_teacher,
    refuse_idle_knobs,
    relative_distance,
    to_fool,
)
from fastanc.methods.base import (
    WON,
    Method,
    Nets,
    Play,
    Played,
    Reduction,
    TeacherSpec,
    Watch,
    bare,
    own_optimizer,
    seen,
    sides,
    width_of,
)
from fastanc.optimizers import OptimizerConfig

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped

FewTimes = Annotated[int, Range(1, 64)]

IDLE = Watch(
    "d_adversarial",
    0.98,
    "the game is idle: the discriminator took the adversarial sample for the teacher's ({mean:.3f}) over {windows}"
    " windows, so the student's adversarial term has nothing left to teach; in anc set method.regulariser_sample"
    " to clean",
)


@Method.register_subclass("anc")
@dataclass(frozen=True, kw_only=True)
class Anc(Method):
    """Two players; the discriminator moves first (paper, section 3.5).

    The paper's main results are the defaults: features, dropout, adversarial samples, lambda 1. Departs from it:
    each of the two plays draws its own dropout mask (same distribution, no state kept); an adapter on the
    student's side where the feature widths differ (the paper's are equal). The knobs after the discriminator's
    optimizer are no part of the paper; docs/game.md says what they are to find out.
    """

    on: Annotated[str, OneOf(("features", "logits", "both"))] = "features"
    """What the discriminator sees: features (the input of the last linear layer), logits, or both side by side."""
    dropout: BelowOne = 0.5
    """Probability of dropping an entry of the adversarial sample, and of nothing else; 0 switches it off."""
    regulariser: Annotated[str, OneOf(("none", "l1", "l2", "adversarial"))] = "adversarial"
    """What holds the discriminator back: none, l1 (eq. 6), l2 (eq. 5) or adversarial samples (eq. 7)."""
    regulariser_sample: Annotated[str, OneOf(("dropped", "clean"))] = "dropped"
    """Adversarial samples that the discriminator is shown as the teacher's: dropped (paper) or clean."""
    mu: Weight = 0.99
    """Factor of the l1 or l2 penalty; with penalty_reduction sum the paper's 0.99 switches the game off."""
    penalty_reduction: Reduction = "sum"
    """sum or mean over the discriminator's weights and biases in the l1 or l2 penalty."""
    lambda_data: Weight = 1.0
    """Factor of the squared error on the logits (lambda of eq. 4)."""
    data_reduction: Reduction = "sum"
    """sum: over classes (eq. 3); mean: K times smaller."""
    data: Annotated[str, OneOf(("logits", "features"))] = "logits"
    """What the squared error is of: logits (eq. 3), or features, for a teacher without classes."""
    saturating: bool = False
    """Student minimises log(1 - D), eq. 4 to the letter, in place of the inverted label of section 3.5."""
    discriminator: Text = "128-256-128"
    """Layout of the discriminator's hidden layers (Table 1 of the paper)."""
    discriminator_optimizer: OptimizerConfig | None = None
    """The discriminator's optimizer; none takes the student's. Set one field and the rest are OptimizerConfig's."""

    game_loss: Annotated[str, OneOf(("bce", "hinge", "least_squares"))] = "bce"
    """bce (eq. 2), hinge (Lim & Ye 2017; SNGAN, Miyato et al. 2018) or least_squares (LSGAN, Mao et al. 2017)."""
    game_weight: Weight = 1.0
    """Factor of the student's term of the game; 0 leaves l2, with a discriminator that only watches."""
    game_share: BelowOne = 0.0
    """Share of the student's gradient norm, at its features, that the game has beside the squared error: a running
    weight (VQGAN, Esser et al. 2021, eq. 7, is the share 1/2) in the place of game_weight; 0: off."""
    game_start: Count = 0
    """Step before which the student's term of the game is off (VQGAN's disc_start); the discriminator learns."""
    standardise: Annotated[str, OneOf(("none", "batch", "teacher"))] = "none"
    """What the discriminator sees has mean 0 and deviation 1: over teacher and student of a pass (BatchNorm without
    weights, as CAN's first layer), or by the teacher's running moments."""
    condition: Annotated[str, OneOf(("none", "softmax", "class"))] = "none"
    """What of the teacher the discriminator is told beside each sample: nothing, its softmax, or its first guess."""
    conditioned_by: Annotated[str, OneOf(("projection", "concatenation"))] = "projection"
    """How: projection (Miyato & Koyama 2018) or concatenation (Mirza & Osindero 2014)."""
    spectral_norm: bool = False
    """Divide every layer of the discriminator by its largest singular value (SNGAN)."""
    gradient_penalty: Weight = 0.0
    """gamma of half the squared norm of the discriminator's gradient at its samples (R1, Mescheder et al. 2018)."""
    penalty_at: Annotated[str, OneOf(("teacher", "between"))] = "teacher"
    """Those samples: the teacher's (R1), or points between teacher and student (Thanh-Tung et al. 2019)."""
    label_smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.0
    """The teacher's target is 1 less this; one-sided (Salimans et al. 2016)."""
    noise: Weight = 0.0
    """Deviation of Gaussian noise on all that the discriminator sees, in deviations of the teacher's (instance noise,
    Sonderby et al. 2017); to have it in the place of dropout set dropout to 0."""
    noise_steps: Count = 0
    """The discriminator's moves over which the noise falls to nothing; 0: it stays."""
    replay: Count = 0
    """Earlier samples of the teacher that are remembered; each move shows as many of them as the batch has beside it
    (after Shrivastava et al. 2017). Each process remembers its own."""
    discriminators: FewTimes = 1
    """Discriminators of this layout: each learns as if alone, the student sees the mean of their losses (GMAN,
    Durugkar et al. 2017)."""
    discriminator_steps: FewTimes = 1
    """Moves of the discriminator before each of the student, on the same batch (k of Goodfellow et al. 2014)."""
    discriminator_schedule: Annotated[str, OneOf(("run", "constant"))] = "run"
    """Whether the discriminator's rate follows the run's schedule or stays."""
    health: bool = False
    """Log how hard game and squared error pull at the student, and at every evaluation how well the discriminator
    tells held-out views and how far apart the two distributions are; always with game_share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_idle_knobs(self)

    @property
    def needs(self) -> frozenset[str]:
        """What the squared error is of, and what the discriminator sees and is told."""
        shown = {"features", "logits"} if self.on == "both" else {self.on}
        return frozenset({self.data, *shown} | ({"logits"} if self.condition != "none" else set()))

    @property
    def plays(self) -> tuple[Play, ...]:
        """Discriminator, then student."""
        first = Play("discriminator", self.discriminator_play, derives=self.gradient_penalty > 0)
        return *[first] * self.discriminator_steps, Play("student", self.student_play, self.examines)

    @property
    def watches(self) -> tuple[Watch, ...]:
        """Either side of the game may fall asleep; the student's shows in a probability alone."""
        return (WON, IDLE) if self.game_loss == "bce" else (WON,)

    @property
    def constant_rates(self) -> frozenset[str]:
        """The discriminator, where it has a schedule of its own."""
        return frozenset({"discriminator"} if self.discriminator_schedule == "constant" else ())

    @property
    def examines(self) -> bool:
        """Whether the game's health is measured."""
        return self.health or self.game_share > 0

    @property
    def is_judged(self) -> bool:
        """Whether the discriminator needs more around it than its layers."""
        knobs = (self.examines, self.gradient_penalty, self.spectral_norm, self.noise, self.replay)
        around = (self.standardise, self.condition) != ("none", "none")
        return around or any(knobs) or self.discriminators > 1

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return student (with an adapter where the widths differ) and discriminator."""
        from fastanc.models.discriminators import discriminator
        from fastanc.models.judges import Judge
        from fastanc.models.taps import Adapted

        width = teacher.num_classes if self.on == "logits" else teacher.feature_dim
        if width is None:
            raise ValueError("the teacher has no last linear layer to tap: set method.on to logits")
        width += teacher.num_classes if self.on == "both" else 0
        target = width_of(teacher, "anc") if "features" in self.needs else None
        unequal = target is not None and student.feature_dim != target
        player = Adapted(student, target) if unequal and target is not None else student
        if self.examines and self.data == "logits" and self.on != "logits" and student.head is None:
            raise ValueError(
                f"method.game_share and method.health compare gradients at the student's features, and {student.name}"
                " has no last linear layer: set method.on to logits"
            )
        if not self.is_judged:
            return {"student": player, "discriminator": discriminator(self.discriminator, width)}
        judge = Judge(
            lambda in_dim: discriminator(self.discriminator, in_dim),
            width,
            copies=self.discriminators,
            standardise=self.standardise,
            classes=teacher.num_classes if self.condition != "none" else 0,
            conditioned_by=self.conditioned_by,
            spectral=self.spectral_norm,
            noise=self.noise,
            noise_steps=self.noise_steps,
            replay=self.replay,
        )
        return {"student": player, "discriminator": judge}

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Return the discriminator's optimizer unless it is the student's."""
        return own_optimizer("discriminator", self.discriminator_optimizer)

    def remember(self, nets: Nets, batch: Batch, out: Outputs) -> None:
        """Put the teacher's samples into the discriminator's memory, with what it is told of them."""
        if self.replay:
            teacher, _ = sides(batch, out)
            told = self.condition_of(teacher)
            shown = self.sample(teacher)
            _judge(nets).replay.push(shown if told is None else torch.cat([shown, told], dim=1))

    def ramp(self, term: str, step: int) -> float:
        """Return 0 for the student's term of the game before its start, else 1."""
        return float(term != "fool" or step >= self.game_start)

    def settle(self, nets: Nets, state: Mapping[str, Tensor]) -> None:
        """Keep the teacher's moments and the two pulls beside the discriminator."""
        _judge(nets).settle(state)

    def discriminator_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise BCE(D(t), 1) + BCE(D(s), 0) + R(D)."""
        teacher, student = sides(batch, out)
        judge, told = _judge(nets), self.condition_of(teacher)
        t, s = self.sample(teacher), self.sample(student).detach()
        samples = [t, s]
        if self.regulariser == "adversarial":
            samples.append(self.adversarial(s) if self.regulariser_sample == "dropped" else s)
        conditions = [told] * len(samples)
        if self.replay:
            both = judge.replay.drawn(t if told is None else torch.cat([t, told], dim=1))
            samples.append(both[:, : t.shape[1]])
            conditions.append(None if told is None else both[:, t.shape[1] :])
        on_t, on_s, *others = _judged(judge, samples, conditions)
        ours = torch.cat([on_t, others.pop()]) if self.replay else on_t
        # The sum over several discriminators, so that each has the gradient that it would have alone.
        n = self.discriminators
        terms = {
            "discriminate": n
            * (on_teacher(self.game_loss, ours, self.label_smoothing) + on_student(self.game_loss, on_s))
        }
        if self.regulariser == "adversarial":
            terms["regularise"] = n * on_teacher(self.game_loss, others[0])
        elif self.regulariser != "none":
            power = 1 if self.regulariser == "l1" else 2
            terms["regularise"] = self.mu * weight_penalty(judge.parameters(), power, self.penalty_reduction)
        if self.gradient_penalty:
            terms["penalty"] = (
                n * self.gradient_penalty * judge.slope(t, s if self.penalty_at == "between" else None, told)
            )
        measures = judgement_measures(as_odds(self.game_loss, on_t), as_odds(self.game_loss, on_s))
        return Played(terms, measures, judge.seen(t) if self.is_judged else {})

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise BCE(D(drop(s)), 1) + lambda ||z_t - z_s||^2."""
        from fastanc.models.pulls import apart

        teacher, student = sides(batch, out)
        student = apart(student) if self.examines else student
        judge, told = _judge(nets), self.condition_of(teacher)
        samples = [self.adversarial(self.sample(student))]
        if self.standardise == "batch":  # of both sides, or the mean would tell nothing of the student's
            samples.insert(0, self.sample(teacher))
        on_adversarial = _judged(judge, samples, [told] * len(samples))[-1]
        s, t = (seen(side, self.data) for side in (student, teacher))
        fool = to_fool(self.game_loss, on_adversarial, self.saturating)
        data = self.lambda_data * squared_error(s, t, self.data_reduction)
        weight = self.weight(judge)
        odds = as_odds(self.game_loss, on_adversarial)
        played = Played(
            {"fool": weight * fool, "data": data}, {"d_adversarial": odds.detach().sigmoid().mean()}
        )
        return self.weighed(played, fool, weight, student, bare(nets["student"])) if self.examines else played

    def weighed(
        self, played: Played, fool: Tensor, weight: Tensor | float, out: Outputs, student: nn.Module
    ) -> Played:
        """Return what the student's play gave, with how hard its two terms pull."""
        from fastanc.models.pulls import pulls

        at_logits = self.on == self.data == "logits"
        norms = pulls([fool, played.terms["data"]], out, student, at_logits=at_logits)
        measures = {"pull_game": weight * norms[0], "pull_data": norms[1]}
        return Played(played.terms, played.measures | measures, {"pulls": norms})

    def weight(self, judge: Any) -> Tensor | float:
        """Return the factor of the student's term of the game."""
        return judge.balance.factor(self.game_share) if self.game_share else self.game_weight

    def examined(self, nets: Nets, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Return how well the discriminator tells held-out views, how far apart they are, and the game's pull."""
        judge, told = _judge(nets), self.condition_of(teacher)
        t, s = self.sample(teacher), self.sample(student)
        on_t, on_s = (as_odds(self.game_loss, on) for on in _judged(judge, [t, s], [told] * 2))
        held = {f"held_{key}": value for key, value in judgement_measures(on_t, on_s).items()}
        share = judge.balance.share(self.weight(judge))
        return held | {"distance": relative_distance(s, t), "pull_share": share}

    def sample(self, outputs: Outputs) -> Tensor:
        """Return what the discriminator sees of a network, [B, W]."""
        if self.on == "both":
            return torch.cat([seen(outputs, "features"), seen(outputs, "logits")], dim=1)
        return seen(outputs, self.on)

    def condition_of(self, teacher: Outputs) -> Tensor | None:
        """Return what the discriminator is told beside each sample, [B, K]."""
        if self.condition == "none":
            return None
        logits = seen(teacher, "logits")
        if self.condition == "softmax":
            return logits.softmax(1)
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)  # one_hot waits

    def adversarial(self, sample: Tensor) -> Tensor:
        """Return the adversarial sample: dropout is the generator's noise."""
        return F.dropout(sample, self.dropout)


def _judge(nets: Nets) -> Any:
    """Return the discriminator: its layers, or a `Judge` around them."""
    return nets["discriminator"]


def _judged(
    judge: nn.Module, samples: Sequence[Tensor], conditions: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Return a discriminator's outputs of several samples, from one joint pass."""
    told = [one for one in conditions if one is not None]
    judged = judge(torch.cat(list(samples)), torch.cat(told)) if told else judge(torch.cat(list(samples)))
    return judged.chunk(len(samples))
