"""Several methods at once, such as ANC's game beside DKD: one student, the weighted sum of their losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Weight
from fastanc.later import Tensor, nn
from fastanc.methods.base import Method, Nets, Play, Played, TeacherSpec, Watch, bare
from fastanc.optimizers import OptimizerConfig

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("sum")
@dataclass(frozen=True, kw_only=True)
class Sum(Method):
    """The other players of every part move first, then the student, by the sum of all its parts' terms.

    Every part sees the student with its own adapter. The names of players, terms and measures begin with the part's:
    anc_discriminator, anc_fool; a method that is there twice is counted: dkd, dkd2.
    """

    parts: tuple[Method, ...] = ("anc", "dkd")  # type: ignore[assignment]  # names, until they are read
    """The methods, each by its name or as {type: name, field: value}, in brackets: [anc, {type: dkd, beta: 2}]."""
    weights: tuple[Weight, ...] = ()
    """Factor of every part's terms in the student's loss; none given: 1 each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise ValueError("method.parts is empty: name the methods to sum, such as [anc, dkd]")
        if self.weights and len(self.weights) != len(self.parts):
            raise ValueError(
                f"method.weights are {len(self.weights)} and method.parts {len(self.parts)}: give one for each"
            )
        for part in self.parts:
            own = [
                getattr(type(part), name) is getattr(Method, name)
                for name in ("forward", "validated", "save")
            ]
            if not all(own) or "network" in part.needs or isinstance(part, Sum):
                raise ValueError(
                    f"method.parts: {part.kind} cannot be a part, it has a pass of its own: leave it out"
                )

    @property
    def named(self) -> dict[str, Method]:
        """The parts by the names that stand before those of their players and terms."""
        seen: Counter[str] = Counter()
        found = {}
        for part in self.parts:
            seen[part.kind] += 1
            found[part.kind + (str(seen[part.kind]) if seen[part.kind] > 1 else "")] = part
        return found

    @property
    def needs(self) -> frozenset[str]:
        """What any part reads."""
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def softened_at(self) -> tuple[float, ...] | None:
        """Every part's; None where one that has a teacher reads more."""
        found: tuple[float, ...] = ()
        for part in self.parts:
            if part.needs_teacher:
                if part.softened_at is None:
                    return None
                found += part.softened_at
        return found

    @property
    def plays(self) -> tuple[Play, ...]:
        """The other players' plays, part by part, then the student's."""
        others = [
            Play(f"{name}_{play.player}", _Inner(name, number, play), play.derives)
            for number, (name, part) in enumerate(self.named.items())
            for play in part.plays
            if play.player != "student"
        ]
        derives = any(play.derives for part in self.parts for play in part.plays if play.player == "student")
        return *others, Play("student", self.student_play, derives)

    @property
    def watches(self) -> tuple[Watch, ...]:
        """Every part's, of its own columns."""
        return tuple(
            watch._replace(column=f"{name}_{watch.column}")
            for name, part in self.named.items()
            for watch in part.watches
        )

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student in what every part puts around it, and every part's other players."""
        from fastanc.models.connectors import Shared

        made = {name: part.networks(student, teacher) for name, part in self.named.items()}
        others = {
            f"{name}_{p}": net for name, nets in made.items() for p, net in nets.items() if p != "student"
        }
        return {"student": Shared(student, [nets["student"] for nets in made.values()]), **others}

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Return every part's own."""
        return {
            f"{name}_{player}": config
            for name, part in self.named.items()
            for player, config in part.optimizers().items()
        }

    def remember(self, nets: Nets, batch: Batch, out: Outputs) -> None:
        """Let every part remember."""
        for number, (name, part) in enumerate(self.named.items()):
            inner = _nets_of(name, number, nets)
            part.remember(inner, batch, bare(nets["student"]).seen_by(number, out))

    def settle(self, nets: Nets, state: Mapping[str, Tensor]) -> None:
        """Let every part settle what its own plays returned."""
        for number, (name, part) in enumerate(self.named.items()):
            if own := {
                key.removeprefix(f"{name}_"): v for key, v in state.items() if self._part_of(key) == name
            }:
                part.settle(_nets_of(name, number, nets), own)

    @property
    def constant_rates(self) -> frozenset[str]:
        """Every part's."""
        return frozenset(
            f"{name}_{player}" for name, part in self.named.items() for player in part.constant_rates
        )

    @property
    def examines(self) -> bool:
        """Whether any part has something to say of held-out views."""
        return any(part.examines for part in self.parts)

    def examined(self, nets: Nets, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Return what every part says."""
        return {
            f"{name}_{key}": value
            for number, (name, part) in enumerate(self.named.items())
            for key, value in part.examined(
                _nets_of(name, number, nets), bare(nets["student"]).seen_by(number, student), teacher
            ).items()
        }

    def _part_of(self, key: str) -> str:
        """Return the name of the part whose term, or state, has this key."""
        return max((name for name in self.named if key.startswith(f"{name}_")), key=len)

    def ramp(self, term: str, step: int) -> float:
        """Return what the term's part says."""
        name = self._part_of(term)
        return self.named[name].ramp(term.removeprefix(f"{name}_"), step)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise all parts' terms, weighted."""
        terms: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for number, (name, part) in enumerate(self.named.items()):
            (play,) = (play for play in part.plays if play.player == "student")
            played = _Inner(name, number, play)(nets, batch, out)
            weight = self.weights[number] if self.weights else 1.0
            terms |= {key: weight * term for key, term in played.terms.items()}
            measures |= played.measures
            state |= played.state
        return Played(terms, measures, state)


@dataclass(frozen=True)
class _Inner:
    """A part's play as it is called from outside: with all players, and terms under the part's name."""

    name: str
    number: int
    play: Play

    def __call__(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        assert out is not None
        inner = _nets_of(self.name, self.number, nets)
        played = self.play.loss(inner, batch, bare(nets["student"]).seen_by(self.number, out))
        return Played(*({f"{self.name}_{key}": value for key, value in values.items()} for values in played))


def _nets_of(name: str, number: int, nets: Nets) -> Nets:
    own = {key.removeprefix(f"{name}_"): net for key, net in nets.items() if key.startswith(f"{name}_")}
    return {**own, "student": bare(nets["student"]).players[number]}
