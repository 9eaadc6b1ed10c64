"""Optimizers and their groups: beside torch's and timm's own, a hand calculation of LAMB, and a run that goes on."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import draccus
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from fastanc.config import Config, completed
from fastanc.models import zoo
from fastanc.models.depths import depths_of
from fastanc.optimizers import OptimizerConfig
from fastanc.parsing import parse
from fastanc.train import train
from fastanc.training.player import Average
from fastanc.training.players import Players, check_optimizer
from support.tiny_game import PX, TinyNet, make_game, tapped


def _set_of(players: Players, player: str = "student") -> dict[str, tuple[float, float]]:
    """Return a player's weights by name with their rate and decay."""
    names = {id(weight): name for name, weight in players[player].module.named_parameters()}
    groups = players[player].optimizer.param_groups
    return {names[id(w)]: (g["lr"], g["weight_decay"]) for g in groups for w in g["params"]}


def _players(network: nn.Module, **fields: object) -> Players:
    return Players(Accelerator(cpu=True), {"student": network}, {"student": OptimizerConfig(**fields)})


@pytest.mark.parametrize(
    ("name", "px"), [("resnet10t", 64), ("test_vit", 160), ("test_convnext", 160), ("test_efficientnet", 160)]
)
def test_layer_decay_of_timm_networks_is_timms(name: str, px: int) -> None:
    timm = pytest.importorskip("timm", reason="pip install timm")
    from timm.optim import param_groups_layer_decay

    network = timm.create_model(name, num_classes=7)
    skipped = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups = param_groups_layer_decay(network, 0.05, skipped, layer_decay=0.7)
    names = {id(weight): name for name, weight in network.named_parameters()}
    expected = {
        f"bare.{names[id(w)]}": (0.1 * g["lr_scale"], g["weight_decay"]) for g in groups for w in g["params"]
    }
    players = _players(
        zoo.tap(network, image_px=px), lr=0.1, weight_decay=0.05, decay_norms=False, layer_decay=0.7
    )
    found = _set_of(players)
    assert found.keys() == expected.keys()
    for key in found:
        assert found[key] == pytest.approx(expected[key]), key
    assert len({rate for rate, _ in found.values()}) > 2


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        # conv1 and bn1; so many blocks; bn or fc
        ("resnet8", {"conv1": 0, "layer1.0": 1, "layer2.0": 2, "layer3.0": 3, "bn.": 4, "fc": 4}),
        ("wrn-10-1", {"conv1": 0, "layer1.0": 1, "layer3.0": 3, "bn.": 4, "fc": 4}),
        ("resnet18_8x", {"conv1": 0, "bn1": 0, "layer1.1": 2, "layer2.0": 3, "layer4.1": 8, "fc": 9}),
        ("lenet5", {"block1.0": 0, "block2": 1, "block3": 2, "fc1": 3, "fc2": 4}),
        (
            "torchvision:shufflenet_v2_x0_5",
            {"conv1": 0, "stage2.0": 1, "stage4.3": 16, "conv5": 17, "fc": 17},
        ),
    ],
)
def test_levels_are_the_blocks_in_order(name: str, levels: dict[str, int]) -> None:
    found = depths_of(zoo.build(name, num_classes=5).bare)
    assert found.levels == max(levels.values()) + 1
    for key, level in found.of.items():
        for start, expected in levels.items():
            if key.startswith(start):
                assert level == expected, key
    assert set(found.of.values()) == set(range(found.levels))


def test_what_a_library_puts_between_blocks_belongs_to_the_next() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 2))
            self.blocks = nn.ModuleList([TinyNet(2, 2), TinyNet(2, 2)])
            self.between = nn.Linear(2, 2)
            self.more = nn.Sequential(TinyNet(2, 2))

    found = depths_of(Odd())
    assert (found.of["token"], found.of["blocks.0.fc.weight"], found.of["blocks.1.fc.weight"]) == (0, 1, 2)
    assert (found.of["between.weight"], found.of["more.0.fc.weight"], found.levels) == (3, 3, 4)
    assert depths_of(nn.Sequential()).levels == 1
    assert depths_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))).of["1.weight"] == 1


def _plain_groups(network: nn.Module, lr: float, decay: float, fall: float) -> list[dict[str, object]]:
    """Return TinyNet's groups as one would write them: two convolutions with their norms, and a head."""
    bare = network.get_submodule("bare")
    parts = (bare.layer1, bare.layer2, bare.fc)
    return [
        {
            "params": [w for w in part.parameters() if (w.dim() > 1) == filters],
            "lr": lr * fall ** (2 - level),
            "weight_decay": decay if filters else 0.0,
        }
        for level, part in enumerate(parts)
        for filters in (True, False)
    ]


PLAIN = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.8),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.1, betas=(0.8, 0.95)),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95)),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_grouped_steps_are_torchs_own(name: str, clip: float) -> None:
    student = tapped(3, 4, seed=3)
    twin = copy.deepcopy(student)
    beta2 = {} if name == "sgd" else {"beta2": 0.95}
    players = _players(
        student,
        **beta2,
        name=name,
        lr=0.02,
        momentum=0.8,
        weight_decay=0.3,
        decay_norms=False,
        layer_decay=0.5,
        clip=clip,
    )
    plain = PLAIN[name](_plain_groups(twin, 0.02, 0.3, 0.5))
    for step in range(4):
        torch.manual_seed(step)
        images = torch.rand(4, 3, PX, PX, dtype=torch.float64)
        players.set_lr(1.0 / (step + 1))
        for number, group in enumerate(plain.param_groups):
            group["lr"] = 0.02 * 0.5 ** (2 - number // 2) / (step + 1)
        with players.turn("student") as nets:
            players.update("student", {"all": nets["student"](images).logits.square().sum()})
        plain.zero_grad()
        twin(images).logits.square().sum().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        plain.step()
    for (key, mine), theirs in zip(student.named_parameters(), twin.parameters()):
        torch.testing.assert_close(
            mine, theirs, rtol=1e-8, atol=1e-8, msg=key
        )  # of 0.02 a step; Adam enlarges zeros' last bits


def _lamb(weight: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    """Make LAMB's steps (You et al. 2020, algorithm 2, phi the identity) by hand; no trust ratio without decay."""
    m, v, beta1, beta2 = torch.zeros_like(weight), torch.zeros_like(weight), 0.8, 0.95
    for t, grad in enumerate(grads, 1):
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        update = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + 1e-6) + decay * weight
        ratio = weight.norm() / update.norm() if decay else 1.0
        weight = weight - lr * ratio * update
    return weight


def test_lamb_is_its_paper_and_spares_norms() -> None:
    pytest.importorskip("timm", reason="pip install timm")
    torch.manual_seed(0)
    network = nn.Linear(3, 4).double()
    start = {key: value.clone() for key, value in network.state_dict().items()}
    players = _players(
        network, name="lamb", lr=0.02, momentum=0.8, beta2=0.95, weight_decay=0.1, decay_norms=False
    )
    slopes = [torch.randn(4, 3, dtype=torch.float64) * 30 for _ in range(3)]  # no hidden clip either
    for slope in slopes:
        with players.turn("student"):
            loss = (network.weight * slope).sum() + (network.bias * slope[:, 0]).sum()
            players.update("student", {"a": loss})
    expected = _lamb(start["weight"], slopes, 0.02, 0.1)
    torch.testing.assert_close(network.weight.detach(), expected, rtol=1e-9, atol=1e-11)
    expected = _lamb(start["bias"], [slope[:, 0] for slope in slopes], 0.02, 0.0)
    torch.testing.assert_close(network.bias.detach(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["anc", "fitnets", "sum"])
def test_every_player_is_grouped_and_what_is_put_around_a_student_is_its_head(method: str) -> None:
    parts = {"parts": [{"type": "anc"}, {"type": "fitnets"}]} if method == "sum" else {}
    game = make_game(method, **parts)
    shared = OptimizerConfig(lr=0.1, weight_decay=0.2, decay_norms=False, layer_decay=0.5)
    players = Players(Accelerator(cpu=True), game.start, {"student": shared})
    for name in players:
        for key, (rate, decay) in _set_of(players, name).items():
            weight = players[name].module.get_parameter(key)
            assert decay == (0.2 if weight.dim() > 1 else 0.0), key
            level = 0 if "layer1" in key else 1 if "layer2" in key else 2
            assert rate == pytest.approx(0.1 * 0.5 ** (2 - level) if name == "student" else 0.1), key


def test_without_options_the_groups_are_what_they_were() -> None:
    student = tapped(3, 4, seed=3)
    (group,) = _players(student).state()["student"]["optimizer"]["param_groups"]
    assert group["params"] == list(range(len([*student.parameters()])))


def test_average_warms_up_as_tensorflows_does() -> None:
    network = nn.Linear(1, 1)
    average = Average(network, 0.5, torch.device("cpu"), warmup=True)
    expected = network.weight.detach().clone()
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5)):
        network.weight.data.fill_(float(step))
        average.update(network, step)
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(average.network.weight.detach(), expected)


def test_a_configuration_from_before_these_fields_is_completed() -> None:
    new = {"beta2", "decay_norms", "layer_decay"}
    for words in (["--method.discriminator_optimizer.lr", "0.1"], ["--method.type", "can"]):
        config = parse(words)
        now = draccus.encode(config)
        old = copy.deepcopy(now)
        assert old["run"].pop("ema_warmup") is False
        for group in (old["optimizer"], old["method"]["discriminator_optimizer"]):
            for field in new:
                del group[field]
        assert old != now
        assert completed(config, old) == now
    own = {"type": "anc", "discriminator_optimizer": {"lr": 0.1}}
    config = parse(["--method.type", "sum", "--method.parts", f"[{own}, kd]"])
    now = draccus.encode(config)
    old = copy.deepcopy(now)
    del old["method"]["parts"][0]["discriminator_optimizer"]["beta2"]
    assert completed(config, old) == now


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optimizer.beta2", "0.9"], "beta2 is an option of adam, adamw and lamb"),
        (["--optimizer.name", "adam", "--optimizer.beta2", "1"], "optimizer.beta2"),
        (["--optimizer.layer_decay", "0"], "optimizer.layer_decay"),
        (["--optimizer.layer_decay", "1.5"], "optimizer.layer_decay"),
        (["--optimizer.layer_decay", "nan"], "optimizer.layer_decay"),
        (["--optimizer.decay_norms", "maybe"], "optimizer.decay_norms"),
        (["--run.ema_warmup", "true"], "set run.ema"),
        (["--method.discriminator_optimizer.layer_decay", "0.5"], "set optimizer.layer_decay"),
    ],
)
def test_wrong_options_are_refused_by_name(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(words)


def test_lamb_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    lamb = OptimizerConfig(name="lamb")
    cut = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=1)))
    with pytest.raises(ValueError, match="ZeRO cuts into parts"):
        check_optimizer(cut, lamb)
    cut.state.deepspeed_plugin.zero_stage = 0
    check_optimizer(cut, lamb)
    found = importlib.util.find_spec
    monkeypatch.setattr("fastanc.optimizers.find_spec", lambda name: None if name == "timm" else found(name))
    with pytest.raises(ValueError, match="pip install timm"):
        parse(["--optimizer.name", "lamb", "--teacher.weights", "random"], front=True)


SHORT = [
    *("--data.image_px", "16", "--data.resize_px", "16", "--teacher.weights", "random", "--teacher.cache"),
    *("off", "--run.eval_every", "0", "--run.log_every", "1", "--run.ema", "0.9", "--run.ema_warmup", "true"),
    *("--optimizer.lr", "1e-3", "--optimizer.decay_norms", "false", "--optimizer.layer_decay", "0.7"),
    *("--optimizer.beta2", "0.95", "--teacher.name", "resnet8", "--data.batch", "32"),
]


@pytest.mark.parametrize("name", ["adamw", pytest.param("lamb", marks=pytest.mark.slow)])
def test_a_run_that_goes_on_equals_one_that_was_not_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    if name == "lamb":
        pytest.importorskip("timm", reason="pip install timm")
    monkeypatch.chdir(tmp_path)
    words = [*SHORT, "--optimizer.name", name]

    def run(folder: str, steps: int, *more: str) -> dict[str, Tensor]:
        config: Config = parse([*words, "--name", folder, "--run.max_steps", str(steps), *more])
        return load_file(train(config) / "student.safetensors")

    whole = run("whole", 7)
    half = run("parts", 3)
    parts = run("parts", 7, "--resume", "latest")
    for key in whole:
        assert torch.equal(whole[key], parts[key]), key
    assert not torch.equal(whole["fc.weight"], half["fc.weight"])
    log = capsys.readouterr().err
    assert "layer_decay 0.7 over 5 levels by its 3 blocks" in log
    assert "weights of norms and biases do not decay" in log
