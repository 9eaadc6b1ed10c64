"""The players: frozen while not on turn; two processes equal one; a launch that is not what it says is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from fastanc.optimizers import OptimizerConfig
from fastanc.training.player import Average
from fastanc.training.players import Players

SGD = OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.0)


def _players() -> Players:
    networks = {"student": nn.Linear(3, 4), "discriminator": nn.Linear(4, 1)}
    return Players(Accelerator(cpu=True), networks, {"student": SGD})


def test_opponents_are_frozen_but_pass_the_gradient_on() -> None:
    players = _players()
    before = {name: p.module.weight.clone() for name, p in players.items()}
    with players.turn("student") as nets:
        loss = nets["discriminator"](nets["student"](torch.randn(5, 3))).mean()
        players.update("student", {"fool": loss})
    assert not torch.equal(players["student"].module.weight, before["student"])
    assert torch.equal(players["discriminator"].module.weight, before["discriminator"])
    assert players["discriminator"].module.weight.grad is None


def test_update_is_plain_sgd_on_the_sum_of_terms() -> None:
    players = _players()
    twin = nn.Linear(4, 1).double()  # a weight near 0 has fp32 errors of more than a millionth of itself
    twin.load_state_dict(players["discriminator"].module.double().state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        x = torch.randn(8, 4, dtype=torch.float64)
        with players.turn("discriminator") as nets:
            out = nets["discriminator"](x)
            players.update("discriminator", {"a": out.mean(), "b": 2 * out.square().mean()})
        optimizer.zero_grad()
        (twin(x).mean() + 2 * twin(x).square().mean()).backward()
        optimizer.step()
    torch.testing.assert_close(players["discriminator"].module.weight, twin.weight, rtol=1e-12, atol=1e-14)


def test_clip_bounds_the_step() -> None:
    networks = {"student": nn.Linear(3, 1)}
    players = Players(
        Accelerator(cpu=True),
        networks,
        {"student": OptimizerConfig(lr=1.0, momentum=0, weight_decay=0, clip=0.5)},
    )
    before = torch.cat([p.detach().clone().flatten() for p in networks["student"].parameters()])
    with players.turn("student") as nets:
        players.update("student", {"big": 1000 * nets["student"](torch.ones(2, 3)).sum()})
    after = torch.cat([p.detach().flatten() for p in networks["student"].parameters()])
    assert (after - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_set_lr_keeps_each_players_own_rate() -> None:
    networks = {"student": nn.Linear(2, 2), "discriminator": nn.Linear(2, 1)}
    players = Players(
        Accelerator(cpu=True),
        networks,
        {"student": SGD, "discriminator": OptimizerConfig(name="adam", lr=0.01)},
    )
    players.set_lr(0.5)
    assert players["student"].optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert players["discriminator"].optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_state_of_another_network_is_refused_by_player() -> None:
    players = _players()
    state = players.state()
    other = {"student": nn.Linear(3, 5), "discriminator": nn.Linear(4, 1)}
    with pytest.raises(ValueError, match="another student"):
        Players(Accelerator(cpu=True), other, {"student": SGD}).load_state(state)


_GAME = """
import os, sys, torch
from torch import nn
from fastanc.optimizers import OptimizerConfig
from fastanc.training.player import Average
from fastanc.training.players import Players
from fastanc.training.processes import make_accelerator

accelerator = make_accelerator()
torch.set_default_dtype(torch.float64)  # two halves of a batch are summed in another order than the whole
torch.manual_seed(3 + accelerator.process_index)  # another start on every process: it must not matter
student = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
if True:
    g = torch.Generator().manual_seed(0)
    for p in student.parameters():
        p.data = torch.randn(p.shape, generator=g) / 3
critic = nn.Linear(4, 1)
g = torch.Generator().manual_seed(1)
if accelerator.is_main_process:
    for p in critic.parameters():
        p.data = torch.randn(p.shape, generator=g)
sgd = OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.0)
players = Players(accelerator, {"student": student, "discriminator": critic}, {"student": sgd})
data = torch.randn(5, 16, 6, generator=torch.Generator().manual_seed(2))
bce = nn.functional.binary_cross_entropy_with_logits
for x in data:
    share = 16 // accelerator.num_processes
    x = x[accelerator.process_index * share:][:share]
    with players.turn("student") as nets:
        out = nets["student"](x)
    with players.turn("discriminator") as nets:
        z = nets["discriminator"](out.detach())
        players.update("discriminator", {"fake": bce(z, torch.zeros_like(z))})
    with players.turn("student") as nets:
        z = nets["discriminator"](out)
        players.update("student", {"fool": bce(z, torch.ones_like(z)), "data": out.square().sum(1).mean()})
state = {n: p.module.state_dict() for n, p in players.items()}
torch.save(state, sys.argv[1] + f"/{accelerator.num_processes}-{accelerator.process_index}.pt")
accelerator.end_training()  # or the first process may abort while it exits
"""


def _launch(script: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", *options]
    return subprocess.run(
        [*command, str(script), str(out)], capture_output=True, text=True, env=env, timeout=1800
    )


def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "game.py"
    script.write_text(_GAME)
    for options in (["--num_processes", "1", "--cpu"], ["--multi_gpu", "--num_processes", "2"]):
        done = _launch(script, tmp_path, *options)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (torch.load(tmp_path / f"{n}.pt") for n in ("1-0", "2-0", "2-1"))
    for name in one:
        for key in one[name]:
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            torch.testing.assert_close(first[name][key], one[name][key], rtol=1e-10, atol=1e-12)


def test_launch_that_silently_starts_one_process_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "game.py"
    script.write_text(_GAME)
    done = _launch(script, tmp_path, "--cpu", "--num_processes", "2")
    assert done.returncode != 0
    assert "asked for 2 processes but started one" in done.stderr


def test_average_is_the_exponential_one_buffers_included() -> None:
    network = nn.BatchNorm1d(3)
    average = Average(network, 0.75, torch.device("cpu"))
    expected, means = network.weight.detach().clone(), network.running_mean.clone()
    for step in range(1, 4):
        network.weight.data.fill_(float(step))
        network.running_mean.fill_(-float(step))
        network.num_batches_tracked.fill_(step)
        average.update(network)
        expected, means = 0.75 * expected + 0.25 * step, 0.75 * means - 0.25 * step
    torch.testing.assert_close(average.network.weight, expected)
    torch.testing.assert_close(average.network.running_mean, means)
    assert average.network.num_batches_tracked == 3
    assert not average.network.weight.requires_grad


def test_player_with_weights_that_are_not_finite_is_named() -> None:
    players = _players()
    assert players.spoiled() is None
    players["discriminator"].module.bias.data.fill_(float("nan"))
    assert players.spoiled() == "discriminator"
