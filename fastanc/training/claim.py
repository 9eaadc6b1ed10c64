"""A run's claim to its folder: one owner, and the checkpoint from which it goes on, if any.

Made before anything slow is built, so that a wish that would mix two runs, or overwrite one, costs a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fastanc.training import checkpoint
from fastanc.training.checkpoint import Checkpoints
from fastanc.training.extension import FIELDS, begun, kept, last_checkpoint
from fastanc.training.folder import Owner, read_summary


class Claim:
    """The folder is this run's until it is released; every process raises what process 0 was refused with.

    Args:
        folder: of the run.
        resume: never, latest, anew, or a checkpoint's path.
        keep: checkpoints to keep.
        accelerator: of this process.
        fields: the configuration as nested dictionaries, which that of the checkpoint must equal.
        completed: adds to an earlier configuration the fields that it is too old to have.
        free: group -> the fields in which the two may differ.
        parent: folder of the finished run that this one lengthens, if any.

    Raises ValueError where the wish would overwrite an earlier run or mix it with another, OSError where the folder
    cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        resume: str,
        keep: int,
        accelerator: Accelerator,
        *,
        fields: Mapping[str, Any],
        completed: Callable[[Mapping[str, Any]], dict[str, Any]],
        free: Mapping[str, Set[str]],
        parent: Path | None = None,
    ):
        self.folder, self.fields = folder, fields
        self.checkpoints = Checkpoints(folder / "checkpoints", keep)
        self.notes: list[str] = []
        self._meta: dict[str, Any] = {}
        self._owner = self._own(accelerator)
        try:
            self.path = self._chosen(resume)
            self.begins = self.path is None
            """Whether this is the run's first execution, or one that starts it over."""
            if self.begins and parent is not None:
                self.path = last_checkpoint(parent, folder)
                free = {group: keys | FIELDS.get(group, frozenset()) for group, keys in free.items()}
            if self.path is not None:
                self._check(self.path, completed, free)
            begins_from = begun(parent, self._meta) if self.begins and parent is not None else None
            self.extension = begins_from or kept(self._meta)
            accelerator.wait_for_everyone()  # one that is refused must not see what process 0 leaves behind
        except BaseException:
            self.release()
            raise

    def _own(self, accelerator: Accelerator) -> Owner | None:
        owner: Owner | None = None
        refused: list[Exception | None] = [None]
        if accelerator.is_main_process:
            try:
                owner = Owner(self.folder)
            except (ValueError, OSError) as error:
                refused = [error]
        broadcast_object_list(refused)
        if refused[0] is not None:
            raise refused[0]
        return owner

    def _chosen(self, resume: str) -> Path | None:
        """The checkpoint to go on from; None for a run that begins."""
        present = self.checkpoints.complete()
        self._refuse(resume, present)
        if resume == "anew" or (resume in ("never", "latest") and not present):
            if resume == "latest":
                self.notes.append(f"{self.folder} has no checkpoint to go on from: the run begins")
            return None
        if resume != "latest":
            return Path(resume)
        path, refused = self.checkpoints.latest()
        self.notes += refused
        return path

    def _refuse(self, resume: str, present: Sequence[Path]) -> None:
        if not present and read_summary(self.folder) is None:
            return
        earlier = "checkpoints of an earlier run" if present else "a finished run without its checkpoints"
        leave = "--run.resume anew starts over, another --run.name leaves it alone"
        if resume == "never" and present:
            raise ValueError(f"{self.folder} holds {earlier}: --run.resume latest continues it, {leave}")
        if resume in ("never", "latest") and not present:
            raise ValueError(f"{self.folder} holds {earlier}: {leave}")
        own = self.checkpoints.folder.resolve()
        if resume not in ("never", "latest", "anew") and Path(resume).resolve().parent != own:
            raise ValueError(
                f"{self.folder} holds {earlier}, which going on from {resume} would overwrite: choose another"
                " --run.name"
            )

    def _check(
        self,
        path: Path,
        completed: Callable[[Mapping[str, Any]], dict[str, Any]],
        free: Mapping[str, Set[str]],
    ) -> None:
        meta = self._meta = checkpoint.read_meta(path)
        old = completed(meta["config"])
        plugin = old.get("run", {}).get("plugin")
        if plugin is not None and not Path(plugin).is_absolute():
            # As it was typed, once: from where is not known.
            now = self.fields["run"]["plugin"]
            old["run"]["plugin"] = now if now and Path(now).name == Path(plugin).name else plugin
        checkpoint.check_same(path, old, self.fields, free)

    def load(self, origins: Mapping[str, str]) -> tuple[dict[str, Any], int]:
        """Return (state, step) of the checkpoint; ValueError where it learnt from something else, or is damaged."""
        assert self.path is not None
        state, meta = checkpoint.load(self.path)
        checkpoint.check_origins(self.path, meta.get("origins", {}), origins)
        said = "extends the run of" if self.begins else "resumed from"
        self.notes.append(f"{said} {self.path} at step {meta['step']}")
        return state, int(meta["step"])

    def kept(self, what: str, before: Any) -> Any:
        """Return what was written beside the checkpoint, `before` if it is older than that; None without one."""
        return None if self.path is None else self._meta.get(what) or before

    def release(self) -> None:
        """Give the folder free, and take it away where nothing was written into it."""
        if self._owner is not None:
            self._owner.release()
