"""The kernels against float64: compiled on CUDA, in Triton's interpreter elsewhere, and their references.

`test_in_the_interpreter` runs this file once more in a process of the interpreter; in an ordinary one the CPU's tests
see the references.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.kernels.backend import INTERPRETED
from fastanc.kernels.discriminator_move import discriminator_move
from fastanc.kernels.dropout import draw_seed, dropout_mask
from fastanc.kernels.fooling_move import fooling_move
from fastanc.kernels.logit_losses import soft_kl, squared_error
from fastanc.kernels.small_set import crop_flip
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import PadCrop
from support.interpreter import passes_in_the_interpreter

on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
EXACT = 2e-5
# one rounding of the gradient to the student's dtype
ROUNDING = {torch.float32: EXACT, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def distance(values: Tensor, truth: Tensor) -> float:
    """Return ||values - truth|| / ||truth||."""
    truth = truth.detach().double().cpu()
    return float((values.detach().double().cpu() - truth).norm() / truth.norm())


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter() -> None:
    assert passes_in_the_interpreter(__file__)


def test_this_process_runs_what_it_says() -> None:
    """In the interpreter's process the autograd node is the kernel's, elsewhere it is the reference's."""
    loss = squared_error(torch.randn(3, 5, requires_grad=True), torch.randn(3, 5))
    assert loss.grad_fn is not None
    assert (loss.grad_fn.name() == "_WithGradientBackward") == INTERPRETED


def further(loss: Tensor) -> Tensor:
    """The loss is not the last operation, and its outer gradient is not 1."""
    return 3 * loss + loss.sqrt()


def kl_by_hand(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (
        values / temperature - torch.logsumexp(values / temperature, 1, True) for values in (teacher, student)
    )
    return temperature**2 * (p.exp() * (p - q)).sum(1).mean()


def check_losses(student: Tensor, teacher: Tensor, rounding: float = EXACT) -> None:
    """Hold both losses, with every knob, and their gradients to float64."""
    wide = student.detach().cpu().double().requires_grad_()
    target = teacher.detach().cpu().double()
    pairs = [
        (squared_error(student, teacher), (wide - target).square().sum(1).mean()),
        (squared_error(student, teacher, "mean"), (wide - target).square().mean()),
        *((soft_kl(student, teacher, t), kl_by_hand(wide, target, t)) for t in (1.0, 4.0)),
    ]
    for ours, truth in pairs:
        (gradient,) = torch.autograd.grad(further(ours), student)
        (true_gradient,) = torch.autograd.grad(further(truth), wide)
        assert ours.dtype == torch.float32
        assert gradient.dtype == student.dtype
        assert distance(ours, truth) < EXACT
        assert distance(gradient, true_gradient) < rounding


@on_devices
@pytest.mark.parametrize(("batch", "classes"), [(1, 10), (41, 401), (3, 2048), (2, 5000)])
def test_logit_losses(batch: int, classes: int, device: str) -> None:
    student, teacher = (3 * torch.randn(2, batch, classes)).to(device).unbind()
    check_losses(student.requires_grad_(), teacher)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logit_losses_of_strided_half_precision(dtype: torch.dtype, device: str) -> None:
    student = torch.randn(45, 17).to(device, dtype).t().requires_grad_()
    teacher = torch.randn(17, 90).to(device, dtype)[:, ::2]
    check_losses(student, teacher, ROUNDING[dtype])


@on_devices
def test_logit_losses_of_extreme_logits(device: str) -> None:
    student, teacher = (1e4 * torch.randn(2, 5, 33)).to(device).unbind()
    check_losses(student.requires_grad_(), teacher)


@on_devices
def test_a_small_gradient_in_half_precision_waits_for_its_loss_scale(device: str) -> None:
    student = torch.randn(64, 1000).to(device, torch.float16).requires_grad_()
    teacher = student.detach() + 0.01
    scale = 2.0**16
    (gradient,) = torch.autograd.grad(scale * squared_error(student, teacher, "mean"), student)
    difference = student.detach().double() - teacher.double()
    assert distance(gradient, scale * 2 * difference / difference.numel()) < 1e-3


@on_devices
def test_a_teacher_that_learns_gets_its_gradient_too(device: str) -> None:
    student, teacher = (torch.randn(3, 7, device=device, requires_grad=True) for _ in range(2))
    for loss in (squared_error(student, teacher), soft_kl(student, teacher, 2.0)):
        assert torch.autograd.grad(loss, teacher)[0].norm() > 0


class Game:
    """A discriminator, two samples and a mask; and what the moves are in float64."""

    def __init__(
        self, hidden: tuple[int, ...], batch: int, depth: int, device: str, dtype: torch.dtype = torch.float32
    ):
        layers: list[nn.Module] = []
        for ins, outs in zip((depth, *hidden), hidden):
            layers += [nn.Linear(ins, outs), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Linear(hidden[-1], 1)).to(device)
        self.teacher = torch.randn(batch, depth).relu().half().to(device)
        self.student = torch.randn(batch, depth).relu().to(device, dtype)
        self.drop = 0.3
        self.seed = draw_seed(self.student.device)
        self.parameters = list(self.network.parameters())

    def truth(self, autocast: bool = False) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Return D's loss, the gradients of its weights, the student's loss and the features' gradient.

        In float64 on the CPU; or, with autocast, what PyTorch's own bf16 makes of it.
        """
        network = nn.Sequential(*(type(m)(*_arguments(m)) for m in self.network))
        network.load_state_dict(self.network.state_dict())
        network = network.float() if autocast else network.double()
        dtype = torch.float32 if autocast else torch.float64
        t, s = self.teacher.cpu().to(dtype), self.student.detach().cpu().to(dtype)
        keep = self.mask().cpu().to(dtype) / (1 - self.drop)
        bce = F.binary_cross_entropy_with_logits
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            on_t, on_s, on_a = (network(x).to(dtype) for x in (t, s, s * keep))
            ones, zeros = torch.ones_like(on_t), torch.zeros_like(on_t)
            move = bce(on_t, ones) + bce(on_s, zeros) + bce(on_a, ones)
            weights = torch.autograd.grad(further(move), list(network.parameters()))
            s.requires_grad_()
            fooling = bce(network(s * keep).to(dtype), ones)
        return move, list(weights), fooling, torch.autograd.grad(further(fooling), s)[0]

    def mask(self) -> Tensor:
        return dropout_mask(self.seed, *self.student.shape, self.drop)

    def moves(self) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Return the same of the kernels."""
        move = discriminator_move(self.teacher, self.student, self.parameters, self.drop, self.seed)
        weights = torch.autograd.grad(further(move.loss), self.parameters)
        student = self.student.detach().requires_grad_()
        fooling = fooling_move(student, self.parameters, self.drop, self.seed)
        return move.loss, list(weights), fooling.loss, torch.autograd.grad(further(fooling.loss), student)[0]


def _arguments(module: nn.Module) -> tuple[int, ...]:
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else ()


def distances(ours: tuple, truth: tuple) -> list[float]:
    """Return the distances of both losses, of the weights' gradient as one vector, and of the features'."""
    flat = [(a, torch.cat([w.flatten() for w in b]), c, d) for a, b, c, d in (ours, truth)]
    return [distance(mine, true) for mine, true in zip(*flat)]


def check_moves(game: Game, device: str, rounding: float = EXACT) -> None:
    far = distances(game.moves(), game.truth())
    if device == "cpu":
        assert max(far[:3]) < EXACT
        assert far[3] < rounding
    else:  # bf16 flips some ReLUs: be about as near to the truth as autocast is
        bounds = [2 * other + 2e-2 for other in distances(game.truth(autocast=True), game.truth())]
        assert all(mine < bound for mine, bound in zip(far, bounds)), (far, bounds)


@on_devices
@pytest.mark.parametrize(
    ("hidden", "batch", "depth", "masked"),
    [
        ((128, 256, 128), 17, 70, True),
        ((33, 128, 256), 3, 257, True),
        ((24, 100, 48), 41, 40, False),
        ((40, 33), 3, 70, True),
        ((130, 17, 20), 3, 70, True),
    ],
    ids=str,
)
def test_moves(hidden: tuple[int, ...], batch: int, depth: int, masked: bool, device: str) -> None:
    game = Game(hidden, batch, depth, device)
    game.drop = 0.3 if masked else 0.0
    check_moves(game, device)


@on_devices
def test_moves_of_strided_half_samples(device: str) -> None:
    dtype = torch.float16
    game = Game((24, 100, 48), 19, 40, device, dtype)
    game.teacher = game.teacher.t().contiguous().t()
    game.student = game.student.repeat_interleave(2, 1)[:, ::2]
    assert game.moves()[3].dtype == dtype
    check_moves(game, device, 3 * ROUNDING[dtype])


@on_devices
def test_moves_report_terms_and_judgements(device: str) -> None:
    game = Game((24, 100, 48), 19, 40, device)
    move = discriminator_move(game.teacher, game.student, game.parameters, 0.3, game.seed)
    fooling = fooling_move(game.student, game.parameters, 0.3, game.seed)
    with torch.no_grad():
        dropped = game.student * game.mask() / 0.7
        judged = torch.stack([game.network(x.float())[:, 0] for x in (game.teacher, game.student, dropped)])
    near = 1e-5 if device == "cpu" else 3e-2
    assert distance(move.judged, judged) < near
    assert distance(fooling.judged, judged[2:]) < near
    assert distance(move.terms, F.softplus(judged * judged.new_tensor([[-1], [1], [-1]])).mean(1)) < near
    assert distance(move.terms.sum(), move.loss) < 1e-6
    assert distance(fooling.terms[0], fooling.loss) < 1e-6
    assert not move.terms.requires_grad
    assert not move.judged.requires_grad


@on_devices
def test_a_seed_fixes_a_mask(device: str) -> None:
    torch.manual_seed(3)
    seeds = [draw_seed(torch.device(device)) for _ in range(2)]
    torch.manual_seed(3)
    again = [draw_seed(torch.device(device)) for _ in range(2)]
    masks, same = ([dropout_mask(seed, 50, 401, 0.3) for seed in each] for each in (seeds, again))
    assert all(torch.equal(mask, other) for mask, other in zip(masks, same))
    for mask in masks:
        assert abs(float(mask.float().mean()) - 0.7) < 4 * (0.3 * 0.7 / mask.numel()) ** 0.5
    agree = float((masks[0] == masks[1]).float().mean())
    assert abs(agree - (0.7**2 + 0.3**2)) < 0.02
    assert abs(float((mask[:, 1:] == mask[:, :-1]).float().mean()) - 0.58) < 0.02
    assert abs(float((mask[1:] == mask[:-1]).float().mean()) - 0.58) < 0.02


@on_devices
def test_moves_draw_another_mask_every_time(device: str) -> None:
    game = Game((24, 20, 16), 9, 40, device)

    def losses() -> list[float]:
        torch.manual_seed(5)
        drawn = [fooling_move(game.student, game.parameters, 0.5).loss for _ in range(2)]
        drawn += [discriminator_move(game.teacher, game.student, game.parameters, 0.5).loss for _ in range(2)]
        return [float(loss.detach()) for loss in drawn]

    first = losses()
    assert first == losses()
    assert first[0] != first[1]
    assert first[2] != first[3]


@on_devices
@pytest.mark.parametrize(("channels", "out_px"), [(1, 28), (3, 32), (3, 11)])
def test_crop_flip(channels: int, out_px: int, device: str) -> None:
    images = torch.randint(0, 256, (9, 32, 30, channels), dtype=torch.uint8)
    index = torch.tensor([8, 0, 0, 3, 5, 5, 1])
    corners = torch.randint(-6, 9, (7, 2), dtype=torch.int32)
    flips = torch.tensor([0, 1, 0, 1, 1, 0, 1], dtype=torch.uint8)
    wide = np.pad(images.numpy(), ((0, 0), (50, 50), (50, 50), (0, 0)))
    truth = []
    for i, (x, y), flip in zip(index.tolist(), corners.tolist(), flips.tolist()):
        cut = wide[i, y + 50 : y + 50 + out_px, x + 50 : x + 50 + out_px]
        truth.append(cut[:, ::-1] if flip else cut)
    expected = torch.from_numpy(np.stack(truth))
    for pad in (0, 5):
        strided = (corners + pad).t().contiguous().t().to(device)
        ours = crop_flip(images.to(device), index.to(device), strided, flips.to(device), out_px, pad)
        assert torch.equal(ours.cpu(), expected)


@on_devices
def test_an_array_set_cuts_by_the_kernel_what_it_cuts_without(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), np.uint8)
    rule, order = PadCrop(12, seed=1, pad=3), Order(20, 7, seed=2)

    def pixels() -> list[Tensor]:
        data = ArraySet("toy", images, np.arange(20) % 3, ["a", "b", "c"], (0.5,) * 3, (0.25,) * 3)
        return [batch.images for batch in data.on(device).batches(order, rule, stop=4)]

    calls = []
    where = "fastanc.pipelines.arrays."
    monkeypatch.setattr(where + "crop_flip", lambda *given: calls.append(1) or crop_flip(*given))
    ours = pixels()
    assert len(calls) == (4 if INTERPRETED or device == "cuda" else 0)
    monkeypatch.setattr(where + "runs_kernels", lambda _: False)
    for cut, plain in zip(ours, pixels(), strict=True):
        assert torch.equal(cut, plain)
        assert cut.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "depth"), [(256, 64), (256, 2048), (512, 512), (1000, 64), (1000, 2048)])
def test_kernels_at_full_size(batch: int, depth: int) -> None:
    check_moves(Game((128, 256, 128), batch, depth, "cuda"), "cuda")
    check_losses(
        torch.randn(batch, 1000, device="cuda", requires_grad=True), torch.randn(batch, 1000, device="cuda")
    )


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [(128, 256, 128), (256, 256, 256)])
def test_kernels_repeat_bitwise_and_never_wait_for_the_device(hidden: tuple[int, ...]) -> None:
    game = Game(hidden, 300, 512, "cuda")
    student = torch.randn(300, 1000, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.randn(300, 1000, device="cuda")

    def everything() -> list[Tensor]:
        results = []
        for loss in (squared_error(student, teacher), soft_kl(student, teacher, 2.0)):
            results += [loss, *torch.autograd.grad(further(loss), student)]
        move, weights, fooling, gradient = game.moves()
        return [*results, move, *weights, fooling, gradient]

    first = everything()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second))
