"""A machine without DALI: what is taken in its place, what is said of it, and that nothing else imports it."""

from __future__ import annotations

import builtins
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from fastanc.cache import column
from fastanc.cache.identity import identity
from fastanc.cache.rows import Field
from fastanc.cache.store import Store
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg import dali
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import RandomResizedCrop
from support.decoders import without_dali
from support.images import class_folders
from support.tars import tar_of_tree

COMMAND = "import sys; from fastanc.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def data(tmp_path: Path) -> JpegSet:
    index = build_index(class_folders(tmp_path / "set", one=4), workers=1, progress=False)
    return JpegSet("toy", index, (0,), (1,))


def python(code: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program where DALI is hidden."""
    around = without_dali(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=around, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_trains_caches_and_evaluates_and_says_what_decodes(tmp_path: Path) -> None:
    tree = class_folders(tmp_path / "set", one=12, two=12)
    fields = {
        "data.name": tree,
        "data.image_px": 32,
        "data.resize_px": 36,
        "data.batch": 8,
        "data.views": 1,
        "data.threads": 2,
        "teacher.weights": "random",
        "teacher.name": "lenet5",
        "student.name": "lenet5_half",
        "schedule.epochs": 1,
        "run.name": "hidden",
    }
    words = ["train", *(word for key, value in fields.items() for word in (f"--{key}", str(value)))]
    refused = python(COMMAND, *words, "--data.decode", "cpu", folder=tmp_path)
    assert refused.returncode == 2
    assert "decode 'cpu' needs DALI, and DALI is not installed: use auto or torchvision" in refused.stderr
    done = python(COMMAND, *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    said = f"input: decode plan torchvision (DALI is not installed: {dali.remedy()}), 2 threads on"
    assert (done.stdout + done.stderr).count(said) == 1
    for written in (tmp_path / "cache").glob("*/identity.json"):  # of the training and of the validation set
        dataset = json.loads(written.read_text())["dataset"]
        assert (dataset["decoder"], dataset["resize"]) == ("torchvision", "torch uint8 bilinear")
        assert {"torchvision", "decoded"} <= dataset.keys()
        assert "dali" not in dataset


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ModuleNotFoundError("No module named 'nvidia'", name="nvidia"), "DALI is not installed"),
        (
            ModuleNotFoundError("No module named 'six'", name="six"),
            "DALI does not load: No module named 'six'",
        ),
        (OSError("libcuda.so.1: cannot open"), "DALI does not load: libcuda.so.1: cannot open"),
        (RuntimeError("built for another CUDA\nand more"), "DALI does not load: built for another CUDA"),
        (ImportError(), "DALI does not load: ImportError"),
    ],
)
def test_whatever_loading_it_leads_to_is_put_into_words(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    real = builtins.__import__

    def load(name: str, *others: Any) -> Any:
        if name.startswith("nvidia.dali"):
            raise raised
        return real(name, *others)

    monkeypatch.setattr(builtins, "__import__", load)
    assert dali.problem.__wrapped__() == said


@pytest.mark.slow
def test_torchvision_s_plan_and_arrays_never_load_dali(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", one=8)
    code = (
        "import sys; from pathlib import Path\n"
        "import numpy as np\n"
        "import fastanc.cli, fastanc.training.assemble, fastanc.jobs.export, fastanc.jobs.views_sheet\n"
        "from fastanc.pipelines.catalogue import open_dataset\n"
        "from fastanc.pipelines.jpeg.options import JpegOptions\n"
        "from fastanc.pipelines.order import Order\n"
        "from fastanc.pipelines.own_sets import as_dataset\n"
        "from fastanc.pipelines.views import RandomResizedCrop\n"
        "as_dataset(np.zeros((4, 8, 8, 3), np.uint8)).on('cpu').describe()\n"
        "data = open_dataset('set', 'train', val_share=0.5).on('cpu', JpegOptions(decode='torchvision'))\n"
        "data.describe(), data.subset(np.arange(2)).options\n"
        "(batch,) = data.batches(Order(data.num_images, 2), RandomResizedCrop(16, 0), stop=1)\n"
        "print(len(batch.images), [name for name in sys.modules if name.startswith('nvidia.dali')])\n"
    )
    around = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code.replace("'set'", repr(str(tmp_path / "set")))],
        env=around,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["2 []"], done.stderr


def test_auto_is_torchvision_on_every_device(data: JpegSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali, "problem", lambda: "DALI is not installed")
    bound = [data.on(device, JpegOptions(threads=3)) for device in ("cpu", "cuda", "mps")]
    assert {one.options for one in bound} == {JpegOptions(decode="torchvision", threads=3)}
    assert len({json.dumps(one.describe()) for one in bound}) == 1
    assert bound[0].plan_source == f"DALI is not installed: {dali.remedy()}"
    with pytest.raises(ValueError, match="decode 'mixed' needs DALI, and DALI is not installed: use auto or"):
        data.on("cuda", JpegOptions(decode="mixed"))


def test_a_device_that_dali_does_not_know_takes_torchvision(data: JpegSet) -> None:
    bound = data.on("mps")
    assert bound.options.decode == "torchvision"
    assert "DALI knows no device mps" in bound.plan_source


@pytest.mark.parametrize(
    ("platform", "cuda", "said"),
    [
        ("linux", "13.0", "pip install 'fastanc[dali]'"),
        ("linux", None, "pip install 'fastanc[dali]'"),
        ("linux", "12.8", "pip install 'fastanc[dali-cuda12]'"),
        ("darwin", None, ""),
        ("win32", None, ""),
    ],
)
def test_the_remedy_is_the_wheel_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, platform: str, cuda: str | None, said: str
) -> None:
    monkeypatch.setattr(dali.sys, "platform", platform)
    monkeypatch.setattr(dali.torch.version, "cuda", cuda)
    assert dali.remedy() == said


_ONLY_LINUX = (
    *(
        "sched_getaffinity",
        "posix_fadvise",
        "POSIX_FADV_RANDOM",
        "POSIX_FADV_WILLNEED",
        "POSIX_FADV_DONTNEED",
    ),
    *("RWF_NOWAIT", "fdatasync", "posix_fallocate"),
)


def test_what_only_linux_has_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Index, decode and cache as on macOS, as far as Linux without these calls is that."""

    def refused(limit: int, limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    for name in _ONLY_LINUX:
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(resource, "setrlimit", refused)
    monkeypatch.setattr(column, "_fallocate", lambda: None)
    tree = class_folders(tmp_path / "set", one=4)
    for source in (tree, tar_of_tree(tree, tmp_path / "set.tar")):
        index = build_index(source, progress=False)
        data = JpegSet("toy", index, (0,), (1,)).on("cpu", JpegOptions(decode="torchvision"))
        (batch,) = data.batches(Order(4, 4), RandomResizedCrop(16, 0), stop=1)
        assert batch.images.shape == (4, 3, 16, 16)
    facts, field = identity(data.describe(), {}, {}, {}), Field("features", 3, "fp32")
    store = Store.open(tmp_path / "cache", facts, (field,), 4, create=True)
    rows = {"features": torch.arange(12.0).reshape(4, 3)}
    store.put(0, np.arange(4), rows)
    assert store.missing(0).size == 0
    assert torch.equal(store.reader().read(np.arange(4), np.zeros(4))[0]["features"], rows["features"])


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [("Linux", "x86_64", True), ("Linux", "aarch64", True), ("Darwin", "arm64", False), ("Windows", "AMD64", False)],
)  # fmt: skip
def test_dali_is_asked_for_where_it_has_wheels_and_by_its_extra_alone(
    system: str, machine: str, wanted: bool
) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    where = {"platform_system": system, "platform_machine": machine}

    def asked(requirements: list[str]) -> list[str]:
        parsed = [Requirement(one) for one in requirements]
        return [one.name for one in parsed if one.marker is None or one.marker.evaluate(where)]

    assert not [name for name in asked(project["dependencies"]) if "dali" in name]
    extras = project["optional-dependencies"]
    assert asked(extras["dali"]) == (["nvidia-dali-cuda130"] if wanted else [])
    assert asked(extras["dali-cuda12"]) == (["nvidia-dali-cuda120"] if wanted else [])
    (everything,) = (Requirement(one) for one in extras["all"])
    assert "dali" in everything.extras
    assert "dali-cuda12" not in everything.extras
