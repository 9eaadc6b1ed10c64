"""A trained student for use elsewhere: weights, torch.export and ONNX, each checked before it takes its name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastanc.files import HOUR_S, make_folder, put, sweep, workspace
from fastanc.models import zoo
from fastanc.models.headless import features_in
from fastanc.models.taps import Tapped, logits_of, unwrapped
from fastanc.models.weights import fit_weights, read_weights, save_weights
from fastanc.plain_yaml import load_yaml
from fastanc.quoting import shown
from fastanc.training.folder import BEST

FORMATS = ("safetensors", "torch_export", "onnx")
_FILES = {"safetensors": "student.safetensors", "torch_export": "student.pt2", "onnx": "student.onnx"}


class Classifier(nn.Module):
    """A student without taps, adapter and the like: images [B, C, H, W] float 0..1 -> logits [B, K].

    One that knows no classes gives its features [B, D].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        own = copy.deepcopy(unwrapped(student)).cpu().eval().requires_grad_(False)
        own.to(memory_format=torch.contiguous_format)
        self.bare, self.headless = own.bare, own.headless
        self.register_buffer("scale", own.scale)
        self.register_buffer("shift", own.shift)

    @property
    def gives(self) -> str:
        """What an ONNX program calls its output."""
        return "features" if self.headless else "logits"

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits or features; the normalisation is inside."""
        output = self.bare(torch.addcmul(self.shift, images, self.scale))
        return features_in(output) if self.headless else logits_of(output)


def export(
    student: nn.Module,
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
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"export format {shown(unknown[0])} is unknown: take {', '.join(FORMATS)}")
    if "onnx" in formats:
        _need_onnx()
    out_dir = Path(out_dir)
    make_folder(out_dir)
    sweep(out_dir, "export", older_than_s=HOUR_S)
    classifier = Classifier(student)
    tapped = unwrapped(student)
    shape = (tapped.in_channels, tapped.image_px, tapped.image_px)
    # Another number of images than the one traced, so that a batch size frozen into a file is found.
    probe = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    expected = classifier(probe)
    paths = {name: out_dir / _FILES[name] for name in formats}
    with workspace(out_dir, "export") as folder:
        for name, path in paths.items():
            part = folder / path.name
            if name == "safetensors":
                save_weights(student, part)
            else:
                _trace(classifier, torch.rand(2, *shape), name, part)
            try:
                logits = _READERS[name](part, classifier)(probe)
            except _Unchecked as reason:
                say(f"{path} is not checked: {reason}")
                continue
            _compare(logits, expected, path)
        for path in paths.values():
            put(folder / path.name, path)
    return paths


def export_run(
    run_dir: Path, out_dir: Path, formats: Sequence[str] = FORMATS, *, best: bool = False
) -> dict[str, Path]:
    """Write a run's student in each format, as `export` does: the last one of a finished run, or the best so far.

    Raises ValueError where that would harm a run, FileNotFoundError where there is no such student.
    """
    _refuse_a_runs_place(run_dir, out_dir)
    return export(load_student(run_dir, best=best), out_dir, formats)


def _refuse_a_runs_place(run_dir: Path, out_dir: Path) -> None:
    """Raise ValueError for a folder that is a run's, or where a file lies by which the run can be done again."""
    run, out = run_dir.resolve(), out_dir.resolve()
    for folder in (out, *out.parents):
        if folder == run or all((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
            what = "is" if folder == out else "lies in"
            raise ValueError(
                f"{out_dir} {what} the folder of a run, which keeps its own files: name another folder"
            )
    for field, path in _files_of(run):
        if path.parent.resolve() == out and path.name in _FILES.values():
            raise ValueError(f"{path} is {field} of the run: name a folder where it is not written over")


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


class _Unchecked(Exception):
    """A file that may be right and cannot be run here; the message says why."""


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


def _trace(classifier: Classifier, example: Tensor, name: str, path: Path) -> None:
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(classifier, (example,), dynamic_shapes=batch)
    if name == "torch_export":
        torch.export.save(program, path)
        return
    torch.onnx.export(
        program,
        f=str(path),
        input_names=["images"],
        output_names=[classifier.gives],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _compare(logits: Tensor, expected: Tensor, path: Path) -> None:
    worst = (logits - expected).abs().max().item()
    if not worst <= 1e-4 * max(1.0, expected.abs().max().item()):
        raise RuntimeError(
            f"{path} gives other logits than the student (by up to {worst:.2g}): nothing was"
            " written, leave that format out"
        )


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"ONNX export needs {error.name}: pip install onnx onnxscript") from error


def _read_safetensors(path: Path, classifier: Classifier) -> Callable[[Tensor], Tensor]:
    twin = copy.deepcopy(classifier)
    for parameter in twin.bare.parameters():
        parameter.fill_(float("nan"))
    fit_weights(twin.bare, read_weights(path)[0], path)
    return twin


def _read_program(path: Path, classifier: Classifier) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _read_onnx(path: Path, classifier: Classifier) -> Callable[[Tensor], Tensor]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise RuntimeError(f"{path.name} is no valid ONNX program: {error}") from error
    except Exception as error:
        raise _Unchecked(f"onnx.checker cannot read it ({_brief(error)})") from error

    def run(images: Tensor) -> Tensor:
        try:
            logits, *_ = ReferenceEvaluator(str(path)).run([classifier.gives], {"images": images.numpy()})
        except Exception as error:  # an operator that it lacks, or its memory: nothing about the file
            raise _Unchecked(f"onnx.reference cannot run it ({_brief(error)})") from error
        return torch.from_numpy(logits)

    return run


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"


_READERS = {"safetensors": _read_safetensors, "torch_export": _read_program, "onnx": _read_onnx}
