"""The losses and penalties of games, what stands around a discriminator, and the knobs of anc, each by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastanc import losses_of_games as games
from fastanc.batch import Outputs
from fastanc.methods.anc import Anc
from fastanc.methods.base import Play
from fastanc.models.discriminators import discriminator
from fastanc.models.game_balance import Balance, Moments
from fastanc.models.judges import Judge, Replay
from fastanc.models.pulls import apart, pulls
from fastanc.training.fused import fused
from fastanc.training.play_trials import PlayTrials
from fastanc.training.players import players_of
from fastanc.training.spellings import spelled
from fastanc.training.step import play
from support.tiny_game import BATCH, NUM_CLASSES, SGD, Game, make_game, tapped
from support.waits import Waits

WIDTH = 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_losses_are_those_of_their_papers() -> None:
    x = draw(7, 3)
    p = 1 / (1 + np.exp(-x.numpy()))
    bce_t, bce_s = -np.log(p).mean(), -np.log(1 - p).mean()
    hinge_t, hinge_s = np.maximum(0, 1 - x.numpy()).mean(), np.maximum(0, 1 + x.numpy()).mean()
    assert games.on_teacher("bce", x).item() == pytest.approx(bce_t, rel=1e-12)
    assert games.on_student("bce", x).item() == pytest.approx(bce_s, rel=1e-12)
    assert games.on_teacher("bce", x, 0.1).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.9)).item(), rel=1e-12
    )
    assert games.on_teacher("hinge", x).item() == pytest.approx(hinge_t, rel=1e-12)
    assert games.on_student("hinge", x).item() == pytest.approx(hinge_s, rel=1e-12)
    assert games.to_fool("hinge", x).item() == pytest.approx(-x.mean().item(), rel=1e-12)
    square = F.mse_loss(x, torch.full_like(x, 0.8)) / 2
    assert games.on_teacher("least_squares", x, 0.2).item() == pytest.approx(square.item(), rel=1e-12)
    assert games.on_student("least_squares", x).item() == pytest.approx((x**2).mean().item() / 2, rel=1e-12)
    assert games.to_fool("least_squares", x).item() == pytest.approx(((x - 1) ** 2).mean().item() / 2)
    assert games.to_fool("bce", x).item() == pytest.approx(bce_t, rel=1e-12)
    assert games.to_fool("bce", x, saturating=True).item() == pytest.approx(-bce_s, rel=1e-12)


def test_a_decision_is_a_sign() -> None:
    x = torch.tensor([[0.2], [0.7]])
    assert (games.as_odds("least_squares", x) > 0).flatten().tolist() == [False, True]
    assert games.as_odds("hinge", x) is x


def test_the_gradient_penalty_is_a_double_backward() -> None:
    """Of one linear layer its value is |w|^2 / 2; of a deeper one float64's gradcheck holds its own gradient."""
    one = nn.Linear(4, 1).double()
    samples = draw(5, 4).requires_grad_()
    assert games.slope_penalty(one(samples), samples).item() == pytest.approx(
        one.weight.square().sum().item() / 2, rel=1e-12
    )
    first, second = draw(4, 6, seed=1), draw(6, 2, seed=2)

    def penalty(a: Tensor, b: Tensor) -> Tensor:
        x = samples.detach().requires_grad_()
        return games.slope_penalty(torch.tanh(x @ a) @ b, x)

    leaves = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(penalty, leaves)
    hidden = torch.tanh(samples @ first)
    jacobian = torch.einsum("bh,hn,wh->bnw", 1 - hidden**2, second, first)
    assert penalty(*leaves).item() == pytest.approx(0.5 * jacobian.square().sum(2).mean().item(), rel=1e-12)


def test_the_sliced_distance_of_two_shifted_clouds() -> None:
    """A shift d moves every projection by <d, direction>; in high dimension its mean is |d| sqrt(2 / (pi W))."""
    cloud, shift = draw(300, 64), draw(64, seed=5)
    found = games.sliced_wasserstein(cloud + shift, cloud, projections=4096).item()
    assert found == pytest.approx(shift.norm().item() * math.sqrt(2 / (math.pi * 64)), rel=0.05)
    assert games.sliced_wasserstein(cloud.flip(0), cloud).item() == 0
    assert games.relative_distance(3 * cloud, 3 * cloud - 1).item() == pytest.approx(
        games.relative_distance(cloud, cloud - 1 / 3).item(), rel=1e-12
    )
    assert games.relative_distance(cloud, cloud.roll(1, 0)).item() == 0


def test_two_samples_of_one_cloud_are_apart_by_what_the_page_says() -> None:
    found = [
        games.relative_distance(draw(2048, 64, seed=s), draw(2048, 64, seed=s + 9)).item() for s in (1, 2)
    ]
    assert found == pytest.approx([0.04, 0.04], abs=0.005)


def test_in_one_dimension_it_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    s, t = draw(50, 1), 2 * draw(50, 1, seed=1) + 1
    wanted = stats.wasserstein_distance(s.flatten(), t.flatten())
    assert games.sliced_wasserstein(s, t).item() == pytest.approx(wanted, rel=1e-12)


def judge(**knobs: object) -> Judge:
    torch.manual_seed(0)
    return Judge(lambda width: discriminator("8-12-8", width), WIDTH, **knobs).double()


def test_spectral_norm_leaves_singular_values_of_one() -> None:
    made = judge(spectral=True, classes=NUM_CLASSES)
    for _ in range(200):  # power iterations
        made(draw(6, WIDTH), draw(6, NUM_CLASSES))
    layers = [part for part in made.modules() if isinstance(part, nn.Linear)]
    assert len(layers) == 5
    for layer in layers:
        assert torch.linalg.svdvals(layer.weight)[0].item() == pytest.approx(1, rel=1e-4)


def test_several_discriminators_are_several_columns() -> None:
    made, x = judge(copies=3), draw(6, WIDTH)
    assert torch.equal(made(x), torch.cat([network(x) for network in made.networks], dim=1))
    assert made(x).shape == (6, 3)
    assert not torch.equal(made(x)[:, 0], made(x)[:, 1])


def test_conditions_by_projection_and_by_concatenation() -> None:
    x, c = draw(6, WIDTH), draw(6, NUM_CLASSES, seed=1).softmax(1)
    made = judge(classes=NUM_CLASSES)
    (network,), (embed,) = made.networks, made.embeds
    hidden = network[:-1](x)
    wanted = network[-1](hidden) + torch.einsum("bk,hk,bh->b", c, embed.weight, hidden)[:, None]
    torch.testing.assert_close(made(x, c), wanted, rtol=1e-12, atol=1e-12)
    other = judge(classes=NUM_CLASSES, conditioned_by="concatenation")
    assert torch.equal(other(x, c), other.networks[0](torch.cat([x, c], dim=1)))


def test_standardised_samples_have_mean_zero_and_deviation_one() -> None:
    x = 3 * draw(500, WIDTH) + 7
    by_batch = judge(standardise="batch").prepared(x)
    torch.testing.assert_close(by_batch, (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
    made = judge(standardise="teacher")
    assert torch.equal(made.prepared(x), x)  # nothing is known yet
    for seed in range(5):
        made.settle(made.seen(3 * draw(500, WIDTH, seed=seed) + 7))
    found = made.prepared(x)
    assert found.mean().item() == pytest.approx(0, abs=0.05)
    assert found.std().item() == pytest.approx(1, abs=0.05)


def test_moments_are_the_corrected_average_and_a_dead_feature_is_not_blown_up() -> None:
    moments = Moments(2).double()
    batches = [torch.stack([draw(64, seed=seed), torch.zeros(64).double()], dim=1) for seed in (1, 2)]
    for batch in batches:
        moments.take(moments.of(batch))
    mean, deviation = moments.standard()
    weights = [0.01 * 0.99, 0.01]
    wanted = sum(w * b.mean(0) for w, b in zip(weights, batches)) / sum(weights)
    torch.testing.assert_close(mean, wanted)
    assert deviation[1] > 0.05
    before = {key: value.clone() for key, value in moments.state_dict().items()}
    moments.take(torch.full((4,), torch.nan))
    assert all(torch.equal(value, moments.state_dict()[key]) for key, value in before.items())


def test_noise_has_the_teachers_deviation_and_falls() -> None:
    made = judge(noise=0.5, noise_steps=4)
    made.settle(made.seen(torch.stack([draw(4000) * 10**k for k in range(WIDTH)], dim=1)))
    x = torch.zeros(4000, WIDTH).double()
    spread = made.prepared(x).std(0)
    _, deviation = made.moments.standard()
    torch.testing.assert_close(spread, 0.5 * 0.75 * deviation, rtol=0.05, atol=0)
    for _ in range(4):
        made.settle({"moved": torch.ones(())})
    assert torch.equal(made.prepared(x), x)
    still = judge(noise=0.5).eval()
    assert torch.equal(still.prepared(x), x)


def test_replay_draws_what_was_seen_and_nothing_else() -> None:
    replay = Replay(8, 2).double()
    batch = draw(3, 2)
    assert torch.equal(replay.drawn(batch), batch)
    replay.push(batch)
    rows = {tuple(row) for row in torch.cat([replay.drawn(batch) for _ in range(50)]).tolist()}
    assert rows == {tuple(row) for row in batch.tolist()}
    for seed in range(1, 5):
        replay.push(draw(3, 2, seed=seed))
    rows = {tuple(row) for row in torch.cat([replay.drawn(batch) for _ in range(200)]).tolist()}
    last = torch.cat([draw(3, 2, seed=seed) for seed in range(5)])[-8:]
    assert rows == {tuple(row) for row in last.tolist()}


def test_the_balance_gives_the_share() -> None:
    balance = Balance()
    assert balance.factor(0.25).item() == 0
    for _ in range(3):
        balance.take(torch.tensor([2.0, 30.0]))
    factor = balance.factor(0.25)
    assert (factor * 2 / (factor * 2 + 30)).item() == pytest.approx(0.25, rel=1e-6)
    assert balance.share(factor).item() == pytest.approx(0.25, rel=1e-6)


def bits(game: Game) -> tuple[dict[str, Tensor], Outputs, Outputs]:
    batch = game.batch(0)
    nets = game.players.modules()
    return nets, batch, game.method.forward(nets, batch)


@pytest.mark.parametrize("student", [(3, 4), (6, 9)], ids=["adapted", "of equal width"])
def test_pulls_are_the_gradients_at_the_students_features(student: tuple[int, int]) -> None:
    """Against a second pass from leaves that stand at the features, through head and adapter."""
    game = Game(Anc(health=True, dropout=0.0), student=student)
    nets, batch, out = bits(game)
    played = game.method.plays[1].loss(nets, batch, out)
    leaf = game.student(batch.images).features.detach().requires_grad_()
    adapted = getattr(nets["student"], "adapter", nn.Identity())(leaf)
    fool = games.to_fool("bce", nets["discriminator"](adapted))
    data = (game.student.head(leaf) - batch.target.logits).square().sum(1).mean()
    wanted = [torch.autograd.grad(loss, leaf)[0].norm().item() for loss in (fool, data)]
    found = [played.measures[key].item() for key in ("pull_game", "pull_data")]
    assert found == pytest.approx(wanted, rel=1e-6)  # images are normalised in fp32
    assert played.state["pulls"].tolist() == pytest.approx(wanted, rel=1e-6)


def test_pulls_at_the_logits_and_of_what_is_not_read() -> None:
    student = make_game("anc").players["student"].module
    logits = draw(4, NUM_CLASSES).requires_grad_()
    out = apart(Outputs(logits, draw(4, 3).requires_grad_()))
    found = pulls([out.logits.square().sum() / 2, 0 * out.features.sum()], out, student, at_logits=True)
    assert found.tolist() == pytest.approx([logits.norm().item(), 0.0])


KNOBS = [
    {"game_loss": "hinge", "regulariser": "none", "dropout": 0.0},
    {"game_loss": "least_squares", "label_smoothing": 0.1},
    {"game_weight": 0.3},
    {"game_share": 0.5},
    {"standardise": "batch"},
    {"standardise": "teacher"},
    {"on": "both", "standardise": "teacher"},
    {"condition": "softmax"},
    {"condition": "class", "conditioned_by": "concatenation"},
    {"spectral_norm": True},
    {"gradient_penalty": 1.0, "standardise": "teacher"},
    {"gradient_penalty": 1.0, "penalty_at": "between"},
    {"label_smoothing": 0.1},
    {"noise": 0.3, "noise_steps": 3, "dropout": 0.0},
    {"replay": 13, "condition": "softmax"},
    {"discriminators": 3, "discriminator": "8-8"},
    {"discriminator_steps": 2},
    {"health": True, "on": "logits"},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_a_knob_changes_the_game_and_keeps_its_rules(knobs: dict[str, object]) -> None:
    """Finite, only the player on turn moves, the weights differ from the paper's after three steps; nobody waits."""
    game, plain = make_game("anc", **knobs), make_game("anc")
    for step in range(3):
        before = [weight.detach().clone() for weight in game.players["student"].parameters]
        moves = game.moves(game.batch(step))
        for number in range(len(game.method.plays)):
            with Waits():
                move = next(moves)
            assert all(term.isfinite() for term in move.played.terms.values())
            logged = [*move.played.measures.values(), *move.played.state.values()]
            assert not any(value.requires_grad for value in logged)
            pairs = zip(before, game.players["student"].parameters, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs) == (number < len(game.method.plays) - 1)
    for step in range(3):
        plain.step(step)
    watched = {key for key in knobs if key in ("health", "on")}
    ours, theirs = (
        torch.cat([w.flatten() for w in one.players["student"].parameters]) for one in (game, plain)
    )
    assert not torch.equal(ours, theirs) or watched == {"health"}


def test_health_alone_moves_no_bit() -> None:
    ours, plain = make_game("anc", health=True), make_game("anc")
    for step in range(3):
        for game in (ours, plain):
            game.step(step)
    for name in ("student", "discriminator"):
        for a, b in zip(ours.players[name].parameters, plain.players[name].parameters, strict=True):
            assert torch.equal(a, b)


def test_discriminators_learn_as_if_alone() -> None:
    """Each of two has the weights that it would have as the only one, but for rounding."""
    both = make_game("anc", discriminators=2, discriminator="8-8", dropout=0.0)
    alone = [
        make_game("anc", discriminators=1, spectral_norm=False, health=True, discriminator="8-8", dropout=0.0)
        for _ in range(2)
    ]
    for number, game in enumerate(alone):
        wanted = both.players["discriminator"].module.networks[number].state_dict()
        game.players["discriminator"].module.networks[0].load_state_dict(wanted)
    for game in (both, *alone):
        next(game.moves(game.batch(0)))
    for number, game in enumerate(alone):
        ours = both.players["discriminator"].module.networks[number].parameters()
        for a, b in zip(ours, game.players["discriminator"].module.networks[0].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [pytest.param(0.1, marks=pytest.mark.slow), 0.5])
def test_the_share_is_reached(share: float) -> None:
    knobs = {"regulariser": "none", "dropout": 0.0, "standardise": "teacher", "spectral_norm": True}
    game = Game(Anc(game_share=share, **knobs), student=(6, 9))
    found = []
    for step in range(160):
        *_, (_, played) = game.moves(game.batch(step))
        ours, data = (played.measures[key].item() for key in ("pull_game", "pull_data"))
        found.append(ours / (ours + data))
    assert found[0] == 0  # nothing is measured yet
    assert sum(found[80:]) / 80 == pytest.approx(share, rel=0.15)


def test_in_parts_the_state_settles_once() -> None:
    whole, cut = (
        make_game("anc", game_share=0.3, standardise="teacher", dropout=0.0, replay=8) for _ in range(2)
    )
    for game, parts in ((whole, 1), (cut, 2)):
        play(game.method, game.players, game.batch(0), parts)
    ours, theirs = (game.players["discriminator"].module for game in (whole, cut))
    torch.testing.assert_close(ours.moments.sums, theirs.moments.sums)
    assert torch.equal(ours.balance.weight, theirs.balance.weight)
    assert theirs.replay.seen.item() == BATCH


def test_the_game_may_start_later_and_the_rate_may_stay() -> None:
    method = Anc(game_start=5, discriminator_schedule="constant")
    assert [method.ramp("fool", step) for step in (0, 4, 5, 6)] == [0, 0, 1, 1]
    assert method.ramp("data", 0) == 1
    game = Game(method)
    game.players.set_lr(0.1)
    rates = {name: player.optimizer.param_groups[0]["lr"] for name, player in game.players.items()}
    assert rates == pytest.approx({"student": 0.002, "discriminator": 0.02})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"game_share": 0.2, "game_weight": 0.5}, "game_weight does nothing beside method.game_share"),
        ({"game_share": 0.2, "lambda_data": 0.0}, "lambda_data 0 leaves out"),
        ({"game_start": 3, "game_weight": 0.0}, "game_start does nothing"),
        ({"saturating": True, "game_loss": "hinge"}, "saturating is a form of bce alone"),
        ({"label_smoothing": 0.1, "game_loss": "hinge"}, "hinge has none"),
        ({"conditioned_by": "concatenation"}, "does nothing without method.condition"),
        ({"penalty_at": "between"}, "does nothing without method.gradient_penalty"),
        ({"gradient_penalty": 1.0, "standardise": "batch"}, "a batch's statistics mix"),
        ({"noise_steps": 3}, "does nothing without method.noise"),
        ({"spectral_norm": True, "regulariser": "l2"}, "take one of them"),
        ({"game_share": 1.0}, "method.game_share is 1.0"),
    ],
)
def test_knobs_that_contradict_each_other_are_one_sentence(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Anc(**knobs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_kernels_and_compilers_leave_what_they_cannot_compute(
    knobs: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Anc(**{**knobs, "discriminator": "20-33-24"})
    nets = Game(method).players.modules()
    monkeypatch.setattr("fastanc.training.fused.runs_kernels", lambda _: True)
    first, *_, last = method.plays
    formulas = {"game_weight", "discriminator_steps"}
    assert (fused(method, first, nets) is not None) == (knobs.keys() <= formulas)
    assert (fused(method, last, nets) is not None) == (knobs.keys() <= formulas)
    for each in method.plays:
        asks = each.player == "student" and method.examines
        asks = asks or (each.player == "discriminator" and method.gradient_penalty > 0)
        assert (spelled("compiled", method, each, nets) is None) == asks


def test_a_sum_has_the_knobs_of_its_parts() -> None:
    """The share is kept and the state settled under the part's name; a constant rate is the part's player's."""
    parts = ({"type": "anc", "game_share": 0.3, "discriminator_schedule": "constant"}, "l2")
    game = make_game("sum", parts=parts)
    for step in range(3):
        terms = game.step(step)[-1]
    assert terms["anc_pull_game"] > 0
    assert game.players["anc_discriminator"].module.balance.weight > 0
    assert game.method.constant_rates == {"anc_discriminator"}
    assert game.method.examines
    batch = game.batch(0)
    nets = game.players.modules()
    with torch.no_grad():
        found = game.method.examined(nets, nets["student"](batch.images), batch.target)
    assert {"anc_held_won", "anc_distance", "anc_pull_share"} <= set(found)
    assert Play("student", game.method.student_play, True) in game.method.plays


def test_a_play_of_hinges_is_held_to_float64() -> None:
    """Its last bias's gradient is an exact zero: what any spelling differs by there is rounding."""
    method = Anc(
        game_loss="hinge", regulariser="none", dropout=0.0, noise=0.3, condition="softmax", game_share=0.2
    )
    teacher, student = tapped(6, 9, seed=1).float().eval(), tapped(3, 4, seed=3).float()
    players = players_of(method, student, teacher, SGD)
    batch = Game(method).batch(0)
    images = batch.images.float()
    with torch.no_grad():
        batch = replace(batch, images=images, target=teacher(images))
    for _ in range(2):
        play(method, players, batch)
    trials = PlayTrials(method, players, batch, "fp32")
    errors = [trials.trial(place, made.loss).error for place, made in enumerate(method.plays)]
    assert max(errors) < 1e-3
