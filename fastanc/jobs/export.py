"""A trained student for use elsewhere: weights and programs, each checked, and what a deployer needs beside them."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastanc.files import write_text
from fastanc.jobs.card import Exported, card
from fastanc.jobs.classifier import Classifier, Unchecked, compare
from fastanc.jobs.native import Native, native_of, write_native, write_timm_config
from fastanc.jobs.place import (
    CARD,
    FILES,
    FP16,
    INT8,
    NATIVE,
    PREDICT,
    TIMM,
    appearing,
    refuse_a_runs_place,
    refuse_others,
)
from fastanc.jobs.preprocessing import RECORD, class_names_of, preprocessing_of, resize_of
from fastanc.jobs.programs import (
    Halved,
    Run,
    need_onnx,
    need_onnxruntime,
    read_onnx,
    read_program,
    run_by_onnxruntime,
    write_program,
)
from fastanc.jobs.push import hub_api, push
from fastanc.models import zoo
from fastanc.models.taps import Tapped, unwrapped
from fastanc.models.weights import fit_weights, read_weights, save_weights
from fastanc.quoting import counted, shown
from fastanc.training.folder import BEST, CLASSES, read_summary

__all__ = ["FORMATS", "Classifier", "Extras", "export", "export_run", "load_student"]

FORMATS = tuple(FILES)
_HALF = 0.02
"""Of the largest logit: what fp16's 11 bits may cost in a deep network."""


class Extras(NamedTuple):
    """What an export has beside its formats."""

    fp16: bool = False
    int8: bool = False
    push: str | None = None
    """Repository of the Hugging Face hub that the folder is uploaded to."""
    best: bool = False
    """The student of the best evaluation, in the place of the last one."""


NONE = Extras()


def export(
    student: torch.nn.Module,
    out_dir: Path,
    formats: Sequence[str] = FORMATS,
    *,
    say: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Write the bare network in each format, read every file back and compare its logits.

    The files take their names when all are written and checked; on any error the folder is as it was.

    Args:
        student: a tapped network; what a method has put around it is left out. It is not changed.
        out_dir: the folder of the files; made if missing.
        formats: of "safetensors" (weights, with mean and std beside them), "torch_export" (student.pt2) and
            "onnx"; the last two take any number of images of the student's size.
        say: told of a file that could not be checked.

    Returns:
        The written file of each format.

    Raises:
        ValueError: an unknown format, or a missing package for ONNX.
        RuntimeError: a file gives other logits than the student.
        OSError: the folder cannot be written.
    """
    _check_formats(formats)
    with appearing(Path(out_dir)) as folder:
        _write_formats(_Written(student, folder, Path(out_dir), say), formats)
    return {name: Path(out_dir) / FILES[name] for name in formats}


def export_run(
    run_dir: Path,
    out_dir: Path,
    formats: Sequence[str] = FORMATS,
    extras: Extras = NONE,
    *,
    say: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Write a finished run's student in each format, as `export` does, and what a deployer needs beside it.

    That is weights as torchvision or timm read them, where the student is theirs, preprocess.json, classes.txt,
    predict.py and a card. A new folder appears whole; in one that is there preprocess.json, without which predict.py
    does nothing, is written last. ValueError where that would harm a run, or files that no export wrote.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    formats = _with_extras(formats, extras)
    api = None if extras.push is None else hub_api(extras.push)
    refuse_a_runs_place(run_dir, out_dir)
    refuse_others(out_dir)
    student = load_student(run_dir, best=extras.best)
    with appearing(out_dir) as folder:
        written = _Written(student, folder, out_dir, say)
        _write_formats(written, formats)
        notes = [*_best_note(run_dir, extras), *_write_extras(written, run_dir, extras)]
        _write_beside(written, run_dir, notes, _command(run_dir, out_dir, formats, extras))
        names = [path.name for path in sorted(folder.iterdir())]
    if extras.push is not None:
        say(f"pushed to {push(api, extras.push, out_dir, names)}")
    kinds = {file: kind for kind, file in FILES.items()}
    return {kinds.get(name, name): out_dir / name for name in sorted(names, key=lambda one: one not in kinds)}


class _Written:
    """A folder that is being filled with one student's files, each compared with it."""

    def __init__(self, student: torch.nn.Module, folder: Path, out: Path, say: Callable[[str], None]) -> None:
        self.student, self.folder, self.out, self.say = student, folder, out, say
        self.tapped, self.classifier = unwrapped(student), Classifier(student)
        self.shape = (self.tapped.in_channels, self.tapped.image_px, self.tapped.image_px)
        # Another number of images than the one traced, so that a batch size frozen into a file is found.
        self.probe = torch.rand(3, *self.shape, generator=torch.Generator().manual_seed(0))
        self.expected = self.classifier(self.probe)

    @property
    def example(self) -> Tensor:
        """Images that a program is traced with."""
        return torch.rand(2, *self.shape)

    def check(self, name: str, read: Callable[[Path, Classifier], Run], within: float = 1e-4) -> None:
        """Compare a file with the student; RuntimeError where it gives other logits."""
        try:
            logits = read(self.folder / name, self.classifier)(self.probe)
        except Unchecked as reason:
            self.say(f"{self.out / name} is not checked: {reason}")
            return
        compare(logits, self.expected, self.out / name, within)


def _check_formats(formats: Sequence[str]) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"export format {shown(unknown[0])} is unknown: take {', '.join(FORMATS)}")
    if "onnx" in formats:
        need_onnx()


def _with_extras(formats: Sequence[str], extras: Extras) -> list[str]:
    """The formats, with ONNX where an extra is made of it; ValueError where one cannot be."""
    wanted = list(dict.fromkeys([*formats, *(["onnx"] if extras.fp16 or extras.int8 else [])]))
    _check_formats(wanted)
    if extras.int8:
        need_onnxruntime("--int8")
    return wanted


def _write_formats(written: _Written, formats: Sequence[str]) -> None:
    for name in formats:
        part = written.folder / FILES[name]
        if name == "safetensors":
            save_weights(written.student, part)
        else:
            write_program(written.classifier, written.example, part)
        written.check(part.name, _READERS[name])


def _write_extras(written: _Written, run_dir: Path, extras: Extras) -> list[str]:
    """Write the programs in fewer bits, and return what is to be said of them."""
    notes: list[str] = []
    if extras.fp16:
        write_program(Halved(written.classifier), written.example, written.folder / FP16)
        written.check(FP16, read_onnx, _HALF)
    if extras.int8:
        notes += _write_int8(written, run_dir)
    for note in notes:
        written.say(note)
    return notes


def _best_note(run_dir: Path, extras: Extras) -> list[str]:
    """What the card says of a student that is not the last one, of which its measures are."""
    if not extras.best:
        return []
    found = (read_summary(run_dir) or {}).get("best") or {}
    said = (
        f": {found['metric']} {found['value']:.4g} after {counted(found['steps'], 'step')}" if found else ""
    )
    return [f"The student is that of the best evaluation{said}; the measures here are of the last one."]


def _write_int8(written: _Written, run_dir: Path) -> list[str]:
    from fastanc.jobs.quantised import images_of, judge, quantise

    folder, images, why = written.folder, None, ""
    try:
        images = images_of(run_dir)
    except (OSError, ValueError) as error:
        written.say(str(error).splitlines()[0])  # where they should lie is no matter of the card's readers
        why = "its images were not there"
    how = f"{INT8}: {quantise(folder / FILES['onnx'], folder / INT8, images)}"
    if written.tapped.headless:
        why = "it knows no classes"
    elif images is not None:
        programs = {"fp32": folder / FILES["onnx"], "int8": folder / INT8}
        return [f"{how}; {judge(programs, images, written.tapped.num_classes).told(('fp32', 'int8'))}"]
    run_by_onnxruntime(folder / INT8)(written.probe)  # at least it runs
    return [f"{how}; how good it is was not measured: {why}"]


def _write_beside(written: _Written, run_dir: Path, notes: Sequence[str], command: str) -> None:
    """Write what others need beside the formats; of a run that does not say how it showed images, nothing."""
    folder, student = written.folder, written.tapped
    resize_px = resize_of(run_dir, student)
    if resize_px is None:
        written.say(
            f"{run_dir} has no config.yaml of its student: {PREDICT}, {CARD} and {RECORD} are left out"
        )
        return
    native = _write_library(written)
    names = class_names_of(run_dir, student)
    if names:
        write_text(folder / CLASSES, "".join(f"{name}\n" for name in names))
    files = [path.name for path in sorted(folder.iterdir())]
    says = preprocessing_of(student, resize_px, files, native, bool(names))
    if native is not None and native.library == "timm":
        write_timm_config(native, says, names, folder / TIMM)
    if says["first"] and not student.headless:
        script = resources.files("fastanc.jobs").joinpath("predict.py")
        write_text(folder / PREDICT, script.read_text(encoding="utf-8"))
    write_text(folder / RECORD, json.dumps(says, indent=1))
    files = [path.name for path in sorted(folder.iterdir())]
    about = Exported(run=run_dir, files=files, says=says, native=native, command=command, notes=notes)
    write_text(folder / CARD, card(about))


def _write_library(written: _Written) -> Native | None:
    """Write the weights in their library's layout, if there are weights and one."""
    if not (written.folder / FILES["safetensors"]).is_file():
        return None
    native = native_of(written.tapped, written.classifier, written.probe)
    if native is not None:
        write_native(written.classifier, written.folder / NATIVE)
    elif written.tapped.name.startswith(("torchvision:", "timm:")):
        written.say(
            f"{NATIVE} is left out: {written.tapped.name} as it was trained is not made by its library alone"
        )
    return native


def _command(run: Path, out: Path, formats: Sequence[str], extras: Extras) -> str:
    words = ["fastanc", "export", run.name or str(run), out.name or str(out), "--formats", *formats]
    words += [
        word
        for word, asked in (("--fp16", extras.fp16), ("--int8", extras.int8), ("--best", extras.best))
        if asked
    ]
    return shlex.join(words)


def load_student(run_dir: Path, *, best: bool = False) -> Tapped:
    """Build the student that a run left behind, or its best one; FileNotFoundError when there is none."""
    if best:
        if not (run_dir / BEST).is_file():
            raise FileNotFoundError(
                f"{run_dir} has no {BEST}: name the folder of a run with run.best that was evaluated"
            )
        return zoo.load_weights(run_dir / BEST)
    if not (run_dir / "student.safetensors").is_file():
        raise FileNotFoundError(f"{run_dir} has no student.safetensors: name the folder of a finished run")
    return zoo.load_weights(run_dir / "student.safetensors")


def _read_safetensors(path: Path, classifier: Classifier) -> Run:
    twin = copy.deepcopy(classifier)
    for parameter in twin.bare.parameters():
        parameter.fill_(float("nan"))
    fit_weights(twin.bare, read_weights(path)[0], path)
    return twin


_READERS = {"safetensors": _read_safetensors, "torch_export": read_program, "onnx": read_onnx}
