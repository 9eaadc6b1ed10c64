"""The state of one run around the training loop: its parts, its clock, its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import draccus
import torch

from fastanc.batch import Batch, Outputs
from fastanc.config import Config, DataConfig
from fastanc.methods.base import Played
from fastanc.models import zoo
from fastanc.models.counting import count
from fastanc.parsing import dump
from fastanc.teacher.filling import Filling
from fastanc.training import assemble, checkpoint, inputs
from fastanc.training.checkpoint import Checkpoints
from fastanc.training.game import open_game
from fastanc.training.interruption import Interrupted, Interruption
from fastanc.training.metrics import Monitor
from fastanc.training.processes import make_accelerator, mean_over, sum_over
from fastanc.training.schedule import factor
from fastanc.training.validate import evaluate


class Run:
    """Everything of a run that is not the loop: built from a configuration, left behind as a folder."""

    def __init__(self, config: Config):
        self._began = time.perf_counter()
        self.config = config
        self.accelerator = make_accelerator(
            precision=config.run.precision,
            batch=config.data.batch,
            clip=config.optimizer.clip,
            accumulate=config.run.accumulate,
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        self.interruption = Interruption(self.accelerator)
        self.folder = config.run.folder
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.run.keep)
        self.input = inputs.open_input(
            config.data, config.run.seed, self.accelerator, config.method.latent_dim
        )
        share, parts = config.data.batch // self.world, config.run.accumulate
        if share % parts:
            raise ValueError(
                f"run.accumulate {parts} does not divide the {share} images of a process: change one"
            )
        self.steps_per_epoch = self.input.order.steps_per_epoch
        self.schedule_steps = config.schedule.epochs * self.steps_per_epoch
        self.total_steps = min(self.schedule_steps, config.run.max_steps or self.schedule_steps)
        self.game = open_game(config, self.accelerator, self.input)
        self.players, self.method, self.teacher = self.game.players, self.game.method, self.game.teacher
        note = inputs.input_note(self.input)
        self._notes: list[str] = [*([note] if note else []), *self.game.notes]
        self.start = self._resume()
        self.monitor = self._open_folder()
        self._played: dict[str, torch.Tensor] = {}
        self._measured: dict[str, torch.Tensor] = {}
        self._step_s = {"data_s": 0.0, "teacher_s": 0.0}

    def _open_folder(self) -> Monitor:
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(dump(self.config))
        self.accelerator.wait_for_everyone()
        monitor = Monitor(
            self.folder,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            log_every=self.config.run.log_every,
            images_per_step=self.config.data.batch,
            skip_nonfinite=self.config.run.skip_nonfinite,
            teacher_cache=self.config.teacher.cache,
            start_step=self.start,
            is_main=self.is_main,
            reduce_mean=mean_over(self.accelerator),
        )
        for note in self._notes:
            monitor.note(note)
        return monitor

    def _resume(self) -> int:
        wish = self.config.run.resume
        present = self.checkpoints.complete()
        if wish == "never" and present:
            raise ValueError(
                f"{self.folder} holds checkpoints of an earlier run: --run.resume latest continues it,"
                " --run.resume anew starts over, another --run.name leaves it alone"
            )
        if wish == "anew" or (wish in ("never", "latest") and not present):
            return 0
        if wish == "latest":
            path, refused = self.checkpoints.latest()
            self._notes += refused
        else:
            path = Path(wish)
        state, meta = checkpoint.load(path)
        checkpoint.check_same(path, meta["config"], draccus.encode(self.config))
        self.game.load_state(state)
        self._notes.append(f"resumed from {path} at step {meta['step']}")
        return int(meta["step"])

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) from where the run starts to where it ends, watching the time spent waiting."""
        batches = self.input.batches(self.start, self.total_steps)
        for step in range(self.start, self.total_steps):
            began = time.perf_counter()
            batch = next(batches)
            self._step_s["data_s"] = time.perf_counter() - began
            assert batch.step == step, (batch.step, step)
            if self.config.run.compile_mode != "default":  # the other two use CUDA graphs
                torch.compiler.cudagraph_mark_step_begin()
            yield step, batch

    def lr_factor(self, step: int) -> float:
        """Return what every base learning rate is multiplied with at this step."""
        schedule = self.config.schedule
        return factor(
            step,
            self.schedule_steps,
            name=schedule.name,
            warmup_steps=round(schedule.warmup_epochs * self.steps_per_epoch),
            milestones=schedule.milestones,
            gamma=schedule.gamma,
        )

    def ask_teacher(self, batch: Batch) -> Outputs | None:
        """Return the teacher's outputs on a batch; None where the method has no teacher."""
        if self.teacher is None:
            return None
        began = time.perf_counter()
        target = self.teacher(batch)
        self._step_s["teacher_s"] = time.perf_counter() - began
        return target

    def log(self, player: str, played: Played) -> None:
        """Remember a play's terms and measures until the step is over; nothing is read from the device."""
        self._played.update({f"{player}/{key}": term.detach() for key, term in played.terms.items()})
        self._measured.update(played.measures)

    def after(self, step: int) -> None:
        """Close a step: log, and at its time evaluate and write a checkpoint; Interrupted when asked to stop."""
        if self.game.average is not None:
            self.game.average.update(self.game.student)
        try:
            self.monitor.step(
                step,
                self._played,
                self._measured,
                data_s=self._step_s["data_s"],
                teacher_s=self._step_s["teacher_s"],
                lr=self.config.optimizer.lr * self.lr_factor(step),
            )
        except ValueError as error:  # a term was not finite
            raise ValueError(f"{error}; {self._last_good()}") from error
        done, epoch_ends = step + 1, (step + 1) % self.steps_per_epoch == 0
        every = self.config.run.checkpoint_every
        saves = done % every == 0 if every else epoch_ends
        epoch, period = done // self.steps_per_epoch, self.config.run.eval_every
        evaluates = epoch_ends and done < self.total_steps and period > 0 and epoch % period == 0
        stops = self.interruption.agreed() and done < self.total_steps
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
        raise Interrupted(
            f"interrupted after step {done} of {self.total_steps}, all of it saved: the same command with"
            " --run.resume latest goes on"
        )

    def _last_good(self) -> str:
        self.checkpoints.wait()
        present = self.checkpoints.complete()
        return f"the last good checkpoint is {present[-1]}" if present else "there is no checkpoint yet"

    def save(self, done: int) -> None:
        """Write a checkpoint after `done` steps; statistics of BatchNorm are averaged over the processes first."""
        self.game.average_buffers()
        if self.teacher is not None:
            self.teacher.flush()
            self.accelerator.wait_for_everyone()  # else processes may compute rows that others have just written
        spoiled = self.players.spoiled()
        if spoiled is not None:
            raise ValueError(
                f"the weights of the {spoiled} are not finite after step {done - 1}: lower its learning rate or"
                f" clip its gradients, and resume; {self._last_good()}"
            )
        state = self.game.state()
        if self.is_main:
            meta = {"config": draccus.encode(self.config), "world": self.world}
            self.checkpoints.save(done, state, meta)

    def evaluate(self, with_teacher: bool = False) -> dict[str, float]:
        """Evaluate the student on the whole validation set, exactly once per image over all processes."""
        self.game.average_buffers()
        network = self.game.teacher_network if with_teacher else None
        teacher = None if network is None else assemble.open_val_teacher(self.config, self.input, network)
        with nullcontext() if teacher is None else closing(teacher):
            return evaluate(
                self.method.validated(self.game.kept, self.players["student"].module),
                self.input.val_batches(),
                sum_over(self.accelerator),
                num_images=self.input.val.num_images,
                teacher=teacher,
            )

    def finish(self) -> Path:
        """Evaluate, write student.safetensors and summary.json, and return the run's folder."""
        if self.world > 1:
            self.players.assert_equal_everywhere()
            self.monitor.note(f"weights agree on all {self.world} processes")
        if isinstance(self.teacher, Filling) and self.total_steps == self.schedule_steps:
            assemble.complete_cache(self.config, self.input, self.teacher, self.accelerator)
        result = self.evaluate(with_teacher=True)
        self.monitor.validation(self.total_steps, result)
        if self.is_main:
            zoo.save_weights(self.game.kept, self.folder / "student.safetensors")
            self.method.save(self.players.modules(), self.folder)
            (self.folder / "summary.json").write_text(json.dumps(self._summary(result), indent=1))
        self.accelerator.wait_for_everyone()
        return self.folder

    def _summary(self, result: dict[str, float]) -> dict[str, Any]:
        config = self.config
        size = count(self.game.student, image_px=config.data.image_px)
        return {
            "name": config.run.name,
            "method": config.method.kind,
            "student": config.student.name,
            "teacher": config.teacher.name if self.game.teacher_network is not None else None,
            "dataset": config.data.name,
            "trained_on": _trained_on(config.data, self.input.latent_dim),
            "params": size.parameters,
            "macs": size.macs,
            "epochs": self.total_steps / self.steps_per_epoch,
            "steps": self.total_steps,
            "batch": config.data.batch,
            "seed": config.run.seed,
            "val": result,
            **self.monitor.rates,
            "wall_s": time.perf_counter() - self._began,
            "teacher_source": config.teacher.cache if self.teacher is not None else None,
            "world": self.world,
            "device": str(self.accelerator.device),
        }

    def __enter__(self) -> Run:
        self.interruption.listen()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.teacher is not None:
            self.teacher.close()
        self.monitor.close()
        self.checkpoints.wait()
        self.accelerator.free_memory()
        self.interruption.release()


def _trained_on(data: DataConfig, latent_dim: int | None) -> str:
    if latent_dim is not None:
        return "latent vectors"
    return data.name if data.share == 1 else f"{100 * data.share:.3g} % of {data.name}"
