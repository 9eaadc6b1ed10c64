"""The cost model against arithmetic done by hand."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastanc.cli import main as command
from fastanc.jobs.measure import read_rate
from fastanc.jobs.plan import Cluster, Load, describe, load_of, plan
from fastanc.models import zoo
from fastanc.parsing import parse
from fastanc.pipelines.jpeg.probe import Probed
from fastanc.training.assemble_networks import sketch
from support.images import jpeg

LOAD = Load(batch=1600, gradient_bytes=40_000_000, flop=1e10, row_bytes=4000, image_bytes=96_000)
CLUSTER = Cluster(
    gpus=16,
    gpus_per_node=8,
    cores_per_node=64,
    flop_per_s=1e14,
    decoded_per_s=1000,
    storage_bytes_per_s=1e10,
    network_bytes_per_s=1e9,
)


def test_two_nodes_by_hand() -> None:
    found = plan(LOAD, CLUSTER)
    assert found.node_bytes_per_step == 40_000_000  # 2 (2 - 1) / 2 of the gradients
    assert found.ceilings == {
        "compute": 160_000,  # 16 GPUs x 1e14 / 1e10
        "decode": 128_000,  # 2 nodes x 64 cores x 1000
        "storage": 200_000,  # 2 nodes x 1e10 / 100,000 bytes
        "network": 40_000,  # 1600 images in 0.04 s
    }
    assert (found.bound, found.images_per_s) == ("network", 40_000)
    assert found.cache_bytes_per_s == 80_000_000  # 20,000 images a node x 4000
    assert found.cores_per_gpu == 2.5


def test_every_resource_can_be_the_bound() -> None:
    fast = replace(CLUSTER, network_bytes_per_s=1e12)
    assert plan(LOAD, fast).bound == "decode"
    assert plan(LOAD, replace(fast, cores_per_node=1000)).bound == "compute"
    assert plan(LOAD, replace(fast, storage_bytes_per_s=1e9)).bound == "storage"
    alone = plan(LOAD, replace(CLUSTER, gpus=8))
    assert "network" not in alone.ceilings
    assert alone.node_bytes_per_step == 0
    assert "decode" not in plan(replace(LOAD, image_bytes=0), CLUSTER).ceilings


def test_half_a_node_is_refused() -> None:
    with pytest.raises(ValueError, match="--gpus 12"):
        replace(CLUSTER, gpus=12)


def test_load_of_a_recipe() -> None:
    config = parse(["--recipe", "digits_anc"])
    load = load_of(sketch(config, classes=10, channels=3), image_bytes=900)
    network = zoo.build("resnet8", num_classes=10, in_channels=3, image_px=32)
    student = sum(p.numel() for p in network.parameters())
    # 64 features: 64-128-256-128-1 with biases
    critic = 64 * 128 + 128 + 128 * 256 + 256 + 256 * 128 + 128 + 128 + 1
    assert load.gradient_bytes == 4 * (student + critic)
    assert load.row_bytes == 64 * 2
    assert "bound by" in describe(load, CLUSTER)


@pytest.mark.parametrize(
    ("fields", "row_bytes"),
    [
        (["--teacher.rows", "uint8"], 64 + 2 * 4),  # a byte a feature, and the row's fp32 scale and offset
        (["--teacher.rows", "fp32"], 64 * 4),
        (["--teacher.cache", "off"], 0),
        # KSANC's descriptors are as wide as all stages together: 16 + 32 + 64
        (["--method.type", "ksanc"], (64 + 112) * 2),
        (
            [
                "--method.type",
                "ksanc",
                "--teacher.stages",
                "[layer2, layer3]",
                "--student.stages",
                "[layer2, layer3]",
            ],
            (64 + 96) * 2,
        ),
        # no linear head: the logits of ten classes are what a row holds
        (
            [
                "--teacher.name",
                "torchvision:squeezenet1_1",
                "--data.image_px",
                "64",
                "--data.resize_px",
                "64",
                "--method.on",
                "logits",
            ],
            10 * 2,
        ),
        (["--method.type", "datafree", "--teacher.cache", "off"], 0),
    ],
)
def test_rows_are_as_large_as_the_cache_writes_them(fields: list[str], row_bytes: int) -> None:
    config = parse(["--recipe", "digits_anc", *fields])
    assert sketch(config, classes=10, channels=3).row_bytes == row_bytes


def test_a_measured_plan_says_which_rates_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in "ab":
        for k in range(8):
            path = tmp_path / "set" / "train" / label / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(k))
    shutil.copytree(tmp_path / "set" / "train", tmp_path / "set" / "val")
    monkeypatch.setattr("fastanc.jobs.measure._SECONDS", 0.1)
    fields = ["--data.name", str(tmp_path / "set"), "--data.batch", "4", "--student.name", "lenet4"]
    words = [
        "plan",
        "--measure",
        "--gpus",
        "1",
        "--gpus_per_node",
        "1",
        "--cores_per_node",
        "1",
        "--classes",
        "2",
    ]
    own = ["--recipe", "digits_anc", *fields, "--teacher.name", "lenet5", "--teacher.weights", "random"]
    assert command([*words, *own]) == 0
    said = capsys.readouterr().out
    rates = dict(re.findall(r"^(\w+) +allows +[\d,]+ images/s, (\w+)$", said, re.MULTILINE))
    assert rates == {"compute": "measured", "decode": "measured", "storage": "measured"}
    # One device, one core: what they allow is what was measured.
    (step,) = re.findall(r"measured: ([\d,.]+) images/s a device", said)
    (allowed,) = re.findall(r"compute +allows +([\d,]+)", said)
    assert float(allowed.replace(",", "")) == pytest.approx(float(step.replace(",", "")), abs=0.51)
    (size,) = re.findall(r"read, ([\d,]+) bytes an image", said)
    sizes = [path.stat().st_size for path in (tmp_path / "set" / "train").rglob("*.jpg")]
    assert int(size.replace(",", "")) == round(sum(sizes) / len(sizes))

    monkeypatch.setattr("fastanc.jobs.measure.probe", lambda *_: Probed("cpu", None, "hung for 120 s"))
    own = ["--recipe", "digits_anc", *fields, "--teacher.name", "lenet5", "--teacher.weights", "random"]
    assert command([*words, *own]) == 0
    said = capsys.readouterr().out
    assert "note: decode is assumed: cpu hung for 120 s" in said
    assert re.findall(r"decode +allows +1,000 images/s, assumed", said)


def test_the_read_rate_counts_the_bytes_that_were_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1_000_000))
    places = [(str(tmp_path / "x"), k * 1000, 1000) for k in range(100)]
    began = time.perf_counter()
    rate = read_rate(places)
    assert rate >= 100_000 / (time.perf_counter() - began)
    short = read_rate([(str(tmp_path / "x"), 999_990, 1000)])  # ten bytes are there
    assert short > 0
