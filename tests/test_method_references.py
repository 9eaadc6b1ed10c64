"""Every further method against a plain transcription of its paper: equal weights after five steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from support.tiny_game import BATCH, NUM_CLASSES, SGD, Game, make_game

Nets = Mapping[str, nn.Module]
Move = Callable[[str, Tensor], None]
EACH = torch.arange(BATCH)


def assert_follows(game: Game, plain: Callable[[Nets, Batch, Move, Game], None], steps: int = 5) -> None:
    """Play our method and the plain one from the same start; every weight and running statistic is equal."""
    nets = copy.deepcopy(game.start)
    configs = {"student": SGD, **game.method.optimizers()}
    optimizers = {
        name: configs.get(name, SGD).build(p for p in net.parameters() if p.requires_grad)
        for name, net in nets.items()
    }

    def move(player: str, loss: Tensor) -> None:
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        optimizers[player].step()

    for step in range(steps):
        game.step(step)
        batch = game.batch(step)
        torch.manual_seed(step)
        plain(nets, batch, move, game)
    # A bias that BatchNorm cancels has a gradient of rounding alone, 1e-16 to 1e-15; Adam adds 1e-8 to its size and
    # takes a step of 1e-12 to 1e-10. Everything else agrees to 1e-13.
    for name, net in nets.items():
        ours = game.players[name].module.state_dict()
        for key, value in net.state_dict().items():
            torch.testing.assert_close(
                ours[key], value, rtol=1e-9, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}"
            )
        before = dict(game.start[name].named_parameters())
        assert any(not torch.equal(p, before[key]) for key, p in net.named_parameters())


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.softmax(1)[EACH, labels].log().mean()


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    return temperature**2 * (p * (p / q).log()).sum() / BATCH


def test_supervised() -> None:
    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        move("student", ce(nets["student"](batch.images).logits, batch.labels))

    assert_follows(make_game("supervised"), plain)


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", NUM_CLASSES)])
def test_l2(reduction: str, divisor: int) -> None:
    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        z = nets["student"](batch.images).logits
        move("student", 0.5 * ((z - batch.target.logits) ** 2).sum() / BATCH / divisor)

    assert_follows(make_game("l2", weight=0.5, data_reduction=reduction), plain)


def test_kd() -> None:
    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        z = nets["student"](batch.images).logits
        move("student", 0.9 * kl(batch.target.logits, z, 4.0) + 0.1 * ce(z, batch.labels))

    assert_follows(make_game("kd"), plain)


@pytest.mark.parametrize("hint_steps", [0, 3])
def test_fitnets(hint_steps: int) -> None:
    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        net, regressor = nets["student"].student, nets["student"].regressor
        out = net(batch.images)
        guided = torch.einsum("oi,bihw->bohw", regressor.weight[:, :, 0, 0], out.stages[0])
        guided = guided + regressor.bias[:, None, None]
        hint = 10 * ((guided - batch.target.stages[0]) ** 2).mean()
        task = 0.5 * kl(batch.target.logits, out.logits, 3.0) + 0.5 * ce(out.logits, batch.labels)
        if hint_steps == 0:
            move("student", hint + task)
        else:  # a weight without a gradient still decays, as in our method
            move("student", hint + 0 * task if batch.step < hint_steps else 0 * hint + task)

    assert_follows(
        make_game("fitnets", hint_stage=0, hint_weight=10, hint_steps=hint_steps, alpha=0.5), plain
    )


def test_fitnets_with_the_peers_regressor() -> None:
    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        net, (conv, bn, _) = nets["student"].student, nets["student"].regressor
        out = net(batch.images)
        x = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], out.stages[0]) + conv.bias[:, None, None]
        guided = F.relu(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, True, 0.1))
        bn.num_batches_tracked += 1
        move("student", 100 * F.mse_loss(guided, batch.target.stages[0]) + ce(out.logits, batch.labels))

    assert_follows(make_game("fitnets", hint_stage=0, regressor="conv-bn-relu"), plain)


def test_attention_transfer() -> None:
    def attention(maps: Tensor) -> Tensor:
        q = (maps**2).mean(1).reshape(BATCH, -1)
        return q / (q**2).sum(1, keepdim=True).sqrt()

    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        out = nets["student"](batch.images)
        loss = ce(out.logits, batch.labels)
        for s, t in zip(out.stages, batch.target.stages, strict=True):
            loss = loss + 1000 * ((attention(s) - attention(t)) ** 2).mean()
        move("student", loss)

    assert_follows(make_game("attention_transfer"), plain)


@pytest.mark.parametrize("flow_steps", [0, 3])
def test_fsp(flow_steps: int) -> None:
    def flow(stages: tuple[Tensor, ...]) -> Tensor:
        shallow, deep = F.avg_pool2d(stages[0], 2), stages[1]
        return shallow.flatten(2) @ deep.flatten(2).transpose(1, 2) / deep[0, 0].numel()

    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        out = nets["student"](batch.images)
        matrices = 50 * ((flow(out.stages) - flow(batch.target.stages)) ** 2).mean()
        task = ce(out.logits, batch.labels)
        if flow_steps == 0:
            move("student", matrices + task)
        else:
            move("student", matrices + 0 * task if batch.step < flow_steps else 0 * matrices + task)

    assert_follows(make_game("fsp", flow_steps=flow_steps), plain)


@pytest.mark.parametrize("saturating", [True, False])
def test_can(saturating: bool) -> None:
    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        z_s, z_t, label, k = (
            nets["student"](batch.images).logits,
            batch.target.logits,
            batch.labels,
            NUM_CLASSES,
        )
        judged = nets["discriminator"](torch.cat([z_t, z_s.detach()]))
        on_t, on_s = judged[:BATCH], judged[BATCH:]
        l_a = (on_t[:, k:].softmax(1)[:, 0].log() + on_s[:, k:].softmax(1)[:, 1].log()).mean()
        l_ds = -ce(on_t[:, :k], label) - ce(on_s[:, :k], label)
        move("discriminator", -0.5 * (l_a + l_ds))
        on_s = nets["discriminator"](torch.cat([z_t, z_s]))[BATCH:]
        source = on_s[:, k:].softmax(1).log().mean(0)
        game_term = 0.5 * ((source[1] if saturating else -source[0]) + ce(on_s[:, :k], label))
        l1 = (z_s - z_t).abs().sum(1).mean()
        move("student", ce(z_s, label) + l1 + game_term)

    assert_follows(make_game("can", saturating=saturating), plain)


def squeeze(estimators: nn.Module, out: Outputs, attend_on: str = "raw", pooling: str = "sum") -> Tensor:
    """KSANC section 3.2 written out; the weights are taken from the module."""
    g = F.linear(out.features, estimators.describe.weight.flatten(1), estimators.describe.bias)
    squeezed = []
    for raw, transform, e in zip(out.stages, estimators.transforms, estimators.estimators, strict=True):
        maps = transform(raw)
        lhat = maps + F.linear(g, e.lift.weight.flatten(1), e.lift.bias)[:, :, None, None]
        score = (lhat * e.score.weight).sum(1).flatten(1).exp()
        attention = (score / score.sum(1, keepdim=True))[:, None]
        attended = (maps if attend_on == "raw" else lhat).flatten(2) * attention
        squeezed.append(attended.sum(2) if pooling == "sum" else attended.mean(2))
    return torch.cat(squeezed, 1)


# A later BatchNorm cancels the input's bias: it stays near 0, where |w| has the sign of rounding errors.
@pytest.mark.parametrize(
    ("labels", "layout", "mu_weights"), [("data", "batchnorm", 0.0), ("teacher", "16-8", 1e-4)]
)
def test_ksanc(labels: str, layout: str, mu_weights: float) -> None:
    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        student, judge = nets["student"], nets["discriminator"]
        out, target = student.student(batch.images), batch.target
        label = batch.labels if labels == "data" else target.logits.max(1).indices
        told = squeeze(game.squeezed.estimators, game.squeezed.student(batch.images))
        torch.testing.assert_close(target.descriptors, told)
        judged = judge(torch.cat([target.logits, out.logits.detach()]))
        on_t, on_s = judged[:BATCH], judged[BATCH:]
        real_t, real_s = on_t[:, 0].sigmoid(), on_s[:, 0].sigmoid()
        l_o = real_t.log().mean() + (1 - real_s).log().mean()
        l_c = -ce(on_t[:, 1:], label) - ce(on_s[:, 1:], label)
        w1 = sum(p.abs().sum() for p in judge.parameters())
        w2 = sum((p**2).sum() for p in judge.parameters())
        move("discriminator", -l_o - l_c + mu_weights * (w1 + w2) - real_s.log().mean())
        on_s = judge(torch.cat([target.logits, out.logits]))[BATCH:]
        l_b = ((out.logits - target.logits) ** 2).sum(1).mean()
        l_is = ((squeeze(student.estimators, out) - target.descriptors) ** 2).sum(1).mean()
        l_adv = -on_s[:, 0].sigmoid().log().mean() + ce(on_s[:, 1:], label)
        move("student", l_b + 0.5 * l_adv + 2 * l_is)

    options = {"labels": labels, "discriminator": layout, "mu_weights": mu_weights}
    assert_follows(make_game("ksanc", lambda_game=0.5, lambda_squeeze=2.0, **options), plain)


def test_ksanc_teacher() -> None:
    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        squeezed, head = nets["student"].squeezed, nets["student"].head
        frozen = squeezed.student.eval()(batch.images)
        move("student", ce(head(squeeze(squeezed.estimators, frozen)), batch.labels))

    assert_follows(make_game("ksanc_teacher"), plain)


DAFL = {
    "student_steps": 1,
    "latents": "batch",
    "distance": "kl",
    "generator": "dafl",
    "disagreement": 0,
    "fool": 0,
    "one_hot": 1.0,
    "information": 5.0,
    "activation": 0.1,
}
DFAD = {"one_hot": 0, "information": 0, "activation": 0, "fool": 0}


def test_datafree_as_dafl() -> None:
    """One loop of the published script: both losses from the same images, then both optimizers step."""

    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        images = nets["generator"](batch.images)
        nets["generator"](
            batch.images
        )  # our second play makes them anew, and counts in BatchNorm's statistics
        teacher = game.teacher(images)
        p = teacher.logits.softmax(1).mean(0)
        loss = ce(teacher.logits, teacher.logits.max(1).indices) - 0.1 * teacher.features.abs().mean()
        loss = loss + 5 * (p * p.log10()).sum()
        student = kl(teacher.logits.detach(), nets["student"](images.detach()).logits, 1.0)
        move("student", student)
        move("generator", loss)

    assert_follows(make_game("datafree", **DAFL), plain)


def test_datafree_as_dfad() -> None:
    """Five moves of the student on fresh images, one of the generator."""

    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        for _ in range(5):
            images = nets["generator"](torch.randn_like(batch.images)).detach()
            move("student", (nets["student"](images).logits - game.teacher(images).logits).abs().mean())
        images = nets["generator"](torch.randn_like(batch.images))
        move("generator", -(nets["student"](images).logits - game.teacher(images).logits).abs().mean())

    assert_follows(make_game("datafree", **DFAD), plain)


def test_datafree_whole() -> None:
    """Discriminator and student twice, then the generator with four terms, the student in eval mode."""

    def plain(nets: Nets, batch: Batch, move: Move, game: Game) -> None:
        judge, student, teacher = nets["discriminator"], nets["student"], game.teacher
        for _ in range(2):
            with torch.no_grad():
                images = nets["generator"](torch.randn_like(batch.images))
                h_t, h_s = teacher(images).logits, student(images).logits
            dropped = h_s * torch.empty_like(h_s).bernoulli_(0.5) * 2
            d_t, d_s, d_a = (judge(h).sigmoid() for h in (h_t, h_s, dropped))
            move("discriminator", -(d_t.log() + (1 - d_s).log() + d_a.log()).mean())
            with torch.no_grad():
                images = nets["generator"](torch.randn_like(batch.images))
            z_s = student(images).logits
            fooled = judge(z_s * torch.empty_like(z_s).bernoulli_(0.5) * 2).sigmoid()
            move("student", ((z_s - teacher(images).logits) ** 2).mean() - 0.7 * fooled.log().mean())
        images = nets["generator"](torch.randn_like(batch.images))
        out = teacher(images)
        student.eval()
        gap = (student(images).logits - out.logits).abs().mean()
        student.train()
        p = out.logits.softmax(1).mean(0)
        loss = 0.05 * ce(out.logits, out.logits.max(1).indices) + 5 * (p * p.log10()).sum()
        move("generator", loss - 0.01 * out.features.abs().mean() - gap)

    options = {
        "student_steps": 2,
        "distance": "mse",
        "fool": 0.7,
        "student_eval": True,
        "discriminator": "16-8",
    }
    assert_follows(make_game("datafree", **options), plain)
