"""The state of one run around the training loop: its parts, its clock, its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from fastanc.batch import Batch, Outputs
from fastanc.errors import Interrupted
from fastanc.models import zoo
from fastanc.models.counting import count
from fastanc.teacher.answers import Answers
from fastanc.teacher.filling import Filling
from fastanc.training import checkpoint
from fastanc.training.checkpoint import Checkpoints
from fastanc.training.folder import Owner, finish_folder, open_folder, read_summary
from fastanc.training.game import Game
from fastanc.training.inputs import Input
from fastanc.training.interruption import Interruption
from fastanc.training.metrics import Monitor
from fastanc.training.processes import mean_over, sum_over
from fastanc.training.step import Move
from fastanc.training.validate import evaluate, top1_of

_GREETED = 1000
"""Validation images on which the teacher is tried at the start; the end of the run counts them all."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a run is, and when what is due; counted in steps that are done."""

    steps_per_epoch: int
    schedule_steps: int
    """Of the whole schedule."""
    total_steps: int
    """After which this run ends."""
    eval_every: int
    """Epochs; 0 is at the end only."""
    checkpoint_every: int
    """Steps; 0 is at the end of every epoch."""

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due: at its time, and at the end, which may come before."""
        return done == self.total_steps or done % (self.checkpoint_every or self.steps_per_epoch) == 0

    def evaluates(self, done: int) -> bool:
        """Whether an evaluation is due; the one at the very end is not meant."""
        epoch, rest = divmod(done, self.steps_per_epoch)
        return rest == 0 and done < self.total_steps and self.eval_every > 0 and epoch % self.eval_every == 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is told, in plain values."""

    folder: Path
    seed: int
    pace: Pace
    lr: float
    """The student's base learning rate."""
    lr_factor: Callable[[int], float]
    """Step -> what every base learning rate is multiplied with."""
    parts: int
    """Into which a process cuts its batch."""
    log_every: int
    skip_nonfinite: int
    keep: int
    """Checkpoints."""
    resume: str
    """never, latest, anew, or a checkpoint's path."""
    cuda_graphs: bool
    teacher_cache: str
    text: str
    """The configuration as a file."""
    fields: Mapping[str, Any]
    """The same as nested dictionaries, which a checkpoint keeps and a resumed run is compared with."""
    defaults: Mapping[str, Mapping[str, Any]]
    """Group -> the default of every field."""
    origins: Mapping[str, str]
    """Digests of what is learnt from: a run that goes on must learn from the same."""
    free: Mapping[str, frozenset[str]]
    """Group -> the fields in which it may differ then."""
    facts: Mapping[str, Any]
    """What summary.json says beside what was measured."""


class Run:
    """Everything of a run that is not the loop; left behind as a folder."""

    def __init__(
        self,
        source: Input,
        game: Game,
        settings: Settings,
        *,
        began: float,
        val_answers: Callable[[], Answers] | None = None,
        complete_cache: Callable[[Filling], None] | None = None,
        notes: Sequence[str] = (),
    ):
        """Open the folder and, where that is wanted, go on from a checkpoint.

        Args:
            source: of the batches.
            game: what is trained.
            settings: how, and where.
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
        self._val_answers, self._complete_cache = val_answers, complete_cache
        self.folder, self.seed, self.parts = settings.folder, settings.seed, settings.parts
        self.lr_factor = settings.lr_factor
        self.interruption = Interruption(self.accelerator)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", settings.keep)
        self._notes = [*notes, *game.notes]
        self._owner = self._own()
        try:
            self.start = self._resume()
            self._notes += self._try_teacher()
            self.monitor = self._open_folder()
        except BaseException:
            self._disown()
            raise
        self._step_s = {"data_s": 0.0, "teacher_s": 0.0}

    def _own(self) -> Owner | None:
        """Make the folder this run's; every process raises what process 0 was refused with."""
        owner: Owner | None = None
        refused: list[Exception | None] = [None]
        if self.is_main:
            try:
                owner = Owner(self.folder)
            except (ValueError, OSError) as error:
                refused = [error]
        broadcast_object_list(refused)
        if refused[0] is not None:
            raise refused[0]
        return owner

    def _disown(self) -> None:
        if self._owner is not None:
            self._owner.release()

    def _open_folder(self) -> Monitor:
        settings = self._settings
        self.accelerator.wait_for_everyone()  # every process has read what it goes on from
        if self.is_main:
            open_folder(self.folder, settings.text, start=self.start, total=self.pace.total_steps)
        self.accelerator.wait_for_everyone()
        monitor = Monitor(
            self.folder,
            total_steps=self.pace.total_steps,
            steps_per_epoch=self.pace.steps_per_epoch,
            log_every=settings.log_every,
            images_per_step=self.source.order.batch,
            watches=self.method.watches,
            skip_nonfinite=settings.skip_nonfinite,
            teacher_cache=settings.teacher_cache,
            start_step=self.start,
            is_main=self.is_main,
            reduce_mean=mean_over(self.accelerator),
        )
        for note in self._notes:
            monitor.note(note)
        return monitor

    def _resume(self) -> int:
        wish = self._settings.resume
        present = self.checkpoints.complete()
        self._refuse(wish, present)
        if wish == "anew" or (wish in ("never", "latest") and not present):
            return 0
        if wish == "latest":
            path, refused = self.checkpoints.latest()
            self._notes += refused
        else:
            path = Path(wish)
        state, meta = checkpoint.load(path)
        # A field that did not exist yet had the value that is now its default.
        old = {group: {**self._settings.defaults[group], **kept} for group, kept in meta["config"].items()}
        plugin = old.get("run", {}).get("plugin")
        if (
            plugin is not None and not Path(plugin).is_absolute()
        ):  # as it was typed, once: from where is not known
            now = self._settings.fields["run"]["plugin"]
            old["run"]["plugin"] = now if now and Path(now).name == Path(plugin).name else plugin
        checkpoint.check_same(path, old, self._settings.fields, self._settings.free)
        checkpoint.check_origins(path, meta.get("origins", {}), self._settings.origins)
        self.game.load_state(state)
        self._notes.append(f"resumed from {path} at step {meta['step']}")
        return int(meta["step"])

    def _try_teacher(self) -> list[str]:
        """Say how good the teacher is where labels tell it: one that reads its images wrongly shows here.

        Once, at the start of a run: one that goes on has it in its log. It draws from no generator of the training.
        """
        if self._val_answers is None or not self.game.labels_count or self.start:
            return []
        whole = self.source.val.num_images
        tried = min(_GREETED, whole)
        place = self.accelerator.device
        with (
            torch.random.fork_rng([place] if place.type == "cuda" else []),
            closing(self._val_answers()) as teacher,
        ):
            top1 = top1_of(teacher, self.source.val_sample(tried), sum_over(self.accelerator), place)
        of = f"{tried} of {whole}" if tried < whole else f"all {whole}"
        return [f"the teacher's own top-1 is {100 * top1:.2f} % on {of} validation images"]

    def _refuse(self, wish: str, present: Sequence[Path]) -> None:
        """Raise ValueError where a wish would overwrite an earlier run, or mix it with another."""
        if not present and read_summary(self.folder) is None:
            return
        earlier = "checkpoints of an earlier run" if present else "a finished run without its checkpoints"
        leave = "--run.resume anew starts over, another --run.name leaves it alone"
        if wish == "never" and present:
            raise ValueError(f"{self.folder} holds {earlier}: --run.resume latest continues it, {leave}")
        if wish in ("never", "latest") and not present:
            raise ValueError(f"{self.folder} holds {earlier}: {leave}")
        own = self.checkpoints.folder.resolve()
        if wish not in ("never", "latest", "anew") and Path(wish).resolve().parent != own:
            raise ValueError(
                f"{self.folder} holds {earlier}, which going on from {wish} would overwrite: choose another"
                " --run.name"
            )

    @property
    def is_finished(self) -> bool:
        """Whether an earlier call did all of it, so that nothing is left to do."""
        done = self.start >= self.pace.total_steps and read_summary(self.folder) is not None
        return done and (self.folder / "student.safetensors").is_file()

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) from where the run starts to where it ends, watching the time spent waiting."""
        batches = self.source.batches(self.start, self.pace.total_steps)
        for step in range(self.start, self.pace.total_steps):
            began = time.perf_counter()
            batch = next(batches)
            self._step_s["data_s"] = time.perf_counter() - began
            assert batch.step == step, (batch.step, step)
            if self._settings.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()
            yield step, batch

    def ask_teacher(self, batch: Batch) -> Outputs | None:
        """Return the teacher's outputs on a batch; None where the method has no teacher."""
        if self.answers is None:
            return None
        began = time.perf_counter()
        target = self.answers(batch)
        self._step_s["teacher_s"] = time.perf_counter() - began
        return target

    def after(self, step: int, made: Sequence[Move]) -> None:
        """Close a step: log, and at its time evaluate and write a checkpoint; Interrupted when asked to stop.

        Nothing is read from the device but where a line of the log is due.
        """
        if self.game.average is not None:
            self.game.average.update(self.game.student)
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
                    self.monitor.validation(done, self.evaluate())

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
        if self.is_main:
            meta = {
                "config": self._settings.fields,
                "origins": self._settings.origins,
                "world": self.world,
            }
            self.checkpoints.save(done, state, meta)

    def evaluate(self, with_teacher: bool = False) -> dict[str, float]:
        """Evaluate the student on the whole validation set, exactly once per image over all processes.

        Without labels of the student's own classes its agreement with the teacher is all that can be said.
        """
        self.game.average_buffers()
        wanted = with_teacher or not self.game.labels_count
        teacher = self._val_answers() if wanted and self._val_answers is not None else None
        with nullcontext() if teacher is None else closing(teacher):
            return evaluate(
                self.method.validated(self.game.kept, self.players["student"].module),
                self.source.val_batches(),
                sum_over(self.accelerator),
                num_images=self.source.val.num_images,
                teacher=teacher,
                labels_count=self.game.labels_count,
            )

    def finish(self) -> Path:
        """Evaluate, write student.safetensors and summary.json, and return the run's folder."""
        if self.world > 1:
            self.players.assert_equal_everywhere()
            self.monitor.note(f"weights agree on all {self.world} processes")
        whole = self.pace.total_steps == self.pace.schedule_steps
        if isinstance(self.answers, Filling) and whole and self._complete_cache is not None:
            self._complete_cache(self.answers)
        result = self.evaluate(with_teacher=True)
        self.monitor.validation(self.pace.total_steps, result)
        if self.is_main:
            zoo.save_weights(self.game.kept, self.folder / "student.safetensors")
            self.method.save(self.players.modules(), self.folder)
            finish_folder(self.folder, self._summary(result))
        self.accelerator.wait_for_everyone()
        return self.folder

    def _summary(self, result: dict[str, float]) -> dict[str, Any]:
        size = count(self.game.student)
        return {
            **self._settings.facts,
            "params": size.parameters,
            "macs": size.macs,
            "epochs": self.pace.total_steps / self.pace.steps_per_epoch,
            "steps": self.pace.total_steps,
            "val": result,
            **self.monitor.rates,
            "wall_s": time.perf_counter() - self._began,
            "world": self.world,
            "device": str(self.accelerator.device),
        }

    def __enter__(self) -> Run:
        self.interruption.listen()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._close(at_once=kind is KeyboardInterrupt)
        finally:
            self._disown()

    def _close(self, *, at_once: bool) -> None:
        # At once: nothing waits for a disk: what is half written does not count
        if self.answers is not None and not at_once:
            self.answers.close()
        self.monitor.close()
        if not at_once:
            self.checkpoints.wait()
        self.accelerator.free_memory()
        self.interruption.release()
