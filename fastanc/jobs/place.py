"""Where an export is written: whole or not at all, and over nothing that is not its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastanc.files import HOUR_S, make_folder, put, remove, sweep, whole, workspace, write_text
from fastanc.jobs.preprocessing import RECORD, is_ours, unfinished
from fastanc.plain_yaml import load_yaml
from fastanc.training.folder import CLASSES

FILES = {"safetensors": "student.safetensors", "torch_export": "student.pt2", "onnx": "student.onnx"}
"""Of each format."""
FP16, INT8 = "student_fp16.onnx", "student_int8.onnx"
CARD, PREDICT, NATIVE, TIMM = "README.md", "predict.py", "model.safetensors", "config.json"
_BESIDE = (CARD, PREDICT, NATIVE, TIMM, CLASSES, RECORD)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Yield an empty folder, whose files then stand in `out`.

    A new folder appears whole. In one that is there each file does, and the record says meanwhile that others follow.
    """
    if not out.exists() and not out.is_symlink():
        make_folder(out.parent)
        sweep(out.parent, out.name, older_than_s=HOUR_S)
        with whole(out) as part:
            part.mkdir()
            yield part
        return
    make_folder(out)
    sweep(out, "export", older_than_s=HOUR_S)
    with workspace(out, "export") as folder:
        yield folder
        names = [path.name for path in sorted(folder.iterdir())]
        if RECORD in names:
            write_text(out / RECORD, unfinished())
        elif is_ours(out / RECORD):  # it would tell of other weights
            remove(out / RECORD)
        for name in sorted(names, key=lambda one: one == RECORD):
            put(folder / name, out / name)


def refuse_a_runs_place(run_dir: Path, out_dir: Path) -> None:
    """Raise ValueError for a folder that is a run's, or where a file lies by which the run can be done again."""
    run, out = run_dir.resolve(), out_dir.resolve()
    for folder in (out, *out.parents):
        if folder == run or all((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
            what = "is" if folder == out else "lies in"
            raise ValueError(
                f"{out_dir} {what} the folder of a run, which keeps its own files: name another folder"
            )
    for field, path in _files_of(run):
        if path.parent.resolve() == out and path.name in (*FILES.values(), FP16, INT8, *_BESIDE):
            raise ValueError(f"{path} is {field} of the run: name a folder where it is not written over")


def refuse_others(out: Path) -> None:
    """Raise ValueError where a file stands that an export would write over, and no export wrote."""
    if is_ours(out / RECORD):
        return
    for name in _BESIDE:
        if (out / name).exists():
            raise ValueError(f"{out / name} is there and no export wrote it: name another folder")


def _files_of(run: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of weights that a run's configuration names, each with its field."""
    try:
        tree = load_yaml(run / "config.yaml")
    except (OSError, ValueError):  # a student is exported from its own file alone
        return
    for group in ("teacher", "student"):
        value = (tree.get(group) or {}).get("weights") if isinstance(tree, dict) else None
        if value not in (None, "random"):
            path = Path(value)
            yield f"{group}.weights", path / "student.safetensors" if path.is_dir() else path
