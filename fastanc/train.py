"""Entry point and the training loop of every method.

accelerate launch fastanc/train.py [--recipe NAME | --config_path FILE] [--group.field value ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if (
    not __package__
):  # started as a file: Python put fastanc/ itself on the path, where monitor.py etc. would be twins
    _here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _here]
    sys.path.append(str(_here.parent))

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.config import Config
from fastanc.methods.base import Play, Played, mean_played
from fastanc.parsing import parse
from fastanc.training.interruption import Interrupted
from fastanc.training.processes import seed_step
from fastanc.training.run import Run


def train(config: Config) -> Path:
    """Train one student as configured and return the run's folder; a killed run resumes at its last checkpoint."""
    with Run(config) as run:
        for step, batch in run.batches():
            seed_step(config.run.seed, step, run.rank)
            run.players.set_lr(run.lr_factor(step))
            batch.target = run.ask_teacher(batch)
            if config.run.accumulate > 1:
                _play_in_parts(run, batch.parts(config.run.accumulate))
            else:
                _play(run, batch)
            run.after(step)
        return run.finish()


def _play(run: Run, batch: Batch) -> None:
    """Make every play of a step upon one pass of the student."""
    with run.players.turn("student") as nets:
        out = run.method.forward(nets, batch)
    for play in run.method.plays:
        for _ in range(play.repeats):
            with run.players.turn(play.player) as nets:
                played = play.loss(nets, batch, out)
                run.players.update(play.player, played.terms)
        run.log(play.player, played)


def _play_in_parts(run: Run, parts: Sequence[Batch]) -> None:
    """Make every play of a step with the memory of one part: the student passes each part anew in each play.

    A play of another player never reaches the student's weights, so its passes keep nothing for a gradient.
    """
    for play in run.method.plays:
        results: list[Played] = []

        def turn(number: int, play: Play = play, results: list[Played] = results) -> Mapping[str, Tensor]:
            part, own = parts[number], play.player == "student"
            with torch.set_grad_enabled(own), run.players.turn("student") as nets:
                out = run.method.forward(nets, part)
            with run.players.turn(play.player) as nets:
                results.append(play.loss(nets, part, out))
            return results[-1].terms

        for _ in range(play.repeats):
            results.clear()
            run.players.update_in_parts(play.player, len(parts), turn)
        run.log(play.player, mean_played(results))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake ends in one sentence and exit code 2 (FASTANC_DEBUG=1 shows where).

    A run that SIGTERM or SIGUSR1 ended after saving itself has exit code 75.
    """
    args = sys.argv[1:] if args is None else list(args)
    config: Config | None = None
    try:
        for config in with_teacher(parse(args)):
            train(config)
    except Interrupted as stopped:
        print(f"fastanc: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("FASTANC_DEBUG"):
            raise
        print(f"fastanc: {_out_of_memory(error, config) or error}", file=sys.stderr)
        return 2
    return 0


def _out_of_memory(error: Exception, config: Config | None) -> str | None:
    on_host = "DefaultCPUAllocator" in str(error) or "alloc_cpu" in str(error)
    if config is None or not (on_host or isinstance(error, torch.OutOfMemoryError)):
        return None
    device, data = "host" if on_host else "device", config.data
    return (
        f"the {device} ran out of memory with data.batch {data.batch} (over all processes) at {data.image_px} px:"
        " lower data.batch, use more processes, or give teacher and student bf16"
        f" (--run.precision, --teacher.precision): {str(error).splitlines()[0]}"
    )


def with_teacher(config: Config) -> list[Config]:
    """Return the runs a configuration stands for: its teacher's first, if that has to be trained yet."""
    weights, recipe = config.teacher.weights, config.teacher.recipe
    if (
        recipe is None
        or weights in (None, "random")
        or Path(weights).is_file()
        or not config.method.needs_teacher
    ):
        return [config]
    folder = Path(weights).parent
    teacher = parse(["--recipe", recipe, "--run.name", folder.name, "--run.out", str(folder.parent)])
    if teacher.data.name != config.data.name or teacher.student.name != config.teacher.name:
        raise ValueError(
            f"teacher.weights: there is no file {weights}, and teacher.recipe {recipe} would train a"
            f" {teacher.student.name} on {teacher.data.name}, not the {config.teacher.name} on {config.data.name}"
            " of this run: name your teacher's file or recipe"
        )
    if config.data.root is not None:
        teacher = replace(teacher, data=replace(teacher.data, root=config.data.root))
    return [replace(teacher, run=replace(teacher.run, resume="latest")), config]


if __name__ == "__main__":
    sys.exit(main())
