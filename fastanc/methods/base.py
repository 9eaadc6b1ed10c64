"""What a method is: one frozen dataclass with its knobs, what it reads, its players and their plays."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import draccus
from draccus.parsers.encoding import encode_choice

from fastanc.batch import Batch, Outputs
from fastanc.fields import Count, Fields, OneOf, make
from fastanc.later import Tensor, torch
from fastanc.losses import fp32
from fastanc.optimizers import OptimizerConfig
from fastanc.plain_yaml import Tree, placed
from fastanc.quoting import shown

if TYPE_CHECKING:
    from torch import nn

    from fastanc.models.attention import Squeezed
    from fastanc.models.taps import Tapped

Nets: TypeAlias = "Mapping[str, nn.Module]"
"""Every player's network by name; beside them "teacher", frozen, for a method that needs the network."""

Reduction = Annotated[str, OneOf(("sum", "mean"))]
"""Over the classes of the logits; the mean over the batch comes after it."""

OF_TEACHER = frozenset({"logits", "features", "stages", "descriptors", "network"})
OF_BATCH = frozenset({"labels", "soft_labels", "latents"})
OF_STUDENT = frozenset({"student_stages"})


class Played(NamedTuple):
    """The result of one play."""

    terms: dict[str, Tensor]
    """Weighted scalars; their sum is the player's loss. A term's key is its column in metrics.jsonl."""
    measures: dict[str, Tensor] = {}
    """Detached scalars that are only logged."""
    state: dict[str, Tensor] = {}
    """Detached tensors whose means over all processes go to `Method.settle` after the move."""


class Play(NamedTuple):
    """One player's move: the loss that it minimises."""

    player: str
    loss: Callable[[Nets, Batch, Outputs | None], Played]
    derives: bool = False
    """Whether it asks for gradients itself: no compiler follows it there."""


class Watch(NamedTuple):
    """A sentence that is due once, when a logged column stays above a bound."""

    column: str
    bound: float
    sentence: str
    """Filled in by `format` with `mean`, the column's, and `windows`, for how many windows of the log."""


WON = Watch(
    "won",
    0.98,
    "the discriminator has won: it told teacher and student apart in {mean:.1%} of the cases over {windows}"
    " windows, so the student learns little from it; lower its learning rate, regularise it more, or give the"
    " adversarial term less weight",
)
"""For methods whose discriminator's play returns `losses.judgement_measures`."""


@dataclass(frozen=True)
class TeacherSpec:
    """What a method may know of the teacher before the first batch."""

    num_classes: int
    feature_dim: int | None = None
    """D of the features; None where the teacher has no linear head."""
    stage_channels: tuple[int, ...] = ()
    """C_i of every stage map."""
    network: Tapped | Squeezed | None = None
    """The frozen teacher itself; None when its outputs come from the cache alone."""


def check_needs(method: Method) -> None:
    """Raise ValueError naming what a method says it needs and nothing can give."""
    known = OF_TEACHER | OF_BATCH | OF_STUDENT
    if not isinstance(method.needs, frozenset) or (method.needs - known):
        raise ValueError(
            f"{type(method).__name__}.needs is {method.needs!r}: write a frozenset of {', '.join(sorted(known))}"
        )


def spec_of(teacher: Tapped | Squeezed) -> TeacherSpec:
    """Return what a method may know of this network."""
    channels = teacher.stage_channels() if teacher.stage_names else ()
    return TeacherSpec(teacher.num_classes, teacher.feature_dim, channels, teacher)


@dataclass(frozen=True, kw_only=True)
class Method(Fields, draccus.PluginRegistry, discover_packages_path="fastanc.methods"):
    """A compression method: its fields are its knobs, and everything that a trainer prepares follows from `needs`.

    A subclass registers its name (`@Method.register_subclass("mine")`), says what it `needs`, and defines
    `student_play`, or, with more players, `networks` and `plays`. The trainer freezes every player but the one on
    turn, so a loss may pass through any network of the game. An instance holds knobs and no state. A `__post_init__`
    of its own begins with `super().__post_init__()`, which holds every knob to its type.
    """

    group = "method"

    @classmethod
    def chosen(cls, value: Any, name: str) -> Method:
        """Return the method of `{type: NAME, field: value}` or of a bare NAME; ValueError calls it `name`."""
        tree = {"type": value} if isinstance(value, str) else value
        known, kind = cls.get_known_choices(), tree.get("type")
        if not isinstance(kind, str) or kind not in known:
            close = difflib.get_close_matches(str(kind), sorted(known), 1)
            hint = f"did you mean {close[0]}? " if close else ""
            with placed(tree, "type"):
                raise ValueError(
                    f"{name}.type {shown(kind)} is unknown: {hint}use one of {', '.join(sorted(known))}"
                )
        knobs = (tree if isinstance(tree, Tree) else Tree(tree)).without("type")
        return make(known[kind], knobs, f"{name}.")

    @property
    def kind(self) -> str:
        """The registered name, as in `--method.type NAME`."""
        return self.get_choice_name(type(self))

    @property
    def needs(self) -> frozenset[str]:
        """What is read, and so what a trainer has to prepare; a plain class attribute will do.

        Of the teacher: logits, features, stages, descriptors (KSANC's), network (with gradient to its input, as
        `nets["teacher"]`). Of the batch: labels (one true class each, [B] int64); soft_labels (the same, or shares of
        classes [B, K] where pictures are mixed or labels smoothed: for what goes into a cross entropy and nowhere
        else); latents (vectors [B, latent_dim] in the place of images, for which it has a field `latent_dim`).
        Of the student: student_stages; stages and descriptors tap both.
        """
        return frozenset()

    @property
    def needs_teacher(self) -> bool:
        """Whether a run of this method has a teacher at all."""
        return bool(self.needs & OF_TEACHER)

    @property
    def softened_at(self) -> tuple[float, ...] | None:
        """The temperatures by which the teacher's classes are softened; None where anything else of it is read."""
        return None

    @property
    def reads_labels(self) -> bool:
        """Whether the labels of the training images are read."""
        return bool(self.needs & {"labels", "soft_labels"})

    @property
    def softens_only(self) -> bool:
        """Whether softened classes are all that is read of the teacher: then its most probable ones may do."""
        return self.softened_at is not None and self.needs & OF_TEACHER <= {"logits"}

    @property
    def taps_student(self) -> bool:
        """Whether the student's stage maps are read."""
        return bool(self.needs & {"stages", "descriptors", "student_stages"})

    @property
    def taps_teacher(self) -> bool:
        """Whether the teacher's stage maps are read."""
        return bool(self.needs & {"stages", "descriptors"})

    @property
    def plays(self) -> tuple[Play, ...]:
        """The plays of a step, in order."""
        return (Play("student", self.student_play),)

    @property
    def watches(self) -> tuple[Watch, ...]:
        """What is worth a sentence while a run of this method goes on."""
        return ()

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return every player by name; "student" may carry an adapter. ValueError where the two do not fit."""
        return {"student": student}

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Return the optimizers of the players that do not take the student's."""
        return {}

    def forward(self, nets: Nets, batch: Batch) -> Outputs | None:
        """Run the student once; every play of the step reads this result."""
        out = nets["student"](batch.images)
        if torch.is_grad_enabled():  # in parts, a further pass for another player's play is without
            self.remember(nets, batch, out)
        return out

    def remember(self, nets: Nets, batch: Batch, out: Outputs) -> None:
        """Put what later steps read into buffers of a player; once for every image, and never in a play.

        A play is called again where its spellings are compared. Nothing here waits for another process.
        """

    def settle(self, nets: Nets, state: Mapping[str, Tensor]) -> None:
        """Put what a play returned as its `state` into buffers of a player: the same values on every process.

        Called once for every move that a player has made, and never while spellings of a play are compared.
        """

    def ramp(self, term: str, step: int) -> float:
        """Return what the trainer multiplies a term of the student's play with at a step.

        A play that asks for `batch.step` itself is compiled anew for every number.
        """
        return 1.0

    @property
    def constant_rates(self) -> frozenset[str]:
        """The players whose learning rate the run's schedule leaves as it is."""
        return frozenset()

    @property
    def examines(self) -> bool:
        """Whether `examined` has something to say; then every evaluation asks the teacher."""
        return False

    def examined(self, nets: Nets, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Return scalars that say how a game stands on held-out views; every network is in eval mode meanwhile.

        Args:
            nets: every player.
            student: outputs of the student's player, adapter included, on up to 2,048 validation images.
            teacher: its outputs on the same.
        """
        return {}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Return the student's terms."""
        raise TypeError(f"{type(self).__name__} must define student_play(), or plays")

    def validated(self, student: Tapped, player: nn.Module) -> nn.Module:
        """Return what is evaluated: the student, without what the game has put around it."""
        return student

    def save(self, nets: Nets, folder: Path) -> None:
        """Write into a finished run's folder what the method leaves beside the student."""


@draccus.encode.register(Method, include_subclasses=True)
def _encoded(method: Method, declared_type: Any = None) -> dict[str, Any]:
    """Return a method as plain values with its type, also where it is one of several in a field."""
    return encode_choice(method, Method)


@dataclass(frozen=True, kw_only=True)
class Warming(Method):
    """A method whose distillation may begin softly, as DKD's and its successors'."""

    warmup_steps: Count = 0
    """Steps over which all terms but the labels' grow linearly from 0 to their weight; 0: there from the start."""

    def ramp(self, term: str, step: int) -> float:
        """Return min(step / warmup_steps, 1), and 1 for the labels' term."""
        return 1.0 if term == "labels" or step >= self.warmup_steps else step / self.warmup_steps


def in_phase(first: bool, step: int, first_steps: int) -> float:
    """Return 1 or 0, whether a term acts at a step, of a method whose first phase is so long; without one all do."""
    return 1.0 if first_steps == 0 or first == (step < first_steps) else 0.0


def bare(network: nn.Module) -> Any:
    """Return a player's own module, whatever it is wrapped in while it is on turn."""
    return getattr(network, "module", network)


def sides(batch: Batch, out: Outputs | None) -> tuple[Outputs, Outputs]:
    """Return the teacher's and the student's outputs of this step."""
    assert batch.target is not None
    assert out is not None
    return batch.target, out


def seen(outputs: Outputs, on: str) -> Tensor:
    """Return what a discriminator sees of a network, fp32: its "features" [B, D] or its "logits" [B, K]."""
    values = outputs.features if on == "features" else outputs.logits
    assert values is not None
    return fp32(values)


def paired_stages(student: Tapped, teacher: TeacherSpec) -> tuple[int, ...]:
    """Return the student's stage channels; ValueError unless both networks have equally many stages."""
    own = student.stage_channels() if student.stage_names else ()
    if not own or len(own) != len(teacher.stage_channels):
        raise ValueError(
            f"this method pairs stage maps, but the student has {len(own)} and the teacher"
            f" {len(teacher.stage_channels)}: name equally many in student.stages and teacher.stages"
        )
    return own


def features_of(outputs: Outputs) -> Tensor:
    """Return a network's features [B, D], fp32."""
    return seen(outputs, "features")


def width_of(teacher: TeacherSpec, kind: str) -> int:
    """Return D of the teacher's features; ValueError where it has none."""
    if teacher.feature_dim is None:
        raise ValueError(f"{kind} reads features, and the teacher has no last linear layer: set teacher.head")
    return teacher.feature_dim


def own_optimizer(player: str, config: OptimizerConfig | None) -> dict[str, OptimizerConfig]:
    """Return what `Method.optimizers` says of a player whose optimizer may be left to the student's."""
    return {} if config is None else {player: config}


def task_needs(alpha: float) -> frozenset[str]:
    """Return what `losses.kd_terms` needs at this weight."""
    return frozenset({"logits"} if alpha > 0 else ()) | frozenset({"soft_labels"} if alpha < 1 else ())
