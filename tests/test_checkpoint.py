"""Checkpoints: what is damaged is refused by name, the newest sound one is used, nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastanc.training.checkpoint import Checkpoints, damage, load


def _write(folder: Path, steps: list[int], keep: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, {"student": {"w": torch.full((1000,), float(step))}}, {"config": {}})
    checkpoints.wait()
    return checkpoints


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    checkpoints = _write(tmp_path, [1, 2, 3], keep=2)
    assert [p.name for p in checkpoints.complete()] == ["step-00000002", "step-00000003"]
    state, meta = load(checkpoints.latest()[0])
    assert meta["step"] == 3
    assert torch.equal(state["student"]["w"], torch.full((1000,), 3.0))


def test_snapshot_is_taken_at_the_call(tmp_path: Path) -> None:
    weight = torch.zeros(4)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": weight}, {})
    weight.fill_(7)
    checkpoints.wait()
    assert torch.equal(load(checkpoints.latest()[0])[0]["w"], torch.zeros(4))


def _flip(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


DAMAGES = {
    "checksum": _flip,
    "bytes instead of": lambda p: os.truncate(p / "state.pt", 100),
    "is missing": lambda p: (p / "meta.json").unlink(),
    "not finished": lambda p: (p / "COMPLETE").write_text("{"),
}


@pytest.mark.parametrize("word", DAMAGES)
def test_damage_is_named_and_the_previous_one_is_used(tmp_path: Path, word: str) -> None:
    checkpoints = _write(tmp_path, [1, 2])
    DAMAGES[word](tmp_path / "step-00000002")
    path, refused = checkpoints.latest()
    assert path.name == "step-00000001"
    assert len(refused) == 1
    assert word in refused[0]
    assert "step-00000002" in refused[0]
    with pytest.raises(ValueError, match="refused"):
        load(tmp_path / "step-00000002")


def test_unfinished_folder_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = _write(tmp_path, [1])
    (tmp_path / "step-00000005").mkdir()
    assert checkpoints.latest()[0].name == "step-00000001"


def test_loading_never_unpickles_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, ("touch pwned",)

    path = _write(tmp_path, [1]).latest()[0]
    (path / "state.pt").write_bytes(pickle.dumps(Evil()))
    seal = json.loads((path / "COMPLETE").read_text())
    import zlib

    data = (path / "state.pt").read_bytes()
    seal["state.pt"] = [len(data), zlib.crc32(data)]
    (path / "COMPLETE").write_text(json.dumps(seal))
    assert damage(path) is None
    with pytest.raises(pickle.UnpicklingError):
        load(path)
    assert not Path("pwned").exists()


def test_full_disk_leaves_the_last_one_and_says_so(tmp_path: Path) -> None:
    script = f"""
import resource, signal, torch, pathlib
from fastanc.training.checkpoint import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
c = Checkpoints(pathlib.Path({str(tmp_path)!r}))
c.save(1, {{"w": torch.zeros(10)}}, {{}}); c.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
c.save(2, {{"w": torch.zeros(1_000_000)}}, {{}})
try:
    c.wait()
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "step-00000002 could not be written" in done.stdout, done.stderr
    assert "resume from" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert damage(tmp_path / "step-00000001") is None


@pytest.mark.slow
def test_killed_writer_never_leaves_a_false_complete(tmp_path: Path) -> None:
    script = f"""
import torch, pathlib
from fastanc.training.checkpoint import Checkpoints
c = Checkpoints(pathlib.Path({str(tmp_path)!r}), keep=3)
step = 0
while True:
    step += 1
    c.save(step, {{"w": torch.full((500_000,), float(step))}}, {{}}); c.wait(); print(step, flush=True)
"""
    for round_ in range(4):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.11 * round_)
        process.kill()
        process.wait()
        path, refused = Checkpoints(tmp_path).latest()
        assert refused == []
        state, meta = load(path)
        assert float(state["w"][0]) == meta["step"]
