"""The plays of a run, each by the spelling that is the fastest here and right.

They are measured on a real batch of the run, with the run's own shapes, layouts and precision, and held to the same
play in float64.

What must not happen: a run whose numbers depend on a stopwatch. So the choice is made once. A checkpoint keeps it, a
file keeps it for the next start of the same game on the same device, process 0 makes it for all, and `plain` stays
where all plays together cost too little of what is left to pay for trying.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fastanc.batch import Batch
from fastanc.files import write_text
from fastanc.methods.base import Method
from fastanc.training.compiling import unmoved
from fastanc.training.play_trials import PlayTrials
from fastanc.training.players import Players
from fastanc.training.spellings import SPELLINGS, Choice, available, plain, said

_WORTH_S = 60.0
"""That all plays together must cost in the rest of a run before another spelling is compiled to be tried."""


def choose(
    method: Method,
    players: Players,
    batch: Batch,
    *,
    wanted: str,
    precision: str,
    steps_left: int,
    memory: Path | None = None,
) -> Choice:
    """Choose the spelling of every play; nothing of the run is moved, not even a generator.

    Args:
        method: whose plays.
        players: of the run.
        batch: a real one, with its target, of the size that a play sees.
        wanted: auto, or the one spelling that is to be taken wherever a play has it.
        precision: of the student's pass: fp32, bf16 or fp16.
        steps_left: of the run.
        memory: folder of what was found out at earlier starts.

    Raises:
        ValueError: what is wanted fails, is not right, or no play has it.
    """
    if wanted == "plain":
        return plain(method)
    with unmoved(players.modules().values()):
        if wanted != "auto":
            return PlayTrials(method, players, batch, precision).forced(wanted)
        try:
            return _fastest(method, players, batch, precision, steps_left, memory)
        # Memory for float64, a play that cannot be wide: nobody asked for more than plain.
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            why = f"plays: plain, no other could be tried ({type(error).__name__}: {lines[0][:120]})"
            return replace(plain(method), notes=(why,))


def _fastest(
    method: Method, players: Players, batch: Batch, precision: str, steps_left: int, memory: Path | None
) -> Choice:
    trials = PlayTrials(method, players, batch, precision)
    if trials.out is None or trials.cost_s() * steps_left < _WORTH_S:
        return plain(method)
    kept = None if memory is None else memory / f"{trials.key()}.json"
    if kept is not None and (names := _read(kept, method)):
        return Choice(names=names, notes=(said(method, names, ", as measured at an earlier start"),))
    choice, found = trials.measured()
    if kept is not None:
        write_text(kept, json.dumps({"names": choice.names, "trials": found}, indent=1))
    return choice


def choose_for_all(
    accelerator: Accelerator,
    method: Method,
    players: Players,
    batch: Batch,
    *,
    kept: Sequence[str] | None,
    **options: Any,
) -> Choice:
    """Return what every process takes: what a checkpoint kept, else what process 0 chooses (`choose`).

    What was kept is taken to the last bit; where it cannot be had on this device the choice is made anew, and said.
    """
    notes: tuple[str, ...] = ()
    if kept is not None:
        if all(available(name, accelerator.device) for name in kept):
            return Choice(names=tuple(kept))
        notes = (
            f"{said(method, kept, ' before')}, which this device has not: chosen anew, other bits follow",
        )
    made: list[Choice | Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            made = [choose(method, players, batch, **options)]
        except (ValueError, OSError) as error:
            made = [error]
    broadcast_object_list(made)
    if isinstance(made[0], Exception):
        raise made[0]
    assert made[0] is not None
    return replace(made[0], notes=(*notes, *made[0].notes))


def compared(
    method: Method, players: Players, batch: Batch, precision: str
) -> tuple[Choice, list[dict[str, Any]]]:
    """Return what auto would choose whatever it costs to try, and what was measured: a row for each spelling."""
    with unmoved(players.modules().values()):
        return PlayTrials(method, players, batch, precision).measured()


def _read(path: Path, method: Method) -> tuple[str, ...] | None:
    try:
        names = tuple(json.loads(path.read_text())["names"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return names if len(names) == len(method.plays) and set(SPELLINGS).issuperset(names) else None
