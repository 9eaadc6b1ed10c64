"""Checkpoints: one atomic folder each, newest complete one wins, nothing in them is ever executed.

checkpoints/step-00001234/state.pt    every player's weights and optimizer
                          meta.json   step, configuration, world size
                          COMPLETE    bytes and crc32 of the others, written last
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastanc.files import make_folder, remove, whole

_STATE, _META, _MARK = "state.pt", "meta.json", "COMPLETE"


class Checkpoints:
    """The checkpoints of one run folder; writing happens on a thread, so that the step does not wait."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Copy `state` (nested dicts of tensors and numbers) to the host and write it in the background.

        Raises OSError of the checkpoint before, if that one could not be written.
        """
        self.wait()
        copied = _to_host(state)
        # A daemon, so that a second Ctrl-C does not wait for it; every other end of a run does.
        self._thread = threading.Thread(
            target=self._write, args=(step, copied, dict(meta, step=step)), daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when the last checkpoint is on disk; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        final = self.folder / f"step-{step:08d}"
        try:
            make_folder(self.folder)
            with whole(final) as part:
                part.mkdir()
                torch.save(state, part / _STATE)
                (part / _META).write_text(json.dumps(meta, indent=1))
                seal = {name: _seal_of(part / name) for name in (_STATE, _META)}
                (part / _MARK).write_text(json.dumps(seal))
            # What lies beyond this step is of a run that was started over, or went on from before it.
            kept = [path for path in self.complete() if path <= final][-self.keep :]
            for other in self.complete():
                if other not in kept:
                    remove(other)
        except (
            OSError,
            RuntimeError,
            MemoryError,
        ) as error:  # torch.save reports a full disk as RuntimeError
            newest = self.complete()[-1:]
            self._error = OSError(
                f"checkpoint {final} could not be written ({error}): free some space and resume from"
                f" {newest[0] if newest else 'the start'}"
            )

    def complete(self) -> list[Path]:
        """Return the folders that carry the mark of completeness, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if (p / _MARK).is_file())

    def latest(self) -> tuple[Path, list[str]]:
        """Return the newest sound checkpoint and one sentence for every newer one that is not.

        Raises FileNotFoundError when there is none.
        """
        refused: list[str] = []
        for path in reversed(self.complete()):
            reason = damage(path)
            if reason is None:
                return path, refused
            refused.append(f"checkpoint {path} is refused: {reason}")
        raise FileNotFoundError(f"there is no complete checkpoint in {self.folder}: " + "; ".join(refused))


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (state, meta) of one checkpoint; ValueError names what is damaged."""
    meta = read_meta(path)
    try:
        return dict(torch.load(path / _STATE, map_location="cpu", weights_only=True)), meta
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a file that is not ours there may come any
        raise _foreign(path, error) from error


def read_meta(path: Path) -> dict[str, Any]:
    """Return what was written beside a checkpoint's state, its step first; ValueError names what is damaged."""
    reason = damage(path)
    if reason is not None:
        raise ValueError(f"checkpoint {path} is refused: {reason}")
    try:
        meta = json.loads((path / _META).read_text())
        return {**meta, "step": int(meta["step"]), "config": dict(meta.get("config", {}))}
    except (ValueError, TypeError, LookupError) as error:
        raise _foreign(path, error) from error


def _foreign(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"checkpoint {path} is refused: it holds something else than a run's state"
        f" ({type(error).__name__}), and nothing in it is executed"
    )


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None."""
    try:
        seal = json.loads((path / _MARK).read_text())
        seals = {name: (int(seal[name][0]), int(seal[name][1])) for name in (_STATE, _META)}
    except (OSError, ValueError, TypeError, LookupError):
        return f"it has no readable {_MARK} mark (it was not finished)"
    for name, (size, crc) in seals.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _seal_of(file)[1] != crc:
            return f"{name} was changed after it was written (its checksum differs)"
    return None


def _to_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _to_host(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_host(item) for item in value]
    return value


def _seal_of(path: Path) -> tuple[int, int]:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            crc = zlib.crc32(chunk, crc)
    return path.stat().st_size, crc


def check_same(
    path: Path, old: Mapping[str, Any], new: Mapping[str, Any], free: Mapping[str, Set[str]]
) -> None:
    """Raise ValueError naming the first field that a run must not change while it continues a checkpoint.

    Args:
        path: of the checkpoint.
        old: the configuration it was written with, as nested dictionaries.
        new: the run's.
        free: group -> the fields that it may change.
    """
    for group in new:
        were, are = old.get(group, {}), new[group]
        for key in sorted({*were, *are} - free[group]):
            before, now = were.get(key), are.get(key)
            if before != now:
                raise ValueError(
                    f"checkpoint {path} was written with {group}.{key} {before!r}, this run has {now!r}:"
                    " set it back, or start another --run.name"
                )


def check_origins(path: Path, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raise ValueError naming what a run would go on to learn from in the place of what it began with."""
    for what, digest in new.items():
        if old.get(what, digest) != digest:
            raise ValueError(
                f"checkpoint {path} was made with another {what} ({old[what]}, now {digest}): give that one,"
                " or start another --run.name"
            )
