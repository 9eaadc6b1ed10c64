"""Entry point and the training loop of every method.

accelerate launch fastanc/train.py [--recipe NAME | --config_path FILE] [--group.field value ...]
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

if (
    not __package__
):  # started as a file: Python put fastanc/ itself on the path, where config.py etc. would be twins
    _here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _here]
    sys.path.append(str(_here.parent))

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from fastanc.config import Config
from fastanc.errors import Interrupted, command, explained
from fastanc.manual import asks_for_help, manual
from fastanc.parsing import parse, with_teacher

if TYPE_CHECKING:
    from fastanc.training.assemble_networks import Given

# torch is imported by the first run, so that a mistake is found, and help given, at once.


_BEGIN = (
    "say what to train: --recipe digits_anc begins with handwritten digits, --recipe own_data --data.name FOLDER with"
    " your own images; `fastanc recipes` lists the others, and --help the fields"
)


def train(config: Config, given: Given | None = None) -> Path:
    """Train one student as configured and return the run's folder; a killed run resumes at its last checkpoint.

    `given` are networks and sets that a caller hands over as objects, in the place of names.
    """
    from fastanc.training.assemble import open_run
    from fastanc.training.processes import seed_step
    from fastanc.training.step import play

    data, folder = config.data, config.run.folder
    with explained(batch=data.batch, image_px=data.image_px, folder=folder), open_run(config, given) as run:
        if run.is_finished:
            run.monitor.note(f"nothing to do: {run.folder} is finished, --run.resume anew starts over")
            return run.folder
        for step, batch in run.batches():
            seed_step(run.seed, step, run.rank)
            run.players.set_lr(run.lr_factor(step))
            batch.target = run.ask_teacher(batch)
            run.after(step, play(run.method, run.players, batch, run.parts, run.plays(batch)))
        return run.finish()


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see `errors.command`.

    A run that a signal ended after it saved itself has exit code 75.
    """
    words = sys.argv[1:] if args is None else list(args)

    def job() -> None:
        if asks_for_help(words):
            print(manual(words))
            return
        if not words:
            raise ValueError(_BEGIN)
        configs = with_teacher(parse(words, front=True))
        from fastanc.training.processes import end_processes

        try:
            for config in configs:
                folder = train(config)
        except Interrupted:  # on every process at the same step
            end_processes()
            raise
        if os.environ.get("RANK", "0") == "0":
            print(
                f"{folder / 'student.safetensors'}; `fastanc export {shlex.quote(str(folder))} OUT` hands it on"
            )
        end_processes()  # not after an error: another process may be in the middle of a sum

    return command(job, "the same command with --run.resume latest goes on")


class _Callable(ModuleType):
    """This module as the function in it: `fastanc.train(config)` beside `python -m fastanc.train`."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
