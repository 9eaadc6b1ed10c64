"""`fastanc profile`: sizes by hand, memory by what a network is known to take, sentences for what is no run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastanc.cli import main
from fastanc.jobs import gains, gains_table
from fastanc.jobs.gains import profile_run
from fastanc.jobs.gains_table import describe
from fastanc.models import zoo
from fastanc.models.weights import save_weights
from fastanc.training.folder import PROFILE, SUMMARY

CONFIG = """
run: {name: small}
data: {name: digits, image_px: 32, resize_px: 32}
teacher: {name: resnet14, weights: /is/not/there.safetensors, recipe: null}
student: {name: resnet8}
method: {type: kd}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, as far as it is read."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / SUMMARY).write_text("{}")
    student = zoo.build("resnet8", num_classes=10, in_channels=1, image_px=32)
    save_weights(student, tmp_path / "student.safetensors")
    return tmp_path


def test_sizes_are_those_of_the_networks_and_the_numbers_are_kept(run: Path) -> None:
    found = profile_run(run, device="cpu", batches=(1, 4), threads=1, seconds=0.1)
    assert json.loads((run / PROFILE).read_text()) == found
    assert found["threads"] == 1
    for role, name in (("teacher", "resnet14"), ("student", "resnet8")):
        network, got = zoo.build(name, num_classes=10, in_channels=1, image_px=32), found["networks"][role]
        assert got["name"] == name
        assert got["parameters"] == sum(w.numel() for w in network.parameters())
        assert got["bytes"] == sum(v.numel() * v.element_size() for v in network.bare.state_dict().values())
        assert got["images_per_s"] == 4 / got["latency_s"]["4"]
        assert set(got["latency_s"]) == {"1", "4"}
    lines = describe(found).splitlines()
    assert lines[0].startswith("cpu, 1 thread")
    assert lines[1].split()[:4] == ["teacher", "resnet14", "student", "resnet8"]
    teacher, student = (found["networks"][role]["parameters"] for role in ("teacher", "student"))
    assert lines[2].split() == ["parameters", f"{teacher:,}", f"{student:,}", f"{teacher / student:.2f}"]


def test_the_command_prints_them_and_the_report_shows_them(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--batches", "2", "--threads", "1", "--seconds", "0.1"]
    assert main(["profile", str(run), *words]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == describe(json.loads((run / PROFILE).read_text()))
    assert main(["report", str(run), "--out", str(run / "report.html")]) == 0
    assert printed.splitlines()[2] in (run / "report.html").read_text()
    assert main(["profile", str(run / "none")]) == 2
    assert "name the folder of a finished run" in capsys.readouterr().err
    (run / PROFILE).write_text("{")
    assert main(["report", str(run), "--out", str(run / "report.html")]) == 0


OWN = """
import fastanc
from torch import nn


@fastanc.register_network("{name}")
def make(num_classes, in_channels):
    body = nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, num_classes))
"""


@pytest.mark.parametrize("moved", [False, True])
def test_networks_of_a_plugin_are_measured_and_exported_without_being_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], moved: bool
) -> None:
    name = f"own-of-gains-{int(moved)}"
    plugin = tmp_path / "own networks.py"
    plugin.write_text(OWN.format(name=name))
    config = CONFIG.replace("resnet8", name).replace("name: small", f"name: small, plugin: {plugin}")
    (run / "config.yaml").write_text(config)
    made = "import sys; from pathlib import Path; from fastanc.models import zoo\n"
    made += "from fastanc.parsing import import_plugin\n"
    made += "from fastanc.models.weights import save_weights; import_plugin(sys.argv[1])\n"
    made += (
        "save_weights(zoo.build(sys.argv[2], num_classes=10, in_channels=1, image_px=32), Path(sys.argv[3]))"
    )
    words = [sys.executable, "-c", made, plugin, name, run / "student.safetensors"]
    subprocess.run([str(word) for word in words], check=True)  # here nobody has imported it yet
    given: list[str] = []
    if moved:
        given = ["--plugin", str(plugin.rename(tmp_path / "elsewhere.py"))]
        assert main(["profile", str(run), "--seconds", "0.05"]) == 2
        assert "own networks.py" in capsys.readouterr().err
    assert main(["profile", str(run), "--seconds", "0.05", "--batches", "1", *given]) == 0
    by_hand = (4 * 9 + 4) + (4 * 10 + 10)
    assert re.search(rf"^parameters .* {by_hand} ", capsys.readouterr().out, re.MULTILINE)
    out = tmp_path.with_name(f"{tmp_path.name}-out")
    assert main(["export", str(run), str(out), "--formats", "safetensors", *given]) == 0
    assert (out / "student.safetensors").is_file()


def test_what_cannot_be_kept_is_shown_all_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / PROFILE).mkdir()
    assert main(["profile", str(run), "--seconds", "0.05", "--batches", "1"]) == 0
    said = capsys.readouterr().out
    assert "these numbers are not kept" in said
    assert PROFILE in said
    assert "latency of 1 image" in said


def test_the_ratio_is_how_many_times_smaller_or_faster() -> None:
    assert gains_table._ratio("latency_s", 0.03, 0.01) == "3.00"
    assert gains_table._ratio("images_per_s", 100.0, 300.0) == "3.00"
    assert gains_table._ratio("peak_bytes", None, 3.0) == "–"


def test_peak_memory_is_what_a_pass_takes() -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1 << 20))

        def forward(self, images: Tensor) -> Tensor:
            room = torch.ones(40 << 20)  # 160 MiB
            return images + room[0] + self.weight[0]

    peak = gains._peak(Takes(), torch.zeros(1, 3, 4, 4), torch.device("cpu"))
    if peak is None:
        pytest.skip("this system does not tell a process's high-water mark")
    # Pages come and go beside it.
    assert 150 << 20 <= peak - (4 << 20) <= 180 << 20


@pytest.mark.gpu
def test_on_a_gpu(run: Path) -> None:
    found = profile_run(run, device="cuda", batches=(1, 32), precision="bf16", seconds=0.1)
    assert found["threads"] is None
    assert found["networks"]["student"]["peak_bytes"] > found["networks"]["student"]["bytes"]


def test_what_is_no_finished_run_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no summary.json or config.yaml: name the folder of a"):
        profile_run(tmp_path / "elsewhere")
    (run / SUMMARY).unlink()
    with pytest.raises(FileNotFoundError, match="name the folder of a finished run"):
        profile_run(run)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="take --device cpu"):
            profile_run(run, device="cuda")
