"""Entry point and the training loop of every method.

accelerate launch fastanc/train.py [--recipe NAME | --config_path FILE] [--group.field value ...]
"""

from __future__ import annotations

import os
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

import torch

from fastanc.config import Config
from fastanc.parsing import parse, with_teacher
from fastanc.training.assemble import Given, open_run
from fastanc.training.interruption import Interrupted
from fastanc.training.processes import seed_step
from fastanc.training.step import play


def train(config: Config, given: Given | None = None) -> Path:
    """Train one student as configured and return the run's folder; a killed run resumes at its last checkpoint.

    `given` are networks and sets that a caller hands over as objects, in the place of names.
    """
    with open_run(config, given) as run:
        for step, batch in run.batches():
            seed_step(run.seed, step, run.rank)
            run.players.set_lr(run.lr_factor(step))
            batch.target = run.ask_teacher(batch)
            run.after(step, play(run.method, run.players, batch, run.parts))
        return run.finish()


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


class _Callable(ModuleType):
    """This module as the function in it: `fastanc.train(config)` beside `python -m fastanc.train`."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
