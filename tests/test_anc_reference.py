"""ANC against a plain PyTorch transcription of the paper: equal weights after five steps."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.methods.anc import Anc
from fastanc.models.taps import Adapted, Tapped
from support.tiny_game import BATCH, MEAN, SGD, STD, Game


def plain_anc(game: Game, config: Anc, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """The paper's algorithm: probabilities, two optimizers, its own dropout. Returns the weights of both."""
    start = copy.deepcopy(game.start)
    adapted = isinstance(start["student"], Adapted)
    net = start["student"].student.bare if adapted else start["student"].bare
    adapter = start["student"].adapter if adapted else nn.Identity()
    linears = [m for m in start["discriminator"].modules() if isinstance(m, nn.Linear)]
    params_s = [*net.parameters(), *adapter.parameters()]
    params_d = [p for layer in linears for p in layer.parameters()]
    hyper = {"lr": SGD.lr, "momentum": SGD.momentum, "weight_decay": SGD.weight_decay}
    opt_s, opt_d = torch.optim.SGD(params_s, **hyper), torch.optim.SGD(params_d, **hyper)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    one, zero = torch.ones(BATCH, 1, dtype=torch.float64), torch.zeros(BATCH, 1, dtype=torch.float64)

    def run(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        features = network.layer2(network.layer1((x - mean) / std)).mean((2, 3))
        return features, network.fc(features)

    def D(x: Tensor) -> Tensor:
        for layer in linears[:-1]:
            x = layer(x).clamp_min(0)
        return 1 / (1 + torch.exp(-linears[-1](x)))

    def drop(x: Tensor) -> Tensor:
        keep = 1 - config.dropout
        return x if keep == 1 else x * torch.empty_like(x).bernoulli_(keep) / keep

    for step in range(steps):
        x = game.batch(step).images
        torch.manual_seed(step)
        with torch.no_grad():
            f_t, z_t = run(game.teacher.bare, x)
        f_s, z_s = run(net, x)
        t, s = (f_t, adapter(f_s)) if config.on == "features" else (z_t, z_s)
        loss_d = F.binary_cross_entropy(D(t), one) + F.binary_cross_entropy(D(s.detach()), zero)
        if config.regulariser == "adversarial":
            sample = s.detach() if config.regulariser_sample == "clean" else drop(s.detach())
            loss_d = loss_d + F.binary_cross_entropy(D(sample), one)
        if config.regulariser == "l1":
            loss_d = loss_d + config.mu * sum(p.abs().sum() for p in params_d)
        if config.regulariser == "l2":
            loss_d = loss_d + config.mu * sum((p * p).sum() for p in params_d)
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
        loss_s = F.binary_cross_entropy(D(drop(s)), one)
        loss_s = loss_s + config.lambda_data * ((z_t - z_s) ** 2).sum(1).mean()
        opt_s.zero_grad()
        loss_s.backward()
        opt_s.step()
    return params_s, params_d


def assert_equal_after_five_steps(config: Anc, game: Game) -> None:
    for step in range(5):
        game.step(step)
    params_s, params_d = plain_anc(game, config, 5)
    for name, reference in (("student", params_s), ("discriminator", params_d)):
        ours = list(game.players[name].module.parameters())
        assert len(ours) == len(reference)
        for mine, plain, before in zip(ours, reference, game.start[name].parameters(), strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-12)
            assert not torch.equal(mine, before)


@pytest.mark.parametrize(
    ("regulariser", "on", "dropout"),
    list(product(["none", "l1", "l2", "adversarial"], ["features", "logits"], [0.0, 0.5])),
)
def test_five_steps_equal_the_paper(regulariser: str, on: str, dropout: float) -> None:
    config = Anc(regulariser=regulariser, on=on, dropout=dropout, mu=0.01, discriminator="16-8")
    assert_equal_after_five_steps(config, Game(config, student=(3, 9)))


@pytest.mark.parametrize(
    "options", [{"regulariser_sample": "clean"}, {"lambda_data": 0.3}, {"discriminator": "128-256-128"}]
)
def test_five_steps_equal_the_paper_with_options(options: dict[str, object]) -> None:
    config = Anc(**{"discriminator": "16-8", **options})
    assert_equal_after_five_steps(config, Game(config, student=(3, 9)))


def test_unequal_widths_train_an_adapter_with_the_student() -> None:
    config = Anc(discriminator="16-8")
    game = Game(config, teacher=(6, 9), student=(3, 4))
    assert isinstance(game.players["student"].module, Adapted)
    assert_equal_after_five_steps(config, game)


def test_equal_widths_and_logits_need_no_adapter() -> None:
    for config, channels in ((Anc(), (3, 9)), (Anc(on="logits"), (3, 4))):
        assert isinstance(Game(config, student=channels).players["student"].module, Tapped)
