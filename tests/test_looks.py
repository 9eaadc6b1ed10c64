"""Looks: bits by a reference of loops, meaning by torchvision, draws by their distributions."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import InterpolationMode

from benchmarks.looks_parity import FILL, PARITY, by_ours, computed, difference
from fastanc.pipelines import look_backend, look_ops, own_looks
from fastanc.pipelines.draws import uniform
from fastanc.pipelines.look_policies import (
    ONE,
    OPS,
    Draws,
    Jitter,
    Key,
    Rand,
    Three,
    Trivial,
    erased,
    policy_of,
)
from fastanc.pipelines.looks import Looks
from fastanc.pipelines.mixing import Mixing, _mixed_at_once, mixed
from fastanc.pipelines.own_looks import register_look
from fastanc.pipelines.pairing import Pairing
from support import look_reference
from support.waits import Waits

PARAMETERS: dict[str, Callable[[np.random.Generator], list[int]]] = {
    "brightness": lambda rng: [int(rng.integers(0, 2 * ONE + 1))],
    "contrast": lambda rng: [int(rng.integers(0, 2 * ONE + 1))],
    "saturation": lambda rng: [int(rng.integers(0, 2 * ONE + 1))],
    "sharpness": lambda rng: [int(rng.integers(0, 2 * ONE + 1))],
    "posterize": lambda rng: [int(rng.integers(0, 9))],
    "solarize": lambda rng: [int(rng.integers(0, 257))],
    "hue": lambda rng: [int(rng.integers(0, 65536))],
    "blur": lambda rng: [int(rng.integers(0, 64))],
    "affine": lambda rng: [int(rng.integers(-most, most)) for most in 2 * (70_000, 70_000, 1 << 22)],
    "translate": lambda rng: rng.integers(-12, 13, 2).tolist(),
    "erase": lambda rng: [*rng.integers(0, 5, 2).tolist(), *rng.integers(3, 14, 2).tolist()],
}  # fmt: skip


def noise(count: int, height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Pictures of noise, some of few values, one of a single value."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, channels), np.uint8)
    images[1] = rng.integers(100, 104, images[1].shape, np.uint8)
    images[2] = 77
    return images


def planes(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def rows(values: list[list[int]]) -> np.ndarray:
    return np.array([row + [0] * (6 - len(row)) for row in values], np.int32)


@pytest.mark.parametrize("op", sorted({*look_ops.PLAIN, *look_ops.FILLING}))
@pytest.mark.parametrize(("height", "width", "channels"), [(13, 9, 3), (8, 8, 1), (2, 3, 3)])
def test_every_bit_is_that_of_the_definition(op: str, height: int, width: int, channels: int) -> None:
    images, rng = noise(10, height, width, channels), np.random.default_rng(1)
    parameters = rows([PARAMETERS.get(op, lambda rng: [0])(rng) for _ in images])
    fill = FILL[:channels]
    given = planes(images)
    made = by_ours(op, given, parameters, fill).permute(0, 2, 3, 1).numpy()
    reference = getattr(look_reference, op)
    more = (fill,) if op in look_ops.FILLING else ()
    for image, p, picture in zip(images, parameters.tolist(), made):
        assert (reference(image, p, *more) == picture).all(), p
    assert torch.equal(given, planes(images)), "the input was written to"


@pytest.mark.parametrize("op", sorted({*look_ops.PLAIN, *look_ops.FILLING}))
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(13, 9, 3), (40, 40, 3), (8, 8, 1), (2, 3, 3), (1, 1, 1)]
)
def test_every_bit_of_a_compiled_loop_is_that_of_the_definition(
    op: str, height: int, width: int, channels: int
) -> None:
    loops = look_backend.loops_for(torch.device("cpu"))
    if loops is None:
        pytest.skip("pip install numba")
    images, rng = noise(12, height, width, channels), np.random.default_rng(1)
    parameters = rows([PARAMETERS.get(op, lambda rng: [0])(rng) for _ in images])
    work, some, fill = images.copy(), np.array([0, 2, 3, 5, 6, 7, 8, 11]), FILL[:channels]
    given = parameters[some]
    if op == "blur":
        given = look_ops.blur_weights(given, height, width)
    loops.ops[op](work, some, given, np.array(fill, np.uint8))
    more = (fill,) if op in look_ops.FILLING else ()
    for k in range(len(images)):
        expected = images[k]
        if k in some:
            expected = getattr(look_reference, op)(images[k], parameters[k].tolist(), *more)
        assert (expected == work[k]).all(), (k, parameters[k])


@pytest.mark.parametrize("policy", ["rand-m9-n2-mstd0.5", "rand-m30-n4", "trivial", "jitter", "three"])
@pytest.mark.parametrize(("px", "channels"), [(61, 3), (24, 1)])
def test_a_machine_without_numba_makes_the_same_pictures(
    monkeypatch: pytest.MonkeyPatch, policy: str, px: int, channels: int
) -> None:
    looks = Looks(policy, 0.5, FILL[:channels], 0.2, True, 3)
    images = torch.from_numpy(noise(64, px, px, channels))
    table, kept = looks.draw(np.arange(64), np.arange(64) % 3, px), images.clone()
    made = looks.apply(images, table)
    assert torch.equal(images, kept), "the input was written to"
    monkeypatch.setattr("fastanc.pipelines.looks.loops_for", lambda device: None)
    assert torch.equal(looks.apply(images, table), made)


def test_numba_that_is_missing_or_switched_off_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    find = look_backend._compiled.__wrapped__
    if (found := find()) is not None:
        assert set(found.ops) == {*look_ops.PLAIN, *look_ops.FILLING}
        monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
        assert find() is None
    monkeypatch.setitem(sys.modules, "numba", None)
    assert find() is None


@pytest.mark.parametrize("policy", ["rand-m9-n2-mstd0.5", "trivial", "jitter", "three"])
def test_nothing_waits_for_a_device(policy: str) -> None:
    """By what PyTorch is asked to do, so that a machine without a GPU tells."""
    looks, images = Looks(policy, 0.5, FILL, 0.2, True, 3), torch.from_numpy(noise(64, 24, 24, 3))
    table, mixing = looks.draw(np.arange(64), np.arange(64), 24), Mixing("both", Pairing(64, 1), out_px=24)
    mix = mixing.draw(np.arange(64), np.zeros(64, np.int64))
    partner = torch.from_numpy(mix.partner)
    with Waits():
        dressed = looks._apply(images, table)
        made = _mixed_at_once(dressed, dressed.index_select(0, partner), mix)
    assert torch.equal(made, mixed(looks.apply(images, table), partner, mix, slice(0, 64)))
    with pytest.raises(AssertionError), Waits():
        images.sum().item()
    with pytest.raises(AssertionError), Waits():
        images[images > 3]


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["rand-m9-n2-mstd0.5", "trivial", "jitter", "three"])
def test_nothing_waits_for_a_gpu(policy: str) -> None:
    looks, images = Looks(policy, 0.5, FILL, 0.2, True, 3), torch.from_numpy(noise(64, 96, 96, 3)).cuda()
    table = looks.draw(np.arange(64), np.arange(64), 96)
    expected = looks.apply(images, table)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = looks.apply(images, table)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(made, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["rand-m9-n2", "trivial", "jitter", "three"])
def test_a_gpu_gives_the_same_bits(policy: str) -> None:
    looks = Looks(policy, 0.5, FILL, 0.2, True, 3)
    images = torch.from_numpy(noise(64, 96, 96, 3))
    table = looks.draw(np.arange(64), np.arange(64) % 3, 96)
    assert torch.equal(looks.apply(images.cuda(), table).cpu(), looks.apply(images, table))


@pytest.mark.parametrize("name", [name for name, (*_, most) in PARITY.items() if most < 255])
def test_an_operation_means_what_torchvision_means(name: str) -> None:
    off = difference(name, computed())
    assert off.max() <= PARITY[name][-1]


@pytest.mark.parametrize("name", [name for name, (*_, most) in PARITY.items() if most == 255])
def test_a_map_means_what_torchvision_means_but_at_its_edges(name: str) -> None:
    """Weights of 8 bits are off by 2^-8 of the 255 levels between neighbours; an edge is 3 of 64 px wide at most."""
    off = difference(name, computed()).float()
    assert (off > 3).float().mean() < 4 * 3 / 64
    assert off.median() <= 1


@pytest.mark.parametrize("space", [Rand(30, 1), Trivial()])
@pytest.mark.parametrize(
    "entry", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color"]
)
def test_a_policys_operation_is_torchvisions(space: Rand | Trivial, entry: str) -> None:
    """Its strongest value, of both signs: pictures agree but for the weights' 2^-8 and the corners' interpolation."""
    px, image = 64, computed()
    policy = (
        torchvision.transforms.RandAugment(num_ops=1)
        if isinstance(space, Rand)
        else torchvision.transforms.TrivialAugmentWide()
    )
    meta = (
        policy._augmentation_space(31, (px, px))
        if isinstance(space, Rand)
        else policy._augmentation_space(31)
    )
    slots = space.slots(Key(0, np.arange(4000), np.zeros(4000, np.int64), px))
    kinds = {"She": "affine", "Rot": "affine", "Tra": "translate", "Col": "saturation"}
    kind = kinds.get(entry[:3], entry.lower())
    mine = np.flatnonzero(slots[0].op == OPS.index(kind))
    different = mine[np.unique(slots[0].parameters[mine], axis=0, return_index=True)[1]]
    best = []
    for sign in (-1.0, 1.0):
        level = float(meta[entry][0][-1]) * sign
        theirs = torchvision.transforms.autoaugment._apply_op(
            image[0], entry, level, InterpolationMode.BILINEAR, [float(v) for v in FILL]
        )
        found = [
            float(
                (by_ours(kind, image, slots[0].parameters[k : k + 1]).int() - theirs.int())
                .abs()
                .float()
                .mean()
            )
            for k in different
        ]
        best.append(min(found))
    # Interpolated weights are of 8 bits, off by 2^-8 of up to 255, and at the edge torchvision mixes the fill anew.
    assert max(best) < 1.5, best


def test_what_a_policy_draws_is_torchvisions_table() -> None:
    """31 levels of every entry, by the numbers that torchvision computes."""
    px = 331
    wide = torchvision.transforms.TrivialAugmentWide()._augmentation_space(31)
    drawn = Trivial().slots(Key(5, np.arange(60_000), np.zeros(60_000, np.int64), px))[0]
    seen = {op: set(map(tuple, drawn.parameters[drawn.op == OPS.index(op)][:, :2].tolist())) for op in OPS}
    assert seen["posterize"] == {(int(bits), 0) for bits in wide["Posterize"][0]}
    assert seen["solarize"] == {(math.ceil(float(t) - 1e-4), 0) for t in wide["Solarize"][0]}
    factors = {(round((1 + sign * float(m)) * ONE), 0) for m in wide["Brightness"][0] for sign in (-1, 1)}
    for op in ("brightness", "saturation", "contrast", "sharpness"):
        assert {abs(a[0] - b[0]) for a, b in zip(sorted(seen[op]), sorted(factors), strict=True)} <= {0, 1}
    ways = {int(sign * round(float(m), 4)) for m in wide["TranslateX"][0] for sign in (-1, 1)}
    assert {x for x, y in seen["translate"] if not y} | {y for x, y in seen["translate"] if not x} == ways
    nine = Rand(9, 2).slots(Key(5, np.arange(5000), np.zeros(5000, np.int64), px))
    space = torchvision.transforms.RandAugment()._augmentation_space(31, (px, px))
    for slot in nine:
        bits = slot.parameters[slot.op == OPS.index("posterize")][:, 0]
        assert set(bits.tolist()) == {int(space["Posterize"][0][9])}
        way = slot.parameters[slot.op == OPS.index("translate")][:, :2]
        assert set(np.abs(way).max(1).tolist()) == {int(float(space["TranslateX"][0][9]))}


def expected(count: int, share: float) -> tuple[float, float]:
    """Bounds of a binomial's mean, five deviations wide."""
    off = 5 * math.sqrt(share * (1 - share) / count)
    return share - off, share + off


def test_choices_are_even_and_slots_independent() -> None:
    n = 56_000
    one, two = Rand(9, 2).slots(Key(0, np.arange(n), np.full(n, 3), 224))
    # 14 entries: 1 identity, 3 affine, 2 translations, 8 others of their own.
    for slot in (one, two):
        shares = np.bincount(slot.op, minlength=len(OPS)) / n
        for op, entries in (
            ("identity", 1),
            ("affine", 3),
            ("translate", 2),
            ("solarize", 1),
            ("equalize", 1),
        ):
            low, high = expected(n, entries / 14)
            assert low < shares[OPS.index(op)] < high, op
    both = ((one.op == OPS.index("solarize")) & (two.op == OPS.index("affine"))).mean()
    low, high = expected(n, 3 / 14 / 14)
    assert low < both < high
    signs = one.parameters[one.op == OPS.index("brightness")][:, 0]
    assert set(signs.tolist()) == {round((1 - 0.27) * ONE), round((1 + 0.27) * ONE)}
    low, high = expected(len(signs), 0.5)
    assert low < (signs > ONE).mean() < high


def test_a_noisy_magnitude_is_about_normal() -> None:
    n = 56_000
    slot = Rand(9, 1, 0.5).slots(Key(0, np.arange(n), np.zeros(n, np.int64), 224))[0]
    levels = np.abs(slot.parameters[slot.op == OPS.index("brightness")][:, 0] / ONE - 1) / 0.9 * 30
    assert abs(levels.mean() - 9) < 5 * 0.5 / math.sqrt(len(levels))
    assert abs(levels.std() / 0.5 - 1) < 5 / math.sqrt(2 * len(levels))
    clipped = Rand(29.9, 1, 5).slots(Key(0, np.arange(n), np.zeros(n, np.int64), 224))[0]
    factors = clipped.parameters[clipped.op == OPS.index("contrast")][:, 0]
    assert factors.max() == round(1.9 * ONE)


def test_jitter_draws_as_torchvision_does() -> None:
    n = 24_000
    slots = Jitter(0.4, 0.6, 0.0, 0.1).slots(Key(0, np.arange(n), np.zeros(n, np.int64), 32))
    ops = np.stack([slot.op for slot in slots], 1)
    orders = {tuple(row) for row in ops.tolist()}
    assert len(orders) == 24  # 4! places of brightness, contrast, hue and nothing
    low, high = expected(n, 1 / 24)
    for order in orders:
        assert low < (ops == order).all(1).mean() < high
    factors = np.concatenate([s.parameters[s.op == OPS.index("contrast")][:, 0] for s in slots]) / ONE
    assert len(factors) == n
    assert round(0.4 * ONE) / ONE <= factors.min() < 0.402
    assert 1.598 < factors.max() <= round(1.6 * ONE) / ONE
    turns = np.concatenate([s.parameters[s.op == OPS.index("hue")][:, 0] for s in slots])
    signed = (turns + 32768) % 65536 - 32768
    assert abs(signed).max() <= round(0.1 * 65536)
    assert abs(signed.mean()) < 5 * 0.1 * 65536 / math.sqrt(3 * n)
    histogram = np.histogram(factors, 10)[0]
    assert (
        (histogram - n / 10) ** 2 / (n / 10)
    ).sum() < 40  # chi-square of 9 degrees: 40 in one of 10^5 cases


def test_three_is_one_of_three_and_then_jitter() -> None:
    n = 9000
    first, *jitter = Three().slots(Key(0, np.arange(n), np.zeros(n, np.int64), 32))
    low, high = expected(n, 1 / 3)
    for op in ("grey", "solarize", "blur"):
        assert low < (first.op == OPS.index(op)).mean() < high
    assert set(first.parameters[first.op == OPS.index("solarize")][:, 0].tolist()) == {128}
    sigma = (first.parameters[first.op == OPS.index("blur")][:, 0] + 1) / 32
    assert 0.09 < sigma.min() < 0.13
    assert 1.96 < sigma.max() <= 2.0
    assert len(jitter) == 4
    assert not any((slot.op == OPS.index("hue")).any() for slot in jitter)


def test_rectangles_are_those_of_random_erasing() -> None:
    n, px = 20_000, 224
    slot = erased(Key(0, np.arange(n), np.zeros(n, np.int64), px), 0.25)
    mine = slot.parameters[slot.op == OPS.index("erase")][:, :4]
    low, high = expected(n, 0.25)
    assert low < len(mine) / n < high
    left, top, right, bottom = mine.T
    assert left.min() == top.min() == 0
    assert right.max() == bottom.max() == px
    w, h = right - left, bottom - top
    area, shape = w * h / px**2, h / w
    assert 0.019 < area.min() < 0.022
    assert 0.3 < area.max() < 0.334
    assert 0.28 < shape.min() < 0.33
    assert 3.0 < shape.max() < 3.5
    draws = [
        torchvision.transforms.RandomErasing.get_params(torch.zeros(3, px, px), (0.02, 0.33), (0.3, 3.3))
        for _ in range(3000)
    ]
    theirs = np.array([[h * w / px**2, math.log(h / w)] for _, _, h, w, _ in draws])
    ours = np.stack([area, np.log(shape)], 1)
    for k in range(2):
        off = 5 * math.sqrt(theirs[:, k].var() / len(theirs) + ours[:, k].var() / len(ours))
        assert abs(theirs[:, k].mean() - ours[:, k].mean()) < off


@pytest.mark.parametrize("policy", ["none", "rand-m9-n2", "rand-m5-n3-mstd0.5", "trivial", "jitter", "three"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_look_depends_on_seed_view_and_image_alone(policy: str, channels: int) -> None:
    looks = Looks(policy, 0.4, FILL[:channels], 0.2, True, 1)
    images = torch.from_numpy(noise(40, 24, 24, channels))
    index, view = np.arange(40), np.arange(40) // 20
    whole = looks.apply(images, looks.draw(index, view, 24))
    assert not torch.equal(whole, images)
    order = np.random.default_rng(0).permutation(40)
    other = looks.apply(images[order], looks.draw(index[order], view[order], 24))
    assert torch.equal(other, whole[order])
    for k in (0, 7, 39):
        alone = looks.apply(images[k : k + 1], looks.draw(index[k : k + 1], view[k : k + 1], 24))
        assert torch.equal(alone[0], whole[k])
    apart = looks.apply(images, looks.draw(index, view + 1, 24))
    assert (apart != whole).flatten(1).any(1).float().mean() > 0.5
    reseeded = Looks(policy, 0.4, FILL[:channels], 0.2, True, 2)
    assert not torch.equal(reseeded.apply(images, reseeded.draw(index, view, 24)), whole)


def test_names_and_their_mistakes() -> None:
    assert policy_of("none") is None
    assert policy_of("rand-m9-n2-mstd0.5") == Rand(9.0, 2, 0.5)
    assert policy_of("jitter-b0.1-h0.5") == Jitter(0.1, 0.4, 0.4, 0.5)
    for wrong in (
        "rand",
        "rand-m31-n2",
        "rand-m9-n0",
        "rand-m\u0669-n2",
        1000 * "x",
        "jitter-h0.6",
        "jitter-b1-b1",
        "jitter-b1.1",
        "jitter-x1",
        "Trivial",
        "mixup",
        "",
    ):
        with pytest.raises(ValueError, match="data.looks") as refused:
            policy_of(wrong)
        assert len(str(refused.value)) < 250


def test_what_describes_looks_tells_them_apart() -> None:
    some = [Looks(policy) for policy in ("none", "trivial", "rand-m9-n2")]
    some += [Looks(erase=0.1), Looks(erase=0.1, fill=(1, 2, 3)), Looks(erase=0.1, seed=1)]
    some += [Looks(grey=0.5), Looks(vflip=True)]
    assert len({str(looks.describe()) for looks in some}) == len(some)
    assert len({looks.crc() for looks in some}) == len(some)


def test_the_pixels_are_what_they_were() -> None:
    """Caches depend on them: another number needs another LOOKS_VERSION."""
    policies = ("rand-m9-n2-mstd0.5", "trivial", "jitter", "three")
    assert {policy: Looks(policy, 0.25, FILL, 0.1, True, 7).crc() for policy in policies} == CRCS


CRCS = {
    "rand-m9-n2-mstd0.5": 141704474,
    "trivial": 1842368436,
    "jitter": 3377549776,
    "three": 6861987,
}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_looks, "_REGISTERED", {})


@pytest.mark.usefixtures("registry")
def test_a_look_of_ones_own() -> None:
    @register_look("dark", version=3)
    def dark(images: Tensor, draws: Draws) -> Tensor:
        factor = torch.from_numpy(draws.uniform(0) * 256).int()
        return (images.int() * factor[:, None, None, None] >> 8).to(torch.uint8)

    looks = Looks("dark", erase=1.0, fill=FILL, seed=4)
    looks.check()
    assert looks.describe()["version"] == 3
    images = torch.from_numpy(noise(8, 16, 16, 3))
    index, view = np.arange(8), np.full(8, 2)
    table = looks.draw(index, view, 16)
    made = looks.apply(images, table)
    drawn = uniform(Key(4, index, view, 16).words(7 << 16)[0])
    for k in range(8):
        left, top, right, bottom = table[1].parameters[k, :4]  # type: ignore[union-attr]
        plain = (images[k].int() * int(drawn[k] * 256) >> 8).to(torch.uint8)
        plain[top:bottom, left:right] = torch.tensor(FILL, dtype=torch.uint8)
        assert torch.equal(made[k], plain)
    with pytest.raises(ValueError, match="one of fastanc's own"):
        register_look("trivial")(dark)
    with pytest.raises(ValueError, match="registered twice"):
        register_look("dark")(lambda images, draws: images)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("apply", "says"),
    [
        (lambda images, draws: images.add_(1), "writes into the pictures"),
        (lambda images, draws: images.roll(1, 0), "another picture of an image alone"),
        (lambda images, draws: torch.randint_like(images, 256), "or another every time"),
        (lambda images, draws: images.float(), "return the same shape and type"),
        (lambda images, draws: images[:, :, 1:], "return the same shape and type"),
        (lambda images, draws: None, "gave NoneType"),
    ],
)
def test_a_look_that_is_no_function_of_the_picture_is_refused(
    apply: Callable[[Tensor, Draws], Tensor], says: str
) -> None:
    register_look("wrong")(apply)
    with pytest.raises(ValueError, match=says):
        Looks("wrong").check()
