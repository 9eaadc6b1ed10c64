"""Exported files against the student they came from."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastanc.cli import main
from fastanc.jobs import export as exporting
from fastanc.jobs.export import Classifier, export
from fastanc.models import zoo
from fastanc.models.taps import Adapted, Tapped

MEAN, STD = (0.1, 0.4, 0.7), (0.2, 0.25, 0.5)


def tiny() -> Tapped:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    tapped = Tapped(network, mean=MEAN, std=STD, stages=("2",), image_px=12)
    tapped(torch.rand(16, 3, 12, 12))  # statistics that are not the initial ones
    return tapped


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (7, 3, 12, 12), dtype=torch.uint8)


def test_program_takes_any_batch_and_gives_the_students_logits(tmp_path: Path, images: Tensor) -> None:
    student = tiny()
    path = export(student, tmp_path, ("torch_export",))["torch_export"]
    program = torch.export.load(path).module()
    taken = images / 255
    expected = student.eval()(images).logits
    torch.testing.assert_close(program(taken), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(program(taken[:1]), expected[:1], rtol=1e-5, atol=1e-5)


def test_weights_build_the_same_network_again(tmp_path: Path) -> None:
    student = zoo.build("resnet8", num_classes=10, mean=MEAN, std=STD)
    student(torch.rand(16, 3, 32, 32))
    path = export(student, tmp_path, ("safetensors",))["safetensors"]
    batch = torch.rand(3, 3, 32, 32)
    assert torch.equal(zoo.load_weights(path).eval()(batch).logits, student.eval()(batch).logits)


def test_adapter_is_left_out_and_the_student_untouched(tmp_path: Path, images: Tensor) -> None:
    student = Adapted(tiny().to(memory_format=torch.channels_last), 64)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    path = export(student, tmp_path, ("torch_export",))["torch_export"]
    program = torch.export.load(path)
    bare = {f"bare.{key}" for key in tiny().bare.state_dict()}
    assert set(program.state_dict) == bare | {"scale", "shift"}
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    for key, value in student.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.is_contiguous(memory_format=torch.channels_last) or value.ndim != 4
    expected = student.eval()(images).logits
    torch.testing.assert_close(program.module()(images / 255), expected, rtol=1e-5, atol=1e-5)


def test_classifier_of_a_compiled_student_is_plain(images: Tensor) -> None:
    student = tiny().eval()
    student.bare.compile(backend="eager")
    plain = Classifier(student)
    assert plain.bare._compiled_call_impl is None
    torch.testing.assert_close(plain(images / 255), student(images).logits)


def test_onnx_gives_the_students_logits(tmp_path: Path, images: Tensor) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    student = tiny()
    path = export(student, tmp_path, ("onnx",))["onnx"]
    assert [file.name for file in tmp_path.iterdir()] == ["student.onnx"]
    graph = onnx.load(path).graph
    assert [one.name for one in (*graph.input, *graph.output)] == ["images", "logits"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    program = onnx.reference.ReferenceEvaluator(str(path))
    (logits,) = program.run(None, {"images": (images / 255).numpy()})
    expected = student.eval()(images).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)


def test_a_file_with_other_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = exporting.save_weights

    def save_another(student: Tapped, path: Path) -> None:
        save(tiny(), path)

    monkeypatch.setattr(exporting, "save_weights", save_another)
    old = {name: f"old {name}" for name in ("student.safetensors", "student.pt2")}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RuntimeError, match=r"student\.safetensors gives other logits") as refused:
        export(tiny(), tmp_path, ("torch_export", "safetensors"))
    assert str(tmp_path / "student.safetensors") in str(refused.value)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old


def test_a_program_that_onnx_cannot_run_is_kept_and_said_not_to_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")

    def lacks(*args: object) -> None:
        raise NotImplementedError("no operator Conv\nand more")

    monkeypatch.setattr(onnx.reference, "ReferenceEvaluator", lacks)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said: list[str] = []
    path = export(tiny(), tmp_path, ("onnx",), say=said.append)["onnx"]
    onnx.checker.check_model(str(path))
    assert said == [
        f"{path} is not checked: onnx.reference cannot run it (NotImplementedError: no operator Conv)"
    ]


def test_an_export_killed_before_its_files_are_named_leaves_none(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from fastanc.models import zoo\n"
        "from fastanc.jobs import export as e, place\n"
        "def put(*paths): os.kill(os.getpid(), signal.SIGKILL)\n"
        "place.put = put; e.export(zoo.build('lenet5', num_classes=10), Path(sys.argv[1]), ('safetensors',))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path])
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".export.")
    os.utime(left, (0, 0))
    for path in left.iterdir():
        os.utime(path, (0, 0))
    export(tiny(), tmp_path, ("safetensors",))
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]


def test_wrong_format_and_missing_package_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="'tflite' is unknown: take safetensors, torch_export, onnx"):
        export(tiny(), tmp_path, ("safetensors", "tflite"))
    if importlib.util.find_spec("onnx"):
        monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"needs onnx.*pip install onnx onnxscript"):
        export(tiny(), tmp_path, ("safetensors", "onnx"))
    assert list(tmp_path.iterdir()) == []


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_job_writes_over_what_a_run_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs, and the folder of a teacher's weights: after every refused command all bytes are what they were."""
    student = zoo.build("lenet5_half", num_classes=3)
    run, other, teacher = (tmp_path / name for name in ("run", "other", "teacher"))
    for folder in (run, other, teacher):
        folder.mkdir()
        zoo.save_weights(student, folder / "student.safetensors")
    for folder in (run, other):
        (folder / "metrics.jsonl").touch()
        (folder / "config.yaml").write_text(f"teacher: {{weights: {teacher / 'student.safetensors'}}}\n")
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("mine")
    (tmp_path / "photos.tar").write_text("mine")
    before = files_below(tmp_path)
    for words, said in (
        (["export", run, run], "is the folder of a run"),
        (["export", run, tmp_path / "link"], "is the folder of a run"),
        (["export", run, run / "deeper" / "out"], "lies in the folder of a run"),
        (["export", run, other], "is the folder of a run"),
        (["export", run, teacher], "is teacher.weights of the run"),
        (["report", run, "--out", run / "student.safetensors"], "exists and is no report"),
        (["demo", "--out", tmp_path], "holds thesis.tex"),
        (["cache", "export", tmp_path, tmp_path / "photos.tar"], "photos.tar exists"),
    ):
        assert main([str(word) for word in words]) == 2, words
        assert said in capsys.readouterr().err
        assert files_below(tmp_path) == before
    assert main(["export", str(run), str(tmp_path / "out"), "--formats", "safetensors"]) == 0
    assert main(["export", str(run), str(tmp_path / "out"), "--formats", "safetensors"]) == 0  # over its own
