"""A folder with every kind of bad file: the run over the rest completes; DALI by itself does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import RandomResizedCrop
from support.bad_files import bad_files
from support.decoders import CPU_PLANS, needs_dali

DALI_ALONE = """
import os, signal, sys
import numpy as np
from nvidia.dali import fn, pipeline_def

@pipeline_def
def graph(paths):
    encoded, _ = fn.readers.file(files=paths)
    pixels = fn.decoders.image_random_crop(encoded)
    return fn.resize(pixels, size=[64, 64])

def outcome(paths):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            pipeline = graph(paths, batch_size=128, num_threads=2, device_id=None)
            for _ in range(2):
                pipeline.run()
        except Exception:
            os._exit(3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "ends the process with " + signal.Signals(os.WTERMSIG(status)).name
    return {0: "goes on", 3: "raises"}[os.WEXITSTATUS(status)]

good = sys.argv[2:]
for bad in [None, *sorted(os.listdir(sys.argv[1]))]:
    paths = good if bad is None else good[:63] + [os.path.join(sys.argv[1], bad)] + good[63:]
    print(bad, outcome(paths), sep="\\t", flush=True)
"""


@pytest.fixture(scope="module")
def mixed(real_jpegs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 real JPEGs in four classes, with 29 kinds of bad files among them, and the bad ones by themselves."""
    root = tmp_path_factory.mktemp("bad")
    for k, path in enumerate(real_jpegs[:256]):
        (root / "tree" / f"c{k % 4}").mkdir(parents=True, exist_ok=True)
        (root / "tree" / f"c{k % 4}" / path.name).write_bytes(path.read_bytes())
    (root / "bad").mkdir()
    for k, (name, (data, _)) in enumerate(bad_files().items()):
        (root / "tree" / f"c{k % 4}" / name).write_bytes(data)
        (root / "bad" / name).write_bytes(data)
    return root


@pytest.mark.parametrize("plan", CPU_PLANS)
def test_the_run_over_the_rest_completes(mixed: Path, plan: str) -> None:
    index = build_index(mixed / "tree", workers=1, progress=False)
    bad = set(os.listdir(mixed / "bad"))
    assert len(bad) >= 20
    assert (len(index), index.rejected) == (256, len(bad))
    named = (mixed / "tree.rejected.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[0].split("/")[1] for line in named} == bad
    data = JpegSet("mixed", index, (0.0,), (1.0,)).on("cpu", JpegOptions(decode=plan))
    seen = [b.index for b in data.batches(Order(256, 128), RandomResizedCrop(64, 0), stop=6)]
    assert sorted(np.concatenate(seen).tolist()) == sorted([*range(256)] * 3)


@needs_dali
@pytest.mark.slow
def test_dali_alone_crashes_or_raises(mixed: Path) -> None:
    good = sorted(str(path) for path in (mixed / "tree").glob("c*/*.JPEG"))[:127]
    done = subprocess.run(
        [sys.executable, "-c", DALI_ALONE, str(mixed / "bad"), *good],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    said = dict(line.split("\t") for line in done.stdout.splitlines())
    print(done.stdout)
    assert said.pop("None") == "goes on"  # 127 good files: the measure can tell
    assert len(said) == len(bad_files())
    assert any(outcome.startswith("ends the process with SIG") for outcome in said.values())
    assert sum(outcome != "goes on" for outcome in said.values()) >= 15


def train(tree: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    fields = {
        "data.name": tree,
        "data.image_px": 64,
        "data.resize_px": 72,
        "data.batch": 16,
        "data.eval_batch": 16,
        "teacher.weights": "random",
        "teacher.name": "resnet8",
        "teacher.cache": "off",
        "student.name": "resnet8",
        "run.log_every": 1,
        "run.out": folder,
    }
    options = [part for key, value in fields.items() for part in (f"--{key}", str(value))]
    code = "import sys; from fastanc.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", *options, *more]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.fixture
def splits(real_jpegs: list[Path], tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for k, path in enumerate(real_jpegs[:64]):
            (tmp_path / "set" / split / f"c{k % 2}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / split / f"c{k % 2}" / path.name).write_bytes(path.read_bytes())
        build_index(tmp_path / "set" / split, workers=1, progress=False)
    return tmp_path / "set"


@pytest.mark.slow
def test_a_cut_file_is_refused_at_start_by_the_command(splits: Path, tmp_path: Path) -> None:
    victim = next((splits / "train" / "c1").iterdir())
    os.truncate(victim, 300)
    process = train(splits, tmp_path, "--run.max_steps", "2")
    said = process.communicate(timeout=1800)[1]
    assert process.returncode == 2
    assert f"{victim.name} changed from" in said.splitlines()[-1]
    assert "fastanc index --refresh" in said


@pytest.mark.slow
def test_a_file_cut_in_mid_run_is_named_and_nothing_hangs(splits: Path, tmp_path: Path) -> None:
    process = train(
        splits, tmp_path, "--schedule.epochs", "1000", "--run.name", "cut", "--run.eval_every", "0"
    )
    log = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 1800  # of a hang
    while not (log.exists() and len(log.read_text().splitlines()) > 5):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert json.loads(log.read_text().splitlines()[0])
    victim = next((splits / "train" / "c0").iterdir())
    os.truncate(victim, 300)
    said = process.communicate(timeout=1800)[1]
    assert process.returncode == 2
    assert f"{victim.name} changed since it was indexed" in said
