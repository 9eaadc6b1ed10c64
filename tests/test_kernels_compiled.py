"""Every kernel is compiled ahead of time for the chips it is meant for: its blocks fit, and nothing is spilled."""

from __future__ import annotations

import pytest

from benchmarks.kernels_compiled import (
    CHIPS,
    Launch,
    demand,
    loss_launches,
    move_launches,
    other_launches,
    rows,
)
from fastanc.kernels.backend import INTERPRETED
from fastanc.kernels.mlp import Widths

triton = pytest.importorskip("triton", reason="torch's CPU wheels come without Triton")


@pytest.fixture(autouse=True)
def _assembler() -> None:
    if INTERPRETED:
        pytest.skip("the interpreter compiles nothing")
    try:
        triton.knobs.nvidia.ptxas.path  # noqa: B018 - raises where there is none
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this Triton has no ptxas: {error}")


def check(launches: list[Launch], chip: str) -> None:
    for launch in launches:
        shared, registers, spilled = demand(launch, chip)
        assert shared <= CHIPS[chip][1], launch.name
        assert registers is None or registers <= 255, launch.name
        assert not spilled, launch.name


@pytest.mark.parametrize("chip", list(CHIPS))
def test_the_widest_discriminator_fits(chip: str) -> None:
    launches = move_launches("256-256-256", 2048, 1024, "fp32")
    assert [launch.name for launch in launches] == ["judge_kernel", "weights_kernel", "fooling_kernel"]
    check(launches, chip)


def test_the_papers_discriminator_fits_twice_into_an_h100() -> None:
    """Two blocks a multiprocessor, so that one computes while the other waits for its weights."""
    judge, _, fooling = move_launches("128-256-128", 2048, 256, "bf16")
    for launch in (judge, fooling):
        shared, _, spilled = demand(launch, "H100")
        assert 2 * (shared + 1024) <= CHIPS["H100"][1], launch.name
        assert not spilled


@pytest.mark.parametrize("chip", list(CHIPS))
def test_losses_crops_and_masks_fit(chip: str) -> None:
    launches = [*loss_launches(32_000, 256, "bf16"), *loss_launches(10, 256, "fp32"), *other_launches(256)]
    assert {launch.name for launch in launches} == {
        *("squared_error_kernel", "soft_kl_kernel", "crop_kernel", "mask_kernel")
    }
    check(launches, chip)


def test_what_does_not_fit_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Widths.pieces
    more = {"BD": 64, "num_stages": 3}
    monkeypatch.setattr(Widths, "pieces", lambda self, *shape: pieces(self, *shape) | more)
    judge, *_ = move_launches("256-256-256", 2048, 256, "fp32")
    with pytest.raises(AssertionError, match="judge_kernel"):
        check([judge], "H100")


@pytest.mark.slow
def test_the_whole_table_fits() -> None:
    for row in rows():
        assert row["shared_bytes"] <= row["limit_bytes"], row
        assert (row["registers"] or 0) <= 255, row
        assert not row["spilled_bytes"], row
