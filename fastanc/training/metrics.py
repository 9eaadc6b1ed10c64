"""What a run tells while it trains: metrics.jsonl, the progress bar, the warnings."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from fastanc.files import named, write_text
from fastanc.methods.base import Watch
from fastanc.training.bottleneck import Clock, bottleneck

_WINDOWS = 3  # log windows in a row before a watch speaks
_BOTTLENECK_AFTER_STEPS = 100
_PLAIN_LINE_EVERY_S = 10.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a torn last line, left by a killed process, is dropped."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class _Watching:
    """Says once that a column stayed above a bound over some log windows in a row."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._windows = watch, 0

    def due(self, means: Mapping[str, float]) -> str | None:
        """Take one window's means; return the sentence when it is time to speak."""
        column, bound, sentence = self._watch
        if self._windows >= _WINDOWS or column not in means:
            return None
        self._windows = self._windows + 1 if means[column] > bound else 0
        return sentence.format(mean=means[column], windows=_WINDOWS) if self._windows == _WINDOWS else None


class Monitor:
    """Collects a run's terms on the device, reads them every `log_every` steps, and writes what it read.

    metrics.jsonl holds one object per line:
    {"kind": "train", "step", "epoch", "lr", the means of all terms and measures since the last line,
    "images_per_s", "data_share", "teacher_share", "wall_s"}, {"kind": "val", "step", "epoch", ...} and
    {"kind": "note", "step", "text"}. `step` counts from 0 and names the last step that a line covers.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        log_every: int,
        images_per_step: int,
        is_main: bool,
        *,
        steps_per_epoch: int,
        watches: Sequence[Watch] = (),
        start_step: int = 0,
        skip_nonfinite: int = 0,
        teacher_cache: str = "off",
        reduce_mean: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        """Open the run's file and bar; lines of steps that will be made again (>= `start_step`) are removed.

        Args:
            run_dir: the run's folder; made if missing.
            total_steps: steps of the whole run, resumed ones included.
            log_every: steps between two readings of the device.
            images_per_step: images that all processes together see in one step.
            is_main: whether this process writes and shows.
            steps_per_epoch: turns steps into epochs.
            watches: what is worth a sentence, from the method.
            start_step: the first step that this execution makes.
            skip_nonfinite: updates that may have been left out because a term was not finite.
            teacher_cache: off, fill or read: where the teacher's outputs come from.
            reduce_mean: mean of a float32 vector over all processes, all of which call it at the same steps.
        """
        self._total, self._every, self._images = total_steps, log_every, images_per_step
        self._steps_per_epoch, self._start, self._reduce_mean = steps_per_epoch, start_step, reduce_mean
        self._skips_left, self._teacher_cache = skip_nonfinite, teacher_cache
        self._is_main, self._path = is_main, Path(run_dir) / "metrics.jsonl"
        self._rows: list[tuple[int, tuple[str, ...], int, Tensor]] = []
        self._step = start_step - 1
        self._watching = [_Watching(watch) for watch in watches]
        self._bottleneck_said = False
        self._said_s = -math.inf
        self._wall_before_s = self._keep_lines_before(start_step) if is_main else 0.0
        self._on_tty = is_main and sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=start_step, unit="step", disable=not self._on_tty)
        self._window, self._steady = Clock(), Clock()
        self._rates: dict[str, float] = {}
        self._opened_s = time.perf_counter()
        self._followers: list[Callable[[Mapping[str, Any]], None]] = []

    def follow(self, told: Callable[[Mapping[str, Any]], None]) -> None:
        """Tell `told` every line from here on, after it is written; on the process that writes."""
        self._followers.append(told)

    def step(
        self,
        step: int,
        terms: Mapping[str, Tensor],
        measures: Mapping[str, Tensor],
        *,
        lr: float,
        data_s: float,
        teacher_s: float,
    ) -> None:
        """Take one step's scalars; the host waits for the device only where a line is written.

        Args:
            step: the step just made.
            terms: weighted scalars on the device, keyed "player/term"; checked to be finite.
            measures: scalars on the device that are only logged.
            lr: the student's learning rate in this step.
            data_s: seconds this process waited for the batch.
            teacher_s: seconds this process waited for the teacher.

        Raises:
            ValueError: a term was not finite; the first step and its term are named.
        """
        values = torch.stack([v.detach().float() for v in (*terms.values(), *measures.values())])
        self._rows.append((step, (*terms, *measures), len(terms), values))
        self._step = step
        for clock in (self._window, self._steady):
            clock.steps += 1
            clock.data_s += data_s
            clock.teacher_s += teacher_s
        if (step + 1) % self._every == 0 or step + 1 == self._total:
            self._log(lr)
        self._bar.update()

    def validation(self, done: int, values: Mapping[str, float]) -> None:
        """Write one evaluation, made after `done` steps."""
        self._write({"kind": "val", "step": done - 1, "epoch": self._epoch(done), **values})
        text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        self._say(f"step {done}/{self._total}  evaluation: {text}")

    def note(self, text: str) -> None:
        """Write and show one sentence that a reader of the run should know."""
        self._write({"kind": "note", "step": self._step, "text": text})
        self._say(text if text.startswith("warning: ") else f"note: {text}")

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep an evaluation or a checkpoint out of the rates; pending device work is waited for first."""
        if self._rows:
            self._rows[-1][3].cpu()
        began = time.perf_counter()
        try:
            yield
        finally:
            for clock in (self._window, self._steady):
                clock.off_s += time.perf_counter() - began

    @property
    def rates(self) -> dict[str, float]:
        """`bottleneck`'s rates from the first line to the last, so that warm-up does not count; {} before."""
        return self._rates

    def close(self) -> None:
        """End the bar; a window that is not full is not written, so that resumed runs have the same lines."""
        self._bar.close()

    def _log(self, lr: float) -> None:
        means = self._read_window()
        rates = self._window.rates(self._images)
        line = {"kind": "train", "step": self._step, "epoch": self._epoch(self._step + 1), "lr": lr, **means}
        line |= {key: rates[key] for key in ("images_per_s", "data_share", "teacher_share")}
        line["wall_s"] = self._wall_before_s + time.perf_counter() - self._opened_s
        self._write(line)
        self._show(means, rates["images_per_s"])
        if not self._rates:  # the first window held compilation and the input's start
            self._rates = rates
            self._steady.restart()
        else:
            self._rates = self._steady.rates(self._images)
        for watching in self._watching:
            if sentence := watching.due(means):
                self.note(sentence)
        if not self._bottleneck_said and self._step + 1 - self._start >= _BOTTLENECK_AFTER_STEPS:
            self._bottleneck_said = True
            self.note(bottleneck(self._rates, self._teacher_cache))
            if left := self._total - self._step - 1:
                left_s = left * self._images / self._rates["images_per_s"]
                self.note(
                    f"expected: {tqdm.format_interval(left_s)} for the {left:,} steps that are left at this rate,"
                    " evaluations and checkpoints not counted"
                )
        self._window.restart()

    def _read_window(self) -> dict[str, float]:
        """Copy every collected scalar to the host at once and return the mean of each name."""
        values = iter(self._reduce_mean(torch.cat([row[3] for row in self._rows])).tolist())
        sums: dict[str, list[float]] = {}
        skipped: set[tuple[int, str]] = set()  # (step, player)
        for step, names, num_terms, _ in self._rows:
            for i, name in enumerate(names):
                value = next(values)
                if i < num_terms and not math.isfinite(value):
                    skipped.add((step, name.partition("/")[0]))
                    if len(skipped) > self._skips_left:
                        self._stop_at(name, value, step)
                elif math.isfinite(value) or not skipped:
                    sums.setdefault(name, []).append(value)
        self._rows.clear()
        self._skips_left -= len(skipped)
        for step, player in sorted(skipped):
            self.note(f"the {player}'s update of step {step} was left out: its loss is not finite")
        return {name: sum(seen) / len(seen) for name, seen in sums.items()}

    def _stop_at(self, name: str, value: float, step: int) -> NoReturn:
        message = (
            f"the loss term {name} is {value} at step {step}: lower its player's learning rate "
            "or clip its gradients, and resume from the last checkpoint"
        )
        self._write({"kind": "note", "step": self._step, "text": message})
        raise ValueError(message)

    def _epoch(self, done: int) -> float:
        return round(done / self._steps_per_epoch, 4)

    def _show(self, means: Mapping[str, float], images_per_s: float) -> None:
        text = f"{images_per_s:,.0f} images/s  " + "  ".join(f"{k} {v:.4g}" for k, v in means.items())
        if self._on_tty:
            self._bar.set_postfix_str(text)
            return
        now, done = time.perf_counter(), self._step + 1
        if now - self._said_s >= _PLAIN_LINE_EVERY_S or done == self._total:
            self._said_s = now
            left_s = (self._total - done) * self._images / images_per_s
            eta = tqdm.format_interval(left_s)
            self._say(f"step {done}/{self._total}  epoch {self._epoch(done):.2f}  ETA {eta}  {text}")

    def _say(self, text: str) -> None:
        if self._is_main:
            tqdm.write(text, file=sys.stderr)

    def _write(self, line: Mapping[str, object]) -> None:
        if self._is_main:
            finite = {
                k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()
            }
            with named(self._path), self._path.open("a") as file:
                file.write(json.dumps(finite, allow_nan=False) + "\n")
            for told in self._followers:
                told(line)

    def _keep_lines_before(self, start: int) -> float:
        """Remove the lines of steps that will be made again; return the training seconds that remain."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [x for x in read_metrics(self._path) if x["step"] < start] if self._path.exists() else []
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        return max((line["wall_s"] for line in kept if "wall_s" in line), default=0.0)
