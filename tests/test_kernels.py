"""The kernels against float64: compiled on CUDA, in Triton's interpreter elsewhere, and their references.

Triton decides between compiler and interpreter when a kernel is defined, so the interpreter needs a process of its
own: `test_in_the_interpreter` runs this file once more in one. In an ordinary process the CPU's tests see the
references.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.kernels.backend import INTERPRETED
from fastanc.kernels.discriminator_move import discriminator_move
from fastanc.kernels.fooling_move import fooling_move
from fastanc.kernels.small_set import crop_flip, crop_flip_normalise
from fastanc.kernels.teacher_tail import Tile, head_squared_error
from fastanc.kernels.teacher_tail_kl import head_kl
from fastanc.losses import soft_kl, squared_error

on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
SHAPES = [(1, 10, 64), (41, 401, 70), (6, 1271, 48)]
EXACT = 2e-5
# one rounding of the gradient to the student's dtype
ROUNDING = {torch.float32: EXACT, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def distance(values: Tensor, truth: Tensor) -> float:
    """Return ||values - truth|| / ||truth||."""
    truth = truth.detach().double().cpu()
    return float((values.detach().double().cpu() - truth).norm() / truth.norm())


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    around = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__],
        env=around,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stdout:
        pytest.skip("the interpreter of this Triton cannot loop with this NumPy (Triton 3.6 with NumPy 2.4)")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_this_process_runs_what_it_says() -> None:
    """In the interpreter's process the autograd node is the kernel's, elsewhere it is the reference's."""
    student = torch.randn(3, 5, requires_grad=True)
    loss = head_squared_error(student, torch.randn(3, 4).half(), torch.randn(5, 4))
    assert loss.grad_fn is not None
    assert (loss.grad_fn.name() == "_SquaredErrorBackward") == INTERPRETED


class Tail:
    """One batch of the teacher's tail, and what its loss is in float64."""

    def __init__(
        self, shape: tuple[int, int, int], kind: str, dtype: torch.dtype, head: torch.dtype, device: str
    ):
        batch, classes, depth = shape
        self.student = torch.randn(batch, classes).mul(3).to(device, dtype).requires_grad_()
        self.weight = (torch.randn(classes, depth) / depth**0.5).to(device, head)
        self.bias = torch.randn(classes).to(device, head)
        self.scale: Tensor | None = None
        self.rows = torch.randn(batch, depth).half().to(device)
        if kind == "uint8":
            self.rows = torch.randint(0, 256, (batch, depth), dtype=torch.uint8).to(device)
            self.scale = (torch.rand(batch) / 64).to(device)

    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.rows, self.weight, self.bias, self.scale

    def truth(self, temperature: float | None) -> tuple[Tensor, Tensor]:
        student = self.student.detach().double().requires_grad_()
        features = (
            self.rows.double() if self.scale is None else self.rows.double() * self.scale.double()[:, None]
        )
        teacher = F.linear(features, self.weight.double(), self.bias.double())
        loss = (
            squared_error(student, teacher) if temperature is None else soft_kl(student, teacher, temperature)
        )
        return loss, torch.autograd.grad(further(loss), student)[0]


def further(loss: Tensor) -> Tensor:
    """The loss is not the last operation, and its outer gradient is not 1."""
    return 3 * loss + loss.sqrt()


def head_loss(tail: Tail, temperature: float | None) -> Tensor:
    if temperature is None:
        return head_squared_error(tail.student, *tail.operands())
    return head_kl(tail.student, *tail.operands(), temperature)


@on_devices
@pytest.mark.parametrize("temperature", [None, 1.0, 4.0])
@pytest.mark.parametrize(("kind", "shape"), [*[("fp16", s) for s in SHAPES], ("uint8", SHAPES[1])], ids=str)
def test_tail(kind: str, shape: tuple[int, int, int], temperature: float | None, device: str) -> None:
    tail = Tail(shape, kind, torch.float32, torch.float16, device)
    if kind == "fp16" and device == "cpu" and not INTERPRETED:
        tail.weight, tail.bias = tail.weight.float(), tail.bias.float()
    loss = head_loss(tail, temperature)
    (gradient,) = torch.autograd.grad(further(loss), tail.student)
    true_loss, true_gradient = tail.truth(temperature)
    exact = EXACT if device == "cuda" or INTERPRETED or kind == "fp16" else 5e-3
    assert distance(loss, true_loss) < exact
    assert distance(gradient, true_gradient) < exact


@on_devices
@pytest.mark.parametrize("temperature", [None, 2.0])
@pytest.mark.parametrize(
    ("dtype", "head"),
    [(torch.float32, torch.float32), (torch.float16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
def test_tail_in_every_dtype(
    dtype: torch.dtype, head: torch.dtype, temperature: float | None, device: str
) -> None:
    tail = Tail((17, 45, 33), "fp16", dtype, head, device)
    loss = head_loss(tail, temperature)
    (gradient,) = torch.autograd.grad(further(loss), tail.student)
    true_loss, true_gradient = tail.truth(temperature)
    # an fp32 weight is rounded to fp16 by the kernel; a bf16 one rounds the rows in the reference
    rounded = {torch.float32: 1e-3, torch.bfloat16: 1e-2}[head]
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert distance(loss, true_loss) < rounded
    assert distance(gradient, true_gradient) < rounded + ROUNDING[dtype]


@on_devices
@pytest.mark.parametrize("temperature", [None, 2.0])
def test_tail_of_strided_inputs(temperature: float | None, device: str) -> None:
    tail = Tail((12, 30, 26), "fp16", torch.float32, torch.float32, device)
    plain = head_loss(tail, temperature)
    (plain_gradient,) = torch.autograd.grad(plain, tail.student)
    tail.student = tail.student.detach().t().contiguous().t().requires_grad_()
    tail.rows = tail.rows.repeat_interleave(2, 1)[:, ::2]
    tail.weight = tail.weight.t().contiguous().t()
    strided = head_loss(tail, temperature)
    (gradient,) = torch.autograd.grad(strided, tail.student)
    assert distance(strided, plain) < 1e-6
    assert distance(gradient, plain_gradient) < 1e-6


@on_devices
def test_tail_without_bias_and_with_another_tile(device: str) -> None:
    tail = Tail((20, 50, 40), "uint8", torch.float32, torch.float32, device)
    tail.bias = torch.zeros_like(tail.bias)
    loss = head_squared_error(tail.student, tail.rows, tail.weight, None, tail.scale, tile=Tile(16, 32, 16))
    kl = head_kl(tail.student, tail.rows, tail.weight, None, tail.scale, 2.0, tile=Tile(16, 16, 32))
    assert distance(loss, tail.truth(None)[0]) < 1e-3
    assert distance(kl, tail.truth(2.0)[0]) < 1e-3


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
        self.keep: Tensor | None = (torch.rand(batch, depth) < 0.7).to(device)
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
        keep = torch.ones_like(s) if self.keep is None else self.keep.cpu().to(dtype) / 0.7
        bce = F.binary_cross_entropy_with_logits
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            on_t, on_s, on_a = (network(x).to(dtype) for x in (t, s, s * keep))
            ones, zeros = torch.ones_like(on_t), torch.zeros_like(on_t)
            move = bce(on_t, ones) + bce(on_s, zeros) + bce(on_a, ones)
            weights = torch.autograd.grad(further(move), list(network.parameters()))
            s.requires_grad_()
            fooling = bce(network(s * keep).to(dtype), ones)
        return move, list(weights), fooling, torch.autograd.grad(further(fooling), s)[0]

    def moves(self) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Return the same of the kernels."""
        drop = 0.0 if self.keep is None else 0.3
        move = discriminator_move(self.teacher, self.student, self.parameters, self.keep, drop)
        weights = torch.autograd.grad(further(move.loss), self.parameters)
        student = self.student.detach().requires_grad_()
        fooling = fooling_move(student, self.parameters, self.keep, drop)
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
    ],
    ids=str,
)
def test_moves(hidden: tuple[int, ...], batch: int, depth: int, masked: bool, device: str) -> None:
    game = Game(hidden, batch, depth, device)
    if not masked:
        game.keep = None
    check_moves(game, device)


@on_devices
def test_moves_of_strided_half_samples(device: str) -> None:
    dtype = torch.float16
    game = Game((24, 100, 48), 19, 40, device, dtype)
    game.teacher = game.teacher.t().contiguous().t()
    game.student = game.student.repeat_interleave(2, 1)[:, ::2]
    assert game.keep is not None
    game.keep = game.keep.t().contiguous().t()
    assert game.moves()[3].dtype == dtype
    check_moves(game, device, 3 * ROUNDING[dtype])


@on_devices
def test_moves_report_terms_and_judgements(device: str) -> None:
    game = Game((24, 100, 48), 19, 40, device)
    assert game.keep is not None
    move = discriminator_move(game.teacher, game.student, game.parameters, game.keep, 0.3)
    fooling = fooling_move(game.student, game.parameters, game.keep, 0.3)
    with torch.no_grad():
        dropped = game.student * game.keep / 0.7
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
@pytest.mark.parametrize(("channels", "out_px"), [(1, 28), (3, 32), (3, 11)])
def test_crop_flip(channels: int, out_px: int, device: str) -> None:
    images = torch.randint(0, 256, (9, 32, 30, channels), dtype=torch.uint8)
    index = torch.tensor([8, 0, 0, 3, 5, 5, 1])
    boxes = torch.randint(-6, 9, (7, 4), dtype=torch.int32)
    flips = torch.tensor([0, 1, 0, 1, 1, 0, 1], dtype=torch.uint8)
    wide = np.pad(images.numpy(), ((0, 0), (50, 50), (50, 50), (0, 0)))
    truth = []
    for i, (x, y, *_), flip in zip(index.tolist(), boxes.tolist(), flips.tolist()):
        cut = wide[i, y + 50 : y + 50 + out_px, x + 50 : x + 50 + out_px]
        truth.append(cut[:, ::-1] if flip else cut)
    expected = torch.from_numpy(np.stack(truth))

    strided = boxes.t().contiguous().t().to(device)
    inputs = images.to(device), index.to(device), strided, flips.to(device), out_px
    assert torch.equal(crop_flip(*inputs).cpu(), expected)

    mean, std = torch.rand(channels), torch.rand(channels) + 0.2
    normal = ((expected.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    for dtype, near in ((torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        ours = crop_flip_normalise(*inputs, mean.to(device), std.to(device), dtype)
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert distance(ours, normal) < near


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "depth"), [(256, 64), (256, 2048), (512, 512), (1000, 64), (1000, 2048)])
def test_kernels_at_full_size(batch: int, depth: int) -> None:
    check_moves(Game((128, 256, 128), batch, depth, "cuda"), "cuda")
    for temperature in (None, 2.0):
        tail = Tail((batch, 1000, depth), "uint8", torch.float32, torch.float16, "cuda")
        loss = head_loss(tail, temperature)
        (gradient,) = torch.autograd.grad(further(loss), tail.student)
        true_loss, true_gradient = tail.truth(temperature)
        assert distance(loss, true_loss) < 1e-4
        assert distance(gradient, true_gradient) < 1e-4


@pytest.mark.gpu
def test_kernels_repeat_bitwise_and_never_wait_for_the_device() -> None:
    tail, game = (
        Tail((300, 1000, 512), "fp16", torch.bfloat16, torch.float16, "cuda"),
        Game((128, 256, 128), 300, 512, "cuda"),
    )

    def everything() -> list[Tensor]:
        results = []
        for loss in (head_loss(tail, None), head_loss(tail, 2.0)):
            results += [loss, *torch.autograd.grad(further(loss), tail.student)]
        move, weights, fooling, gradient = game.moves()
        return [*results, move, *weights, fooling, gradient]

    first = everything()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second))
