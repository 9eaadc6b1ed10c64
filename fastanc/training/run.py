"""The state of one run around the training loop: its parts, its clock, its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from PIL import Image

from fastanc.batch import Batch, Outputs
from fastanc.errors import Interrupted
from fastanc.methods.base import Play
from fastanc.models import zoo
from fastanc.pipelines.waiting import waited_s
from fastanc.teacher.answers import Answers
from fastanc.teacher.filling import Filling
from fastanc.training.best import Best
from fastanc.training.choices import choose_for_all
from fastanc.training.claim import Claim
from fastanc.training.folder import finish_folder, open_folder, read_summary
from fastanc.training.game import Game
from fastanc.training.inputs import Input
from fastanc.training.interruption import Interruption
from fastanc.training.judging import Judge
from fastanc.training.metrics import Monitor, read_metrics
from fastanc.training.opening import open_monitor, open_trackers
from fastanc.training.settings import Settings
from fastanc.training.spellings import Choice, plain
from fastanc.training.step import Move
from fastanc.training.summary import summary_of
from fastanc.training.trackers import Trackers


class Run:
    """Everything of a run that is not the loop; left behind as a folder."""

    def __init__(
        self,
        source: Input,
        game: Game,
        settings: Settings,
        claim: Claim,
        *,
        began: float,
        val_answers: Callable[[], Answers] | None = None,
        complete_cache: Callable[[Filling], None] | None = None,
        notes: Sequence[str] = (),
    ):
        """Make the folder ready and, where the claim says so, go on from its checkpoint.

        Args:
            source: of the batches.
            game: what is trained.
            settings: how.
            claim: to the folder, and where to go on; released at the end.
            began: `time.perf_counter()` at the start of everything.
            val_answers: opens who answers for the teacher on the validation set; None without a teacher.
            complete_cache: adds what the epochs' dropped remainders left out of a cache that was filled.
            notes: sentences for the log.
        """
        self._began, self._settings, self.pace = began, settings, settings.pace
        self.accelerator = game.accelerator
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.source, self.game = source, game
        self.players, self.method, self.answers = game.players, game.method, game.answers
        self._complete_cache = complete_cache
        self._claim, self.folder, self.checkpoints = claim, claim.folder, claim.checkpoints
        self.seed, self.parts, self.lr_factor = settings.seed, settings.parts, settings.lr_factor
        self._judge = Judge(game, source, val_answers, settings.best)
        self.best: Best | None = None
        if settings.best is not None:
            self.best = Best(settings.best, settings.patience, self.folder, self.accelerator)
        self.interruption = Interruption(self.accelerator)
        self.start = self._resume()
        self._owes_evaluation = self._catch_up()
        self._notes = [*notes, *claim.notes, *self._try_teacher()]
        self.monitor = self._open_folder()
        self._trackers: Trackers | None = None
        if self.is_main and not self.is_finished:
            self._trackers = open_trackers(settings, source, claim, self.monitor, self.start)
        self._choice: Choice | None = None
        self._plays: tuple[Play, ...] = ()
        self._step_s = {"data_s": 0.0, "teacher_s": 0.0}

    def _open_folder(self) -> Monitor:
        settings = self._settings
        self.accelerator.wait_for_everyone()  # every process has read what it goes on from
        if self.is_main:
            open_folder(
                self.folder,
                settings.text,
                start=0 if self._claim.begins else self.start,
                total=self.pace.total_steps,
            )
            if self.best is not None and not self.is_finished:
                self.best.restore()
        self.accelerator.wait_for_everyone()
        monitor = open_monitor(self._settings, self.source, self.game, self.folder, self.pace, self.start)
        for note in self._notes:
            monitor.note(note)
        return monitor

    def _resume(self) -> int:
        if self._claim.path is None:
            return 0
        state, step = self._claim.load(self._settings.origins)
        self.game.load_state(state)
        if self.best is not None and not self._claim.begins:
            self.best.load_state(state.get("best"))
        return step

    def _catch_up(self) -> bool:
        """See to the evaluation that followed the checkpoint: return whether it was never made, else count it."""
        if self._claim.begins or not self.pace.evaluates(self.start):
            return False
        self.game.average_buffers()  # as it did
        found: list[dict[str, Any] | None] = [None]
        if self.is_main and (self.folder / "metrics.jsonl").is_file():
            last = {"kind": "val", "step": self.start - 1}
            lines = read_metrics(self.folder / "metrics.jsonl")
            found = [next((line for line in lines if line.items() >= last.items()), None)]
        broadcast_object_list(found)
        if self.best is not None and found[0] is not None:
            self.best.take(self.start, found[0], self.game.kept)
            if self.best.is_over:
                self.pace = replace(self.pace, total_steps=self.start)
        return found[0] is None

    def _try_teacher(self) -> list[str]:
        """Say how good the teacher is, once, at the start of a run: one that goes on has it in its log."""
        return self._judge.teacher() if self._claim.begins else []

    @property
    def _names(self) -> tuple[str, ...]:
        return () if self._choice is None else self._choice.names

    @property
    def is_finished(self) -> bool:
        """Whether an earlier call did all of it, so that nothing is left to do."""
        done = self.start >= self.pace.total_steps and read_summary(self.folder) is not None
        return done and (self.folder / "student.safetensors").is_file()

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) from where the run starts to where it ends, watching the time spent waiting."""
        if self._owes_evaluation:
            with self.monitor.pause():
                self._validate(self.start)
        batches = self.source.batches(self.start, self.pace.total_steps)
        for step in range(self.start, self.pace.total_steps):
            if step == self.pace.total_steps:  # which patience has brought nearer
                return
            before_s = waited_s()
            batch = next(batches)
            self._step_s["data_s"] = waited_s() - before_s
            assert batch.step == step, (batch.step, step)
            if self._settings.cuda_graphs or "captured" in self._names:
                torch.compiler.cudagraph_mark_step_begin()
            yield step, batch

    def ask_teacher(self, batch: Batch) -> Outputs | None:
        """Return the teacher's outputs on a batch; None where the method has no teacher."""
        if self.answers is None:
            return None
        before_s = waited_s()
        target = self.answers(batch)
        self._step_s["teacher_s"] = waited_s() - before_s
        return target

    def plays(self, batch: Batch) -> tuple[Play, ...]:
        """Return the plays as they are executed; how is chosen on the first batch, or was by a checkpoint."""
        if self._choice is None:
            with self.monitor.pause():
                self._choice = choose_for_all(
                    self.accelerator,
                    self.method,
                    self.players,
                    batch.parts(self.parts)[0],
                    kept=self._claim.kept("kernels", plain(self.method).names),
                    wanted=self._settings.kernels,
                    precision=self._settings.precision,
                    steps_left=self.pace.total_steps - self.start,
                    memory=self._settings.memory,
                )
            with self.players.turn("student") as nets:
                self._plays = self._choice.plays(self.method, nets)
            for note in self._choice.notes:
                self.monitor.note(note)
        return self._plays

    def after(self, step: int, made: Sequence[Move]) -> None:
        """Close a step: log, and at its time evaluate and write a checkpoint; Interrupted when asked to stop.

        Nothing is read from the device but where a line of the log is due.
        """
        if self.game.average is not None:
            self.game.average.update(self.game.student, step)
        terms = {f"{m.player}/{key}": term for m in made for key, term in m.played.terms.items()}
        measures = {key: value for m in made for key, value in m.played.measures.items()}
        lr = self._settings.lr * self.lr_factor(step)
        try:
            self.monitor.step(step, terms, measures, lr=lr, **self._step_s)
        except ValueError as error:  # a term was not finite
            raise ValueError(f"{error}; {self._last_good()}") from error
        done = step + 1
        saves, evaluates = self.pace.saves(done), self.pace.evaluates(done)
        stops = self.interruption.agreed() and done < self.pace.total_steps
        if saves or evaluates or stops:
            with self.monitor.pause():
                if saves or stops:
                    self.save(done)
                if stops:
                    self._stop(done)
                if evaluates:
                    self._validate(done)
                if done == self.pace.total_steps and not saves:
                    self.save(done)

    def _stop(self, done: int) -> None:
        self.checkpoints.wait()
        self.accelerator.wait_for_everyone()  # the launcher kills the others soon after the first has ended
        raise Interrupted(f"interrupted after step {done} of {self.pace.total_steps}, all of it saved")

    def _last_good(self) -> str:
        self.checkpoints.wait()
        present = self.checkpoints.complete()
        return f"the last good checkpoint is {present[-1]}" if present else "there is no checkpoint yet"

    def save(self, done: int) -> None:
        """Write a checkpoint after `done` steps.

        At its time the statistics of BatchNorm are averaged over the processes first; a stop at another time leaves
        each process its own, so that the run goes on as if it had not been stopped.
        """
        if self.pace.saves(done):
            self.game.average_buffers()
        if self.answers is not None:
            self.answers.flush()
            self.accelerator.wait_for_everyone()  # else processes may compute rows that others have just written
        spoiled = self.players.spoiled()
        if spoiled is not None:
            raise ValueError(
                f"the weights of the {spoiled} are not finite after step {done - 1}: lower its learning rate or"
                f" clip its gradients, and resume; {self._last_good()}"
            )
        state = self.game.state()
        if self.best is not None:
            state["best"] = self.best.state()
        if self.is_main:
            meta = {
                "kernels": self._names,
                "order": self.source.order.permutation,
                "lr_factor": self.lr_factor(done - 1),
                "extension": asdict(extension) if (extension := self._claim.extension) else None,
                "config": self._claim.fields,
                "origins": self._settings.origins,
                "world": self.world,
            }
            self.checkpoints.save(done, state, meta)

    def evaluate(self, with_teacher: bool = False) -> dict[str, float]:
        """Evaluate the student on the whole validation set; see `Judge.student`."""
        return self._judge.student(with_teacher)

    def _validate(self, done: int, with_teacher: bool = False) -> dict[str, float]:
        """Evaluate the student, write that down, and see whether it is the best, or the run is over."""
        result = self.evaluate(with_teacher)
        self.monitor.validation(done, result)
        if self.best is not None:
            self.best.take(done, result, self.game.kept)
            if self.best.is_over and done < self.pace.total_steps:
                self.monitor.note(self.best.sentence(done, self.pace.total_steps))
                self.pace = replace(self.pace, total_steps=done)
        return result

    def finish(self) -> Path:
        """Evaluate, write student.safetensors and summary.json, and return the run's folder."""
        if self.world > 1:
            self.players.assert_equal_everywhere()
            self.monitor.note(f"weights agree on all {self.world} processes")
        whole = self.pace.total_steps == self.pace.schedule_steps
        if isinstance(self.answers, Filling) and whole and self._complete_cache is not None:
            self._complete_cache(self.answers)
        result = self._validate(self.pace.total_steps, with_teacher=True)
        if self.is_main:
            zoo.save_weights(self.game.kept, self.folder / "student.safetensors")
            self.method.save(self.players.modules(), self.folder)
            if self._trackers is not None and (samples := self.folder / "samples.png").is_file():
                self._trackers.show("samples", lambda: Image.open(samples), self.pace.total_steps - 1)
            summary = summary_of(
                self._settings, self.game, self.pace, self.best, self._names, result, self.monitor.rates
            )
            wall_s = time.perf_counter() - self._began
            finish_folder(self.folder, {**summary, "wall_s": wall_s}, self.game.classes)
        self.accelerator.wait_for_everyone()
        return self.folder

    def __enter__(self) -> Run:
        self.interruption.listen()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._close(at_once=kind is KeyboardInterrupt)
        finally:
            self._claim.release()

    def _close(self, *, at_once: bool) -> None:
        # At once: nothing waits for a disk: what is half written does not count
        if self.answers is not None and not at_once:
            self.answers.close()
        self.monitor.close()
        if self._trackers is not None and not at_once:
            self._trackers.close()
        if not at_once:
            self.checkpoints.wait()
        self.accelerator.free_memory()
        self.interruption.release()
