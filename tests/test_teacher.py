"""A student must not see where its teacher's outputs come from: network, cache, or a cache that fills."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastanc.batch import Batch, Outputs
from fastanc.cache.identity import identity
from fastanc.cache.store import Field, Store
from fastanc.models.taps import Tapped
from fastanc.pipelines.order import Order, Picks
from fastanc.teacher.build import break_even, build_cache, verify_teacher
from fastanc.teacher.cached import Cached
from fastanc.teacher.filling import Filling
from fastanc.teacher.online import Online
from support.processes import forked

N, D, K = 103, 40, 7
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 3)
        self.norm = nn.BatchNorm2d(D)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(D, K)

    def forward(self, x):
        return self.fc(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def network() -> Tapped:
    torch.manual_seed(5)
    return Tapped(Small(), mean=(0.5,) * 3, std=(0.25,) * 3)


def online(autocast=None) -> Online:
    return Online(network(), autocast)


def pixels(view, index) -> torch.Tensor:
    """Pixels [B, 3, 8, 8] uint8 as a pure function of view and image."""
    place = np.asarray(index)[:, None] * 1009 + np.asarray(view)[:, None] * 7919 + np.arange(192)
    mixed = (place * 2654435761) >> 7 & 255
    return torch.from_numpy(mixed.astype(np.uint8)).view(-1, 3, 8, 8)


def batch_of(picks: Picks, step: int = 0) -> Batch:
    return Batch(pixels(picks.view, picks.index), picks.index, picks.view, None, step)


def batches_for(view: int, images: np.ndarray) -> Iterator[Batch]:
    for k in range(0, len(images), 10):
        index = images[k : k + 10]
        yield batch_of(Picks(index, np.full(len(index), view)))


def make(path, dtype="fp32") -> Store:
    fields = (Field("features", D, dtype),)
    facts = identity({"name": "noise"}, {"out_px": 8}, {"boxes_crc": 0}, {"name": "small"})
    return Store.open(path, facts, fields, N, create=True)


def wrong(store: Store) -> list[str]:
    return [field for found in store.verify() for field in found.wrong]


def build(store: Store, views, **options):
    return build_cache(store, views, batches_for, online(), say=lambda sentence: None, **options)


def run(teacher, order: Order, start: int, stop: int) -> list[Outputs]:
    return [teacher(batch_of(order(step), step)) for step in range(start, stop)]


def assert_equal(one: list[Outputs], two: list[Outputs]) -> None:
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.features, b.features)


class Truth:
    """What the network says, in float64."""

    def __init__(self) -> None:
        self.network = network().double().eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        return self.network(batch.images.double() / 255)


@pytest.mark.parametrize("world", [1, 2])
def test_cached_is_online_bit_for_bit_with_fp32_rows(tmp_path, world):
    store = make(tmp_path)
    # The teacher pass sees other batches than the student; equal bits are promised for equal batches,
    # so the cache is filled in the run's own batches, by all its processes.
    orders = [Order(N, 10 * world, rank, world, seed=1, views=2) for rank in range(world)]
    for order in orders:
        filling = Filling(online(), store, network().head, order, device=CPU)
        steps = 2 * order.steps_per_epoch
        assert_equal(run(filling, order, 0, steps), run(online(), order, 0, steps))
        filling.close()
    for order in orders:
        cached = Cached(store, network().head, order, device=CPU)
        assert_equal(run(cached, order, 0, steps), run(online(), order, 0, steps))
        assert cached.rows_read == 20 * order.steps_per_epoch
        assert cached.rows_computed == 0
        cached.close()


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 0), ("fp16", 2**-11), ("uint8", 1 / 510)])
def test_built_rows_are_the_networks_within_their_rounding(tmp_path, dtype, bound):
    store = make(tmp_path, dtype)
    build(store, [0, 1])
    order = Order(N, 10, seed=1, views=2)
    cached = Cached(store, network().head, order, device=CPU)
    truth = Truth()
    summed = (27 + 36) * 2**-24  # the network's own rounding: a convolution of 27 terms, a mean of 36
    weight = network().head.weight.double().abs().sum(1)
    for step, out in enumerate(run(cached, order, 0, 2 * order.steps_per_epoch)):
        exact = truth(batch_of(order(step)))
        largest = exact.features.amax(1, keepdim=True)
        error = (out.features.double() - exact.features).abs() / largest
        assert error.max() < bound * 1.01 + summed
        limit = largest * (bound * 1.01 + summed) * weight + 1e-5
        assert ((out.logits.double() - exact.logits).abs() < limit).all()
    cached.close()


def test_filled_rows_are_what_the_student_saw(tmp_path):
    for dtype in ("fp16", "uint8"):  # the first student's targets equal the second one's to the last bit
        store = make(tmp_path, dtype)
        order = Order(N, 10, seed=3, views=2)
        filling = Filling(online(), store, network().head, order, device=CPU)
        steps = 2 * order.steps_per_epoch
        first = run(filling, order, 0, steps)
        again = run(filling, order, 4 * order.steps_per_epoch, 4 * order.steps_per_epoch + 5)  # view 0 again
        filling.close()
        cached = Cached(store, network().head, order, device=CPU)
        assert_equal(first, run(cached, order, 0, steps))
        assert not torch.equal(first[0].features, run(online(), order, 0, 1)[0].features)
        cached.close()
        second = Filling(online(), store, network().head, order, device=CPU)
        assert_equal(again, run(second, order, 4 * order.steps_per_epoch, 4 * order.steps_per_epoch + 5))
        assert second.rows_computed == 0
        second.close()


def test_a_row_is_computed_once_even_before_it_is_written(tmp_path):
    store = make(tmp_path)
    order = Order(100, 10, seed=3, views=1)  # the second epoch asks for the same rows in another order
    filling = Filling(online(), store, network().head, order, device=CPU)
    first = run(filling, order, 0, 10)
    second = run(filling, order, 10, 20)
    assert filling.rows_computed == 100
    assert filling.rows_read == 100
    rows = {i: row for k, out in enumerate(first) for i, row in zip(order(k).index.tolist(), out.features)}
    for k, out in enumerate(second, 10):
        assert torch.equal(out.features, torch.stack([rows[i] for i in order(k).index.tolist()]))
    filling.close()
    assert len(store.missing(0)) == N - 100


def test_few_missing_rows_do_not_cost_a_whole_batch(tmp_path):
    store = make(tmp_path)
    order = Order(96, 32, seed=0, views=1)
    missing = order(1).index[[3, 17]]
    whole = online()
    index = np.setdiff1d(np.arange(N), missing)
    store.put(0, index, {"features": whole(batch_of(Picks(index, index * 0))).features})
    filling = Filling(online(), store, network().head, order, device=CPU)
    outs = run(filling, order, 0, 3)
    assert filling.rows_computed == 4  # an eighth of the batch
    assert filling.rows_read == 94
    for step, out in enumerate(outs):
        assert torch.allclose(out.logits, whole(batch_of(order(step))).logits, atol=1e-6)
    filling.close()
    assert store.complete(0)


def test_filling_killed_in_mid_epoch_goes_on_with_another_world_size(tmp_path):
    order = Order(N, 8, seed=2, views=1)
    store = make(tmp_path, "fp16")

    def student() -> None:
        filling = Filling(online(), store, network().head, order, device=CPU)
        run(filling, order, 0, 7)
        deadline = time.monotonic() + 1800  # of a hang
        while not store.present(0) and time.monotonic() < deadline:  # whatever the thread has written by now
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(os.waitpid(forked(student), 0)[1]) == signal.SIGKILL
    kept = store.present(0)
    assert 0 < kept <= 56
    undisturbed = Filling(online(), make(tmp_path / "b", "fp16"), network().head, order, device=CPU)
    uninterrupted = run(undisturbed, order, 0, 12)
    undisturbed.close()
    resumed = Filling(online(), store, network().head, order, device=CPU)
    assert_equal(run(resumed, order, 0, 12), uninterrupted)
    assert 96 - kept <= resumed.rows_computed < 96 - kept + 8  # of one batch some rows may be written
    resumed.close()
    halves = [Order(N, 8, rank, 2, seed=9, views=1) for rank in (0, 1)]
    fillers = [Filling(online(), make(tmp_path, "fp16"), network().head, o, device=CPU) for o in halves]
    for step in range(24):
        for order, filler in zip(halves, fillers):
            filler(batch_of(order(step), step))
    for filler in fillers:
        filler.close()
    assert store.complete(0)
    assert not wrong(store)


def test_a_kill_between_any_two_writes_changes_no_bit(tmp_path):
    """A batch of which some rows are written goes through the teacher whole, as it did: its bits depend on that."""

    class OfItsBatch(Online):
        def __call__(self, batch: Batch, size: int = 0) -> Outputs:
            out = super().__call__(batch, size)
            return out._replace(features=out.features + len(batch.index))

    def filled(folder: Path, stop: int) -> list[Outputs]:
        filling = Filling(OfItsBatch(net), make(folder), net.head, order, device=CPU)
        outs = run(filling, order, 0, stop)
        filling.close()
        return outs

    net, order, pwrite = network(), Order(N, 16, seed=2, views=1), os.pwrite
    uninterrupted = filled(tmp_path / "whole", 4)

    def student(folder: Path, kill_at: int) -> None:
        calls = 0

        def dying(handle: int, data: bytes, offset: int) -> int:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return pwrite(handle, data, offset)

        os.pwrite = dying
        filled(folder, 4)

    for kill_at in range(17, 65, 3):
        folder = tmp_path / str(kill_at)
        make(folder)
        child = forked(partial(student, folder, kill_at))
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert make(folder).present(0) < 64
        assert_equal(filled(folder, 4), uninterrupted)


def test_a_damaged_row_is_computed_again_by_filling_and_named_by_reading(tmp_path):
    store = make(tmp_path)
    order = Order(N, 10, seed=1, views=1)
    filling = Filling(online(), store, network().head, order, device=CPU)
    first = run(filling, order, 0, order.steps_per_epoch)
    filling.close()
    build(store, [0])  # the few that an epoch leaves
    rows = store.path / "view-00000" / "features.rows"
    data = bytearray(rows.read_bytes())
    image = int(order(3).index[6])
    data[image * D * 4 + 5] ^= 16
    rows.write_bytes(data)
    cached = Cached(make(tmp_path), network().head, order, device=CPU)
    with pytest.raises(ValueError, match=rf"view 0, image {image} .* is damaged"):
        run(cached, order, 0, order.steps_per_epoch)
    cached.close()
    with pytest.raises(ValueError, match=rf"view 0, image {image} .* is damaged"):  # while it is loaded
        Cached(make(tmp_path), network().head, order, device=CPU, host_budget_bytes=10**6)
    again = Filling(online(), make(tmp_path), network().head, order, device=CPU)
    for one, two in zip(run(again, order, 0, order.steps_per_epoch), first, strict=True):
        assert torch.allclose(one.features, two.features, atol=1e-6)
    again.close()
    assert again.rows_computed == 1  # an eighth of ten
    assert not wrong(store)


def test_two_runs_at_once_on_one_cache_are_harmless(tmp_path):
    # One teacher each, made here: seeding is global, so threads that seed at once would draw unequal weights.
    teachers = {seed: online() for seed in (1, 2)}

    def student(seed: int) -> None:
        order = Order(N, 10, seed=seed, views=1)
        teacher = teachers[seed]
        filling = Filling(teacher, make(tmp_path), teacher.network.head, order, device=CPU)
        run(filling, order, 0, 3 * order.steps_per_epoch)
        filling.close()

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(student, seed) for seed in (1, 2)]:
            job.result(1800)
    store = make(tmp_path)
    build(store, [0])
    assert not wrong(store)
    check = verify_teacher(store, online(), batches_for, 80)
    assert check[0].relative < 1e-5


def test_batches_that_were_not_foreseen_are_read_all_the_same(tmp_path):
    store = make(tmp_path)
    build(store, [0, 1])
    order = Order(N, 10, seed=1, views=2)
    cached = Cached(store, network().head, order, device=CPU)
    other = Order(N, 7, seed=8, views=2)
    steps = [order(0), order(1), other(1), order(2), order(9), other(3), order(3)]
    steps.append(Picks(np.array([5, 5, 60]), np.array([1, 0, 1])))  # views mixed in one batch
    for step, picks in zip((0, 1, 1, 2, 9, 3, 3, 4), steps):
        out = cached(batch_of(picks, step))
        assert torch.allclose(out.logits, online()(batch_of(picks)).logits, atol=1e-6)
    cached.close()


@pytest.mark.parametrize("budget", [{"host_budget_bytes": 10**6}, {"device_budget_bytes": 10**6}])
@pytest.mark.parametrize("dtype", ["fp16", "uint8"])
def test_a_cache_kept_in_memory_gives_the_same_rows(tmp_path, budget, dtype):
    store = make(tmp_path, dtype)
    build(store, [0, 2])
    store.put(1, np.arange(20), {"features": np.ones((20, D), np.float32)})  # not complete: not kept
    order = Order(N, 10, seed=1, views=1)
    picks = [Picks(order(k).index, order(k).index % 2 * 2) for k in range(10)]
    picks.append(Picks(np.arange(15), np.arange(15) % 3))
    plain = Cached(store, network().head, lambda k: picks[k % 11], device=CPU)
    kept = Cached(store, network().head, lambda k: picks[k % 11], device=CPU, **budget)
    for k, p in enumerate(picks):
        assert_equal([kept(batch_of(p, k))], [plain(batch_of(p, k))])
    kept.close()
    plain.close()


def test_missing_rows_are_one_sentence_even_when_read_ahead(tmp_path):
    store = make(tmp_path)
    build(store, [0])
    order = Order(N, 10, seed=1)  # fresh views for ever, the cache has one
    cached = Cached(store, network().head, order, device=CPU)
    run(cached, order, 0, 10)
    with pytest.raises(FileNotFoundError, match=r"view 1, image \d+ .*fastanc cache build"):
        run(cached, order, 10, 11)
    cached.close()


def test_a_teacher_without_linear_head_stores_logits(tmp_path):
    facts = identity({}, {}, {}, {"name": "headless"})
    store = Store.open(tmp_path, facts, (Field("logits", K, "fp32"),), N, create=True)
    order = Order(N, 10, seed=1, views=1)
    filling = Filling(online(), store, None, order, device=CPU)
    run(filling, order, 0, 10)
    filling.close()
    cached = Cached(store, None, order, device=CPU)
    for one, two in zip(run(cached, order, 0, 10), run(online(), order, 0, 10)):
        assert torch.equal(one.logits, two.logits)
        assert one.features is None
    cached.close()


def test_narrow_teachers_give_float32_logits_equal_to_their_rows(tmp_path):
    teacher = online(torch.bfloat16)
    store = make(tmp_path, "fp16")  # holds every bfloat16 of this size exactly
    order = Order(N, 10, seed=1, views=1)
    filling = Filling(online(torch.bfloat16), store, network().head, order, device=CPU)
    with torch.autocast("cpu", torch.bfloat16):  # a surrounding autocast changes nothing
        outs = run(filling, order, 0, 5)
    filling.close()
    plain = run(teacher, order, 0, 5)
    assert plain[0].logits.dtype == torch.float32
    assert_equal(outs, plain)


def test_online_is_frozen_and_in_eval_mode():
    net = network().train()
    teacher = Online(net)
    batch = batch_of(Picks(np.arange(6), np.zeros(6, np.int64)))
    one, two = teacher(batch), teacher(batch)
    assert torch.equal(one.logits, two.logits)  # no dropout
    assert not one.logits.requires_grad
    weight = torch.ones(K, requires_grad=True)
    (one.logits * weight).sum().backward()  # not an inference tensor: may be saved for backward
    assert weight.grad is not None
    assert not any(p.requires_grad for p in net.parameters())


def test_build_deals_resumes_and_counts(tmp_path):
    sentences: list[str] = []
    store = make(tmp_path)
    half = build(store, [0, 1], rank=0, world=2)
    assert half.images == 2 * 52
    assert half.missing == 2 * 51
    other = [build(store, [0, 1], rank=rank, world=3).images for rank in (1, 2, 0)]
    assert sum(other) < 2 * 51  # dealt from what was missing at each start
    rest = build_cache(store, [0, 1], batches_for, online(), epochs=90, students=5, say=sentences.append)
    assert rest.missing == 0
    assert "2 teacher passes in place of 90 x 5 students = 450: that saves 448 passes" in sentences[0]
    assert not wrong(store)
    deviation = verify_teacher(store, online(), batches_for, 150)[0]
    assert deviation.relative < 1e-5
    other_teacher = online()
    with torch.no_grad():
        other_teacher.network.bare.conv.weight.mul_(1.5)
    assert verify_teacher(store, other_teacher, batches_for, 20)[0].relative > 0.01


class TwoHeads(Small):
    """Its logits are the mean of two layers', of which one alone is no head."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(D, K)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return (self.fc(x) + self.other(x)) / 2


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_rows_that_do_not_give_the_teachers_own_logits_are_found(tmp_path, autocast):
    """Its features are stored faithfully, but tapped at a layer that is not its head, which no probe was asked."""
    torch.manual_seed(5)
    teacher = Online(Tapped(TwoHeads(), mean=(0.5,) * 3, std=(0.25,) * 3), autocast)
    store = make(tmp_path)
    build_cache(store, [0], batches_for, teacher, say=lambda sentence: None)
    found = {deviation.field: deviation for deviation in verify_teacher(store, teacher, batches_for, 40)}
    assert set(found) == {"features", "logits"}
    assert found["features"].relative < 0.02  # all that was looked at before
    assert found["logits"].relative > 0.1
    sound = make(tmp_path / "sound", "fp16")
    build_cache(sound, [0], batches_for, online(autocast), say=lambda sentence: None)
    assert max(d.relative for d in verify_teacher(sound, online(autocast), batches_for, 40)) < 0.05


def test_a_build_that_is_killed_keeps_the_rows_that_it_has_written(tmp_path):
    """However few they are: there is no end at which they would be committed."""

    def slow(view: int, images: np.ndarray) -> Iterator[Batch]:
        for batch in batches_for(view, images):
            yield batch
            time.sleep(0.02)

    def building() -> None:
        build_cache(make(tmp_path), [0], slow, online(), say=lambda sentence: None)

    child, deadline = forked(building), time.monotonic() + 1800
    while make(tmp_path).present(0) < 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = make(tmp_path).present(0)
    assert 20 <= kept < N
    assert build(make(tmp_path), [0]).images == N - kept
    assert not wrong(make(tmp_path))


def test_the_barrier_lets_processes_deal_exactly(tmp_path):
    barrier = threading.Barrier(3)
    teachers = [online() for _ in range(3)]
    results = []

    def process(rank: int) -> None:
        results.append(
            build_cache(
                make(tmp_path),
                [0, 1],
                batches_for,
                teachers[rank],
                rank=rank,
                world=3,
                wait=barrier.wait,
                say=lambda sentence: None,
            )
        )

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(process, rank) for rank in range(3)]:
            job.result(1800)
    assert sum(built.images for built in results) == 2 * N
    assert {built.missing for built in results} == {0}
    assert verify_teacher(make(tmp_path), online(), batches_for, 2 * N)[0].relative < 1e-5


def test_break_even_by_hand():
    said = break_even(1_281_167, 4096, 30, 90, 5, images_per_s=1000)
    assert "30 views x 1,281,167 images x 4,096 bytes = 157.4 GB" in said
    assert "30 teacher passes (10.68 h) in place of 90 x 5 students = 450 (160.15 h)" in said
    assert "saves 420 passes (149.47 h) at 1,000 images/s" in said
    assert "saves nothing unless" in break_even(10, 1, 3, 3, 1)
    assert "costs 7 passes more than it saves" in break_even(10, 1, 10, 3, 1)


def test_an_error_of_the_writing_thread_reaches_the_loop(tmp_path):
    store = make(tmp_path, "fp16")
    net = network()
    with torch.no_grad():
        net.bare.norm.weight.fill_(1e6)
    order = Order(N, 10, seed=1, views=1)
    filling = Filling(Online(net), store, net.head, order, device=CPU)
    run(filling, order, 0, 1)
    with pytest.raises(ValueError, match="not finite as fp16"):
        filling.flush()
    filling.close()
    assert store.present(0) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [{}, {"host_budget_bytes": 10**6}, {"device_budget_bytes": 10**6}])
def test_on_cuda_filling_and_cached_are_equal(tmp_path, budget):
    store = make(tmp_path, "fp16")
    order = Order(N, 10, seed=1, views=2)
    teacher = Online(network().cuda())
    filling = Filling(teacher, store, teacher.network.head, order, device="cuda")

    def cuda(teacher, start, stop):
        batches = (batch_of(order(step), step) for step in range(start, stop))
        outs = []
        for batch in batches:
            batch.images = batch.images.cuda()
            outs.append(teacher(batch))
        return outs

    first = cuda(filling, 0, 20)
    filling.close()
    build(store, [0, 1])
    cached = Cached(store, teacher.network.head, order, device="cuda", **budget)
    assert_equal(first, cuda(cached, 0, 20))
    cached.close()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("newer", [False, True])
def test_the_teacher_s_fp32_is_not_rounded_to_tf32(fails, newer):
    """On CUDA a convolution would be by default, and a cache holds rows that a CPU has made as well."""
    parts = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)

    def found() -> list[str]:
        return [part.fp32_precision for part in parts]

    seen = []

    def look(*_: object) -> None:
        seen.append(found())
        assert not fails

    torch.backends.cudnn.allow_tf32 = True  # torch's default, whatever ran before in this process
    teacher, before = online(), found()
    assert before[0] == "tf32"
    teacher.network.register_forward_hook(look)
    if newer:  # torch then refuses to answer by the older name
        parts[1].fp32_precision = "ieee"
    else:
        torch.backends.cuda.matmul.allow_tf32 = True
    wanted = found()
    try:
        with pytest.raises(AssertionError) if fails else nullcontext():
            teacher(batch_of(Picks(np.arange(2), np.zeros(2, np.int64))))
        assert "tf32" not in seen[0]
        assert found() == wanted
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        for part, value in zip(parts, before):
            part.fp32_precision = value
    assert torch.backends.cudnn.allow_tf32


def test_passes_that_overlap_leave_the_switches_as_they_were() -> None:
    torch.backends.cudnn.allow_tf32 = True
    first, second = (threading.Event() for _ in range(2))
    ours, theirs = online(), online()
    ours.network.register_forward_hook(lambda *_: (first.set(), second.wait(60), None)[-1])
    batch = batch_of(Picks(np.arange(2), np.zeros(2, np.int64)))
    thread = threading.Thread(target=ours, args=(batch,))
    thread.start()
    first.wait(60)
    theirs.network.register_forward_hook(lambda *_: (second.set(), thread.join(60), None)[-1])
    theirs(batch)  # begins and ends after the other, which began and ends before
    assert torch.backends.cudnn.allow_tf32
