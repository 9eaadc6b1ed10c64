"""An exported folder as a deployer has it: used without fastanc, and told by its card."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastanc.cli import main
from fastanc.jobs.card import Exported, card
from fastanc.jobs.predict import read_image
from fastanc.models import zoo
from fastanc.models.published_facts import class_names, licence_of
from fastanc.models.taps import Tapped
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.order import evaluation_picks
from fastanc.pipelines.views import CentreCrop
from fastanc.training.folder import finish_folder
from support.images import class_folders, encoded, odd_picture
from support.tiny_run import LENETS, as_words

PX, RESIZED = 64, 72  # a network of torchvision's that is soon traced reads them
ROOT = Path(__file__).resolve().parent.parent
ALONE = "import sys; sys.modules['fastanc'] = None\n"
NAMES = ["Żaba, a frog", "n01", "鯨", "dog"]


def photographs(folder: Path) -> Path:
    """A labelled set of 4 classes, 40 validation images: real ones where there are some."""
    data = class_folders(folder / "train", **dict.fromkeys("abcd", 4)).parent
    real = sorted((Path(os.environ.get("FASTANC_DATA", "/nowhere")) / "imagenet-samples").glob("*/*.JPEG"))[
        :40
    ]
    for k in range(40):
        place = data / "val" / "abcd"[k % 4]
        place.mkdir(parents=True, exist_ok=True)
        if real:
            shutil.copyfile(real[k], place / f"{k:02d} ö.jpg")
        else:
            (place / f"{k:02d} ö.jpg").write_bytes(encoded(odd_picture(100 + k)))
    return data


def judged(data: Path) -> Tensor:
    """The validation images as a run's evaluation sees them, uint8."""
    val = open_dataset(str(data), "val").on("cpu")
    return torch.cat([b.images for b in val.batches(evaluation_picks(40, 16), CentreCrop(PX, RESIZED))])


def finished(folder: Path, name: str, data: Path, **extra: object) -> Tapped:
    """Write the folder of a run that trained the named student."""
    torch.manual_seed(3)
    student = zoo.build(name, num_classes=4, image_px=PX, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    images = judged(data)
    with torch.no_grad():
        student.train()
        student(images)
        # What makes the logits gets the same mean for every class, so that guesses differ, and by margins.
        *_, head = (m for m in student.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
        head.weight.mul_(50)
        given: list[Tensor] = []
        hook = head.register_forward_hook(lambda module, args, out: given.append(out))
        student.eval()(images)
        hook.remove()
        head.bias.sub_(given[0].transpose(0, 1).flatten(1).mean(1))
    folder.mkdir(parents=True)
    zoo.save_weights(student, folder / "student.safetensors")
    (folder / "metrics.jsonl").touch()
    config = {
        "data": {"name": str(data), "image_px": PX, "resize_px": RESIZED},
        "method": {"type": "supervised"},
        "student": {"name": name},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    summary = {"name": "mine", "student": name, "params": 5, "macs": 7, "val": {"top1": 0.25, "loss": 1.5}}
    finish_folder(folder, {**summary, **extra}, NAMES)
    return student.eval()


class Made:
    """A run, its data, and what was exported of it."""

    def __init__(self, root: Path, name: str, *words: str) -> None:
        self.data = photographs(root / "data")
        self.student = finished(root / "run", name, self.data)
        self.run, self.out = root / "run", root / "out"
        assert main(["export", str(self.run), str(self.out), *words]) == 0
        self.images = judged(self.data)
        with torch.no_grad():
            self.logits = self.student(self.images).logits
        self.files = [str(path) for path in sorted(self.data.glob("val/*/*"))]


@pytest.fixture(scope="module")
def of_torchvision(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    words = ("--formats", "safetensors", "torch_export", "onnx", "--fp16", "--int8")
    return Made(tmp_path_factory.mktemp("tv"), "torchvision:squeezenet1_1", *words)


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("timm")
    return Made(tmp_path_factory.mktemp("timm"), "timm:test_resnet", "--formats", "safetensors")


def alone(code: str, *words: object) -> str:
    """Run code in a process that cannot import fastanc and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE + code, *map(str, words)], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def logits_alone(made: Made, make: str) -> Tensor:
    """Logits of the evaluation's images from the network that library code makes, out of fastanc's reach."""
    torch.save(made.images, made.out.parent / "images.pt")
    code = f"""
import torch
from safetensors.torch import load_file
folder = sys.argv[1]
{make}
says = __import__('json').load(open(folder + '/preprocess.json'))
mean, std = (torch.tensor(says[k]).view(-1, 1, 1) for k in ('mean', 'std'))
images = torch.load(folder + '/../images.pt')
with torch.no_grad():
    torch.save(network.eval()((images / 255 - mean) / std), folder + '/../logits.pt')
assert not [name for name in sys.modules if name.startswith('fastanc.')]
"""
    alone(code, made.out)
    logits: Tensor = torch.load(made.out.parent / "logits.pt")
    return logits


def test_torchvision_reads_its_own_layout(of_torchvision: Made) -> None:
    make = (
        "import torchvision; network = torchvision.models.get_model('squeezenet1_1', num_classes=4)\n"
        "network.load_state_dict(load_file(folder + '/model.safetensors'))"
    )
    torch.testing.assert_close(
        logits_alone(of_torchvision, make), of_torchvision.logits, rtol=1e-4, atol=1e-4
    )


def test_timm_reads_its_own_layout(of_timm: Made) -> None:
    make = (
        "import timm; network = timm.create_model('local-dir:' + folder, pretrained=True)\n"
        "twin = timm.create_model('test_resnet', num_classes=4, checkpoint_path=folder + '/model.safetensors')\n"
        "pairs = zip(network.state_dict().values(), twin.state_dict().values(), strict=True)\n"
        "assert all(torch.equal(*pair) for pair in pairs)"
    )
    logits = logits_alone(of_timm, make)
    torch.testing.assert_close(logits, of_timm.logits, rtol=1e-4, atol=1e-4)


def predicted(made: Made, *runs: list[str], before: str = "") -> list[list[dict[str, Any]]]:
    """What predict.py says of the validation files, in the order of our evaluation; once with each run's words."""
    code = f"""{before}
import json, runpy
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name='__main__')
    except SystemExit as end:
        assert not end.code, end.code
    print()
"""
    script = str(made.out / "predict.py")
    said = alone(code, json.dumps([[script, "--json", *words, *made.files] for words in runs]))
    return [[json.loads(line) for line in part.splitlines()] for part in said.split("\n\n")[: len(runs)]]


def test_predict_says_what_our_evaluation_finds(of_torchvision: Made) -> None:
    shares = of_torchvision.logits.softmax(1)
    assert len(shares.argmax(1).unique()) > 2  # else nothing would be told apart
    programs = ("student.onnx", "student.pt2", "model.safetensors")
    for found in predicted(of_torchvision, *(["--program", program] for program in programs)):
        assert [one["image"] for one in found] == of_torchvision.files
        first = torch.tensor([one["top"][0]["class"] for one in found])
        assert torch.equal(first, of_torchvision.logits.argmax(1))
        for one, row in zip(found, shares):
            assert [guess["name"] for guess in one["top"]] == [NAMES[guess["class"]] for guess in one["top"]]
            for guess in one["top"]:
                assert guess["probability"] == pytest.approx(row[guess["class"]].item(), abs=1e-4)


@pytest.mark.slow
def test_predict_works_with_a_library_alone_and_without_torch(of_torchvision: Made, of_timm: Made) -> None:
    (found,) = predicted(of_timm, [])
    assert [one["top"][0]["class"] for one in found] == of_timm.logits.argmax(1).tolist()
    # PIL's resize differs from torch's by a level here and there.
    (found,) = predicted(of_torchvision, [], before="sys.modules['torch'] = None")
    for one, row in zip(found, of_torchvision.logits.softmax(1)):
        assert one["top"][0]["probability"] == pytest.approx(row.max().item(), abs=0.05)


def test_predict_goes_on_after_a_bad_file(of_torchvision: Made, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    words = [of_torchvision.out / "predict.py", tmp_path / "bad.jpg", of_torchvision.files[0]]
    done = subprocess.run([sys.executable, "-I", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "bad.jpg cannot be read" in done.stderr
    best = int(of_torchvision.logits[0].argmax())
    assert done.stdout.splitlines()[1].split(maxsplit=2)[1:] == [str(best), NAMES[best]]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_predict_reads_no_pixels_of_more_bits_than_training_does(
    of_torchvision: Made, tmp_path: Path, mode: str
) -> None:
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    deep = {"I;16": grey.astype(np.uint16) * 257, "I": grey.astype(np.int32), "F": grey.astype(np.float32)}[
        mode
    ]
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    with Image.open(tmp_path / "deep.tif") as file:
        assert file.mode == mode
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "grey.png")
    words = [of_torchvision.out / "predict.py", tmp_path / "deep.tif", tmp_path / "grey.png"]
    done = subprocess.run([sys.executable, "-I", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "deep.tif cannot be read: its pixels have more than 8 bits" in done.stderr
    assert done.stdout.startswith(str(tmp_path / "grey.png"))


def test_predict_goes_on_whatever_a_decoder_raises_and_takes_the_program_that_is_there(
    of_torchvision: Made, tmp_path: Path
) -> None:
    for name in ("predict.py", "preprocess.json", "classes.txt", "model.safetensors"):  # one that was copied
        shutil.copy(of_torchvision.out / name, tmp_path / name)
    # Pillow refuses a text of more than 64 MB with a ValueError, not with an OSError.
    text = zlib.compress(b"k" * (65 << 20))
    chunk = b"zTXt" + b"k\0\0" + text
    png = io.BytesIO()
    Image.new("L", (64, 64)).save(png, "PNG")
    head, rest = png.getvalue()[:33], png.getvalue()[33:]
    long = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "long.png").write_bytes(head + long + rest)
    words = [tmp_path / "predict.py", tmp_path / "long.png", of_torchvision.files[0]]
    done = subprocess.run([sys.executable, "-I", *words], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "long.png cannot be read" in done.stderr
    best = int(of_torchvision.logits[0].argmax())
    assert done.stdout.splitlines()[1].split(maxsplit=2)[1] == str(best)
    for gone, said in (
        ("model.safetensors", "cannot be run without"),
        ("preprocess.json", "export the run again"),
    ):
        (tmp_path / gone).unlink()
        done = subprocess.run([sys.executable, "-I", *words], capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert said in done.stderr


@pytest.mark.parametrize(
    "val", [None, [], {"top1": None, "loss": float("nan"), "top5": 0.5}, {"top1": float("nan"), "top5": 0.5}]
)
def test_a_card_is_written_whatever_a_summary_says(tmp_path: Path, val: object) -> None:
    run = tmp_path / "run"
    finished(run, "resnet8", photographs(tmp_path / "data"))
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"val": val, "params": 7}
    summary.pop("macs", None)
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "profile.json").write_text(
        json.dumps({"networks": {"student": []}, "device": "cpu", "threads": 1})
    )
    assert main(["export", str(run), str(tmp_path / "out"), "--formats", "safetensors"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "nan" not in card.split("## Training")[0]
    assert ("| top-5 | 50.00% |" in card) == bool(val)
    assert "model-index" not in card


def test_pixels_are_those_of_the_evaluation(of_torchvision: Made, tmp_path: Path) -> None:
    says = json.loads((of_torchvision.out / "preprocess.json").read_text())
    for path, ours in zip(of_torchvision.files, of_torchvision.images):
        assert np.array_equal(read_image(path, says), (ours / 255).numpy())
    for k, size in enumerate([(900, 40), (41, 777), (300, 1), (64, 64), (65, 20)]):
        (tmp_path / "val").mkdir(exist_ok=True)
        odd_picture(k).convert("RGB").resize(size).save(tmp_path / "val" / f"{k}.jpg", quality=95)
    val = open_dataset(str(tmp_path), "val").on("cpu")
    (batch,) = val.batches(evaluation_picks(5, 8), CentreCrop(PX, RESIZED))
    for k, ours in enumerate(batch.images):
        assert np.array_equal(read_image(str(tmp_path / "val" / f"{k}.jpg"), says), (ours / 255).numpy())


def test_onnxruntime_has_the_same_first_guesses_for_any_number_of_images(of_torchvision: Made) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(of_torchvision.out / "student.onnx"))
    images = (of_torchvision.images / 255).numpy()
    for count in (1, 7, 40):
        (logits,) = session.run(None, {"images": images[:count]})
        assert np.array_equal(logits.argmax(1), of_torchvision.logits[:count].argmax(1).numpy())


def test_fp16_is_half_as_large_and_nearly_the_same(of_torchvision: Made) -> None:
    import onnxruntime

    whole, half = (of_torchvision.out / name for name in ("student.onnx", "student_fp16.onnx"))
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    session = onnxruntime.InferenceSession(str(half))
    (logits,) = session.run(None, {"images": (of_torchvision.images / 255).numpy()})
    assert logits.dtype == np.float32
    spread = of_torchvision.logits.abs().max().item()
    assert np.abs(logits - of_torchvision.logits.numpy()).max() < 0.02 * spread


def test_int8_is_said_to_be_as_good_as_it_is(of_torchvision: Made) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(of_torchvision.out / "student_int8.onnx"))
    (logits,) = session.run(None, {"images": (of_torchvision.images / 255).numpy()})
    labels = np.array(["abcd".index(Path(file).parent.name) for file in of_torchvision.files])
    guesses, whole = logits.argmax(1), of_torchvision.logits.argmax(1).numpy()
    assert not np.allclose(logits, of_torchvision.logits.numpy(), atol=1e-6)  # it is another program
    card = (of_torchvision.out / "README.md").read_text()
    assert (
        f"static, calibrated by 16 images of the training set; top-1 {100 * (guesses == labels).mean():.2f} % (int8)"
        f" beside {100 * (whole == labels).mean():.2f} % (fp32), the same first guess for"
        f" {100 * (guesses == whole).mean():.2f} % of 40 validation images" in card
    )


@pytest.mark.slow
def test_int8_without_its_images_is_dynamic_and_says_so(
    of_torchvision: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(of_torchvision.run, run)
    config = json.loads((run / "config.yaml").read_text())
    config["data"]["name"] = str(tmp_path / "gone")
    (run / "config.yaml").write_text(json.dumps(config))
    assert main(["export", str(run), str(tmp_path / "out"), "--formats", "onnx", "--int8"]) == 0
    said = capsys.readouterr().out
    assert "student_int8.onnx: dynamic, without images; how good it is was not measured" in said
    assert "gone" in said
    assert (tmp_path / "out" / "student_int8.onnx").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "how good it is was not measured: its images were not there" in card
    assert str(tmp_path) not in card


def test_the_card_is_read_by_the_hub_and_names_no_place(of_torchvision: Made) -> None:
    card = huggingface_hub.ModelCard.load(of_torchvision.out / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.25, "data")
    assert str(of_torchvision.data.parent) not in card.content
    for said in ("# mine", "resize_px: 72", "torchvision.models.get_model", "| top-1 | 25.00% |", "author"):
        assert said in card.content


def test_no_file_of_an_export_names_a_place_of_this_machine(of_torchvision: Made) -> None:
    """torch writes into its programs of which line of which file every operation is."""
    places = [str(of_torchvision.data.parent), str(ROOT), sys.prefix, str(Path(torch.__file__).parent)]
    looked = 0
    for path in sorted(of_torchvision.out.iterdir()):
        parts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = [archive.read(name) for name in archive.namelist()]
        for part in parts:
            looked += 1
            assert [place for place in places if place.encode() in part] == [], path.name
    assert looked > len(list(of_torchvision.out.iterdir())), "the program of torch.export has several"


def test_a_teachers_licence_is_told_where_it_is_published(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    data = photographs(tmp_path / "data")
    run = tmp_path / "run"
    finished(run, "resnet8", data, teacher="timm:resnet50.a1_in1k")
    profile = {
        "networks": {"student": {"name": "s", "parameters": 5, "macs": 7, "bytes": 20}},
        **{"device": "cpu", "threads": 1, "precision": "fp32", "batches": [1]},
    }
    profile["networks"]["student"] |= {"latency_s": {"1": 0.25}, "images_per_s": 4, "peak_bytes": None}
    (run / "profile.json").write_text(json.dumps(profile))
    assert main(["export", str(run), str(tmp_path / "out"), "--formats", "safetensors"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`timm:resnet50.a1_in1k` (licence apache-2.0 by timm)" in card
    assert "latency of 1 image, ms" in card
    # Nothing here runs without fastanc: its own network, and no program.
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "classes.txt", "preprocess.json", "student.safetensors")
    }
    assert (licence_of("torchvision:resnet18@IMAGENET1K_V1"), licence_of("resnet8")) == ("", "")


def test_a_vote_of_neighbours_is_no_accuracy_of_a_classifier(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "x").mkdir(parents=True)
    val = {"top1": 0.75, "error_pct": 25.0, "agreement_pct": 10.0, "teacher_top1": 0.5}
    (run / "summary.json").write_text(json.dumps({"name": "features", "val": val}))
    told = {}
    for gives in ("features", "logits"):
        says = {"gives": gives, "channels": "RGB", "resize_px": 8, "image_px": 8, "interpolation": "bilinear"}
        says |= {"mean": [0.5], "std": [0.5]}
        told[gives] = card(Exported(run=run, files=[], says=says, native=None, command="c", notes=[]))
    assert "| top-1 of a vote of the 20 nearest validation images | 75.00% |" in told["features"]
    assert "| same nearest validation image as the teacher, % | 10.00 |" in told["features"]
    assert "model-index" not in told["features"]
    assert "accuracy" not in told["features"]
    assert "| top-1 | 75.00% |" in told["logits"]
    assert huggingface_hub.ModelCard(told["logits"]).data.eval_results[0].metric_value == 0.75


def test_published_weights_name_their_classes() -> None:
    import torchvision

    there = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert class_names("torchvision:resnet18@IMAGENET1K_V1") == there
    assert class_names("torchvision:resnet18") == class_names("resnet8") == []


def test_a_run_without_a_configuration_leaves_out_what_needs_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "run", "resnet8", photographs(tmp_path / "data"))
    (tmp_path / "run" / "config.yaml").unlink()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--formats", "safetensors"]) == 0
    assert "has no config.yaml of its student: predict.py" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["student.safetensors"]


@pytest.fixture
def mask() -> Iterator[None]:
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def assert_modes(folder: Path, umask: int) -> None:
    assert list(folder.rglob("*"))
    for path in folder.rglob("*"):
        whole = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == whole & ~umask, path


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.usefixtures("mask")
def test_an_exports_files_have_the_umasks_mode(tmp_path: Path, umask: int, of_timm: Made) -> None:
    os.umask(umask)
    for _ in range(2):  # a new folder, and one that is there
        assert main(["export", str(of_timm.run), str(tmp_path / "out"), "--formats", "safetensors"]) == 0
        assert_modes(tmp_path, umask)


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.usefixtures("mask")
def test_all_that_a_run_writes_has_the_umasks_mode(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    os.umask(umask)
    fields = {**LENETS, "teacher.cache": "fill", "run.max_steps": "2", "data.batch": "64"}
    assert main(["train", *as_words({**fields, "run.name": "x", "run.checkpoint_every": "1"})]) == 0
    formats = ["--formats", "safetensors", "torch_export", "onnx", "--int8"]
    assert main(["export", "runs/x", "out", *formats]) == 0
    kinds = {path.suffix for path in tmp_path.rglob("*")}
    assert {".safetensors", ".pt2", ".onnx", ".pt", ".json", ".md", ".txt"} <= kinds
    assert list((tmp_path / "cache").rglob("*"))
    assert_modes(tmp_path, umask)


KILLED = """
import os, signal, sys
from fastanc import cli, files
from fastanc.jobs import place
put, left = files.put, [int(sys.argv[1])]
def counted(part, path):
    if path.parent.name == 'out' or path.name == 'out':
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    put(part, path)
files.put = place.put = counted
cli.main(['export', *sys.argv[2:], '--formats', 'safetensors'])
"""


def killed_after(puts: int, run: Path, out: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(puts), run, out], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_or_what_says_that_it_is_unfinished(
    of_torchvision: Made, of_timm: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed_after(0, of_timm.run, out)
    assert not out.exists()
    assert main(["export", str(of_torchvision.run), str(out), "--formats", "safetensors"]) == 0
    (out / "mine.txt").write_text("mine")
    killed_after(3, of_timm.run, out)  # the record, and two of the files
    words = [sys.executable, out / "predict.py", of_timm.files[0]]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "was not written to its end" in done.stderr
    assert main(["export", str(of_timm.run), str(out), "--formats", "safetensors"]) == 0
    assert {path.name for path in of_timm.out.iterdir()} <= {path.name for path in out.iterdir()}
    assert (out / "model.safetensors").read_bytes() == (of_timm.out / "model.safetensors").read_bytes()
    assert (out / "mine.txt").read_text() == "mine"
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["README.md", "config.json", "predict.py", "preprocess.json", "classes.txt"])
def test_a_users_own_files_are_not_written_over(
    of_timm: Made, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("{}")
    assert main(["export", str(of_timm.run), str(tmp_path), "--formats", "safetensors"]) == 2
    assert f"{name} is there and no export wrote it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


class Hub:
    """A stand-in for HfApi."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, list[dict[str, Any]]()

    def create_repo(self, name: str, **options: Any) -> huggingface_hub.RepoUrl:
        self.calls.append({"name": name, **options})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{name.split('/')[-1]}")

    def upload_folder(self, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(options)


def test_push_uploads_the_exports_own_files_and_only_when_asked(
    of_timm: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    words = ["export", str(of_timm.run), str(tmp_path), "--formats", "safetensors"]
    assert main(words) == 0
    assert hub.calls == []
    (tmp_path / "secret.txt").write_text("mine")
    assert main([*words, "--push", "student"]) == 0
    made, sent = hub.calls
    assert made == {"name": "student", "private": True, "exist_ok": True}
    assert (sent["repo_id"], sent["folder_path"]) == ("me/student", str(tmp_path))
    assert set(sent["allow_patterns"]) == {path.name for path in of_timm.out.iterdir()}
    assert "pushed to https://huggingface.co/me/student" in capsys.readouterr().out


def test_a_push_that_cannot_be_is_one_sentence(
    of_timm: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(of_timm.run), str(tmp_path / "out"), "--formats", "safetensors", "--push"]
    assert main([*words, "a/b/c"]) == 2
    assert "--push 'a/b/c' is no repository's name: write USER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(OSError("no token\nand more")))
    assert main([*words, "me/student"]) == 2
    assert "--push me/student: the hub did not take" in (said := capsys.readouterr().err)
    assert "OSError: no token)" in said
    assert (tmp_path / "out" / "preprocess.json").is_file()


def test_int8_without_onnxruntime_is_one_sentence(
    of_timm: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(of_timm.run), str(tmp_path / "out"), "--int8"]) == 2
    assert "--int8 needs onnxruntime: pip install 'fastanc[export]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_grey_students_are_shown_grey_images(tmp_path: Path) -> None:
    says = {"channels": "L", "image_px": 28, "resize_px": 28}
    pixels = np.arange(28 * 28, dtype=np.uint32).reshape(28, 28).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(str(tmp_path / "a.png"), says)[0], pixels / np.float32(255))
