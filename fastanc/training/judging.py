"""How good the student of a run is, by everything that can be measured of it on the validation set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext

import torch

from fastanc.pipelines.dataset import DataSet
from fastanc.teacher.answers import Answers
from fastanc.training.examining import SAMPLE, examine
from fastanc.training.game import Game
from fastanc.training.inputs import Input
from fastanc.training.neighbours import evaluate_features
from fastanc.training.processes import sum_over
from fastanc.training.validate import evaluate, top1_of

_GREETED = 1000
"""Validation images on which the teacher is tried at the start; the end of the run counts them all."""
_WEAK = 0.1
"""A teacher that is no further than this part of the way from guessing to certainty is doubted."""
_OF_TEACHER = ("agreement_pct", "teacher_kl")


class Judge:
    """Evaluates a run's student, each image once over all processes.

    Args:
        game: whose student it is.
        source: of the validation set.
        val_answers: opens who answers for the teacher on it; None without a teacher.
        best: the number that every evaluation has to have; None asks for none.

    Raises ValueError where `best` cannot be measured.
    """

    def __init__(
        self, game: Game, source: Input, val_answers: Callable[[], Answers] | None, best: str | None = None
    ):
        self._game, self._source, self._val_answers = game, source, val_answers
        self._always = not game.labels_count or best in _OF_TEACHER or game.method.examines
        measured = _measured(game, source.val, val_answers is not None)
        if best is not None and best not in measured:
            raise ValueError(
                f"run.best {best} is not measured on the validation set {source.val.name} of this run: take"
                f" {', '.join(measured)}"
            )

    def student(self, with_teacher: bool = False) -> dict[str, float]:
        """Evaluate the student on the whole validation set, exactly once per image over all processes.

        Without labels of the student's own classes its agreement with the teacher is all that can be said.
        """
        game, source = self._game, self._source
        game.average_buffers()
        wanted = with_teacher or self._always
        teacher = self._val_answers() if wanted and self._val_answers is not None else None
        with nullcontext() if teacher is None else closing(teacher):
            result = self._quality(teacher)
            if teacher is not None and game.method.examines:
                world = game.accelerator.num_processes
                sample = source.val_sample(max(1, min(SAMPLE, source.val.num_images) // world) * world)
                result |= examine(game, sample, teacher)
        return result

    def _quality(self, teacher: Answers | None) -> dict[str, float]:
        game, source = self._game, self._source
        student = game.student
        if student.headless:
            width = game.teacher and game.teacher.network.feature_dim
            return evaluate_features(
                game.method.validated(game.kept, game.players["student"].module),
                source.val_batches(),
                sum_over(game.accelerator),
                num_images=source.val.num_images,
                width=student.feature_dim or 0,
                teacher=teacher,
                teacher_width=width or 0,
                autocast=game.autocast,
            )
        return evaluate(
            game.method.validated(game.kept, game.players["student"].module),
            source.val_batches(),
            sum_over(game.accelerator),
            num_images=source.val.num_images,
            teacher=teacher,
            labels_count=game.labels_count,
            autocast=game.autocast,
        )

    def teacher(self) -> list[str]:
        """Say how good the teacher is where labels tell it: one that reads its images wrongly shows here.

        It draws from no generator of the training.
        """
        if self._val_answers is None or not self._game.labels_count:
            return []
        whole = self._source.val.num_images
        tried = min(_GREETED, whole)
        place = self._game.accelerator.device
        with (
            torch.random.fork_rng([place] if place.type == "cuda" else []),
            closing(self._val_answers()) as teacher,
        ):
            sample = self._source.val_sample(tried)
            top1 = top1_of(teacher, sample, sum_over(self._game.accelerator), place)
        of = f"{tried} of {whole}" if tried < whole else f"all {whole}"
        said = f"the teacher's own top-1 is {100 * top1:.2f} % on {of} validation images"
        chance = 1 / self._source.val.num_classes
        if top1 >= chance + _WEAK * (1 - chance):
            return [said]
        return [
            f"warning: {said}, where guessing has {100 * chance:.3g} %: are teacher.weights its trained ones, are its"
            " classes the set's (teacher.classes), does it read images as it was trained to (teacher.mean,"
            " teacher.std, data.image_px, data.resize_px)?"
        ]


def _measured(game: Game, val: DataSet, has_teacher: bool) -> tuple[str, ...]:
    """Return the numbers that an evaluation with the teacher has and that a student can be better or worse by."""
    if game.student.headless:
        by_neighbours = ("error_pct", "top1") if val.labels is not None else ()
        return (*by_neighbours, *(("agreement_pct",) if has_teacher else ()))
    labelled = ("error_pct", "top1", "top5", "loss") if game.labels_count else ()
    return (*labelled, *(_OF_TEACHER if has_teacher else ()))
