"""Order: the images and views of every step, as a function of the step alone.

An epoch's permutation is keyed by the seed and the epoch and computed where it is needed (`permutation`): a set of
400 million images costs no more memory than one of a thousand, and a run that is resumed anywhere costs nothing. A
call of NumPy costs as much as hundreds of images, so some steps are computed together. Before, a permutation was a
sorted table, 8 bytes an image; runs that began with it go on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastanc.pipelines.draws import ORDER
from fastanc.pipelines.pairing import Pairing
from fastanc.pipelines.permutation import FEW, ROUNDS, ROUNDS_OF_FEW, keys, permuted

KEYED, TABLE = "keyed", "table"
"""How an epoch's permutation is had: computed place by place, or, as in runs of earlier versions, from a table."""
_TOGETHER = 4096
"""Places that are computed at once."""

_SHARE_SEED, _HELD_OUT_SEED = 1 << 32, (1 << 32) + 1  # apart from the seeds that users give


class Picks(NamedTuple):
    """The images of one step of one process."""

    index: np.ndarray  # type: ignore[assignment]  # the field hides tuple.index, which nobody needs
    """[B] int64 image numbers."""
    view: np.ndarray
    """[B] int64 view numbers."""


Picking = Callable[[int], Picks] | Sequence[Picks]
"""What is picked in every step: a function of the step, such as an Order, or a list."""


@lru_cache(
    maxsize=2
)  # at an epoch's border the input is already in the next one while the cache still reads this one
def _table(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of n image numbers [n] int64: of runs that began with it, and of the draws of shares.

    Sorting Philox's raw words with the image numbers in their low bits, instead of NumPy's own permutation:
    that one's algorithm may change between releases.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    low = np.uint64((1 << max(n - 1, 1).bit_length()) - 1)
    words = np.sort((words & ~low) | np.arange(n, dtype=np.uint64)) & low
    result = words.astype(np.int64)
    result.flags.writeable = False
    return result


@lru_cache(maxsize=16)
def _keyed(n: int, seed: int, epoch: int, mine: int, rank: int, world: int, steps: range) -> np.ndarray:
    """The image numbers [steps * mine] int64 of one process in some of an epoch's steps, one step after the other."""
    firsts = (np.array(steps, np.int64) * world + rank) * mine
    places = (firsts[:, None] + np.arange(mine)).ravel()
    result = permuted(places, n, keys(seed, epoch, ORDER, ROUNDS if n > FEW else ROUNDS_OF_FEW))
    result.flags.writeable = False
    return result


def share_of(labels: np.ndarray | None, n: int, share: float) -> np.ndarray:
    """Return the numbers [M] int64, ascending, of a fixed share of n images, rounded up in every class."""
    return _first_of_every_class(labels, n, _SHARE_SEED, lambda counts: np.ceil(share * counts))


def held_out(labels: np.ndarray | None, n: int, share: float) -> np.ndarray:
    """Return the numbers [M] int64, ascending, of a fixed share of n images, which are kept for validation.

    Rounded up in every class, but one image of each stays to be trained on; where no class has a second image, of
    all images together. The draw is independent of `share_of`. Raises ValueError for fewer than two images.
    """
    if n < 2:
        raise ValueError("a single image cannot be parted into training and validation: give at least two")

    def most(counts: np.ndarray) -> np.ndarray:
        return np.minimum(np.ceil(share * counts), counts - 1)

    found = _first_of_every_class(labels, n, _HELD_OUT_SEED, most)
    return found if len(found) else _first_of_every_class(None, n, _HELD_OUT_SEED, most)


def _first_of_every_class(
    labels: np.ndarray | None, n: int, seed: int, most: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The first images of every class in a fixed random order, `most(images of the class)` of each; ascending."""
    drawn = _table(n, seed, 0)
    groups = np.zeros(n, np.int64) if labels is None else labels[drawn]
    by_group = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    place = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # within its own group
    return np.sort(drawn[by_group[place < np.repeat(most(counts), counts)]])


@dataclass(frozen=True)
class Order:
    """Every image once an epoch over all processes, in an order drawn anew for every epoch.

    `batch` is the global batch: a step's images do not depend on how many processes share them. The remainder
    of an epoch's permutation, n % (batch // views_per_image) images, is dropped; the next epoch drops others.
    Raises ValueError when the batch cannot be divided among the processes or is larger than the set.
    """

    n: int
    """Number of images."""
    batch: int
    rank: int = 0
    world: int = 1
    seed: int = 0
    views: int | None = None
    """Views repeat after so many; None draws fresh ones for ever."""
    views_per_image: int = 1
    """K neighbours in a batch are K views of one image, decoded once; an epoch has K views of each then."""
    pairing: Pairing | None = None
    """Of mixed views: pairs are drawn in the place of images, so that partners are in one process's part of a batch.
    Of an odd number of images an epoch leaves one out, the one without a partner."""
    permutation: str = KEYED
    """How an epoch's permutation is had: KEYED or TABLE. Both are the same for ever."""

    def __post_init__(self) -> None:
        if self.permutation not in (KEYED, TABLE):
            raise ValueError(
                f"the order of the images {self.permutation!r} is none that this version knows ({KEYED}, {TABLE}):"
                " use the version that the run began with"
            )
        share = self.world * self.views_per_image * self._together
        if self.batch < 1 or self.batch % share:
            pairs = " in pairs of mixed images" if self.pairing else ""
            raise ValueError(
                f"data.batch {self.batch} cannot be divided among {self.world} processes "
                f"with {self.views_per_image} views an image{pairs}: use a multiple of {share}"
            )
        if self.pairing and self.views and self.views % self.views_per_image:
            raise ValueError(
                f"data.views {self.views} of mixed images must be a multiple of data.views_per_image"
                f" {self.views_per_image}, since the views that come from one decode have one partner"
            )
        if self.n < self._images:
            raise ValueError(
                f"data.batch {self.batch} needs {self._images} images but the set has {self.n}: lower data.batch"
            )
        if self.views is not None and self.views < self.views_per_image:
            raise ValueError(f"views {self.views} must be at least views_per_image {self.views_per_image}")
        assert 0 <= self.rank < self.world

    @property
    def _images(self) -> int:
        """Images of a step, over all processes."""
        return self.batch // self.views_per_image

    @property
    def _together(self) -> int:
        """Images that are drawn together: a pair or one."""
        return 2 if self.pairing else 1

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the set."""
        return self.n // self._together // (self._images // self._together)

    def epoch(self, step: int) -> int:
        """Return the epoch of a step."""
        return step // self.steps_per_epoch

    def __call__(self, step: int) -> Picks:
        """Return this process's images and views of a step."""
        epoch, k = divmod(step, self.steps_per_epoch)
        drawn = self._drawn(epoch, k)
        view = epoch * self.views_per_image + np.arange(self.views_per_image, dtype=np.int64)
        if self.views is not None:
            view %= self.views
        images = drawn if self.pairing is None else self._of_pairs(self.pairing, drawn, int(view[0]))
        return Picks(np.repeat(images, self.views_per_image), np.tile(view, len(images)))

    def _drawn(self, epoch: int, k: int) -> np.ndarray:
        """This process's images or pairs in the k-th step of an epoch."""
        mine = self._images // self.world // self._together
        n = self.n // self._together
        if self.permutation == TABLE:
            first = (k * self.world + self.rank) * mine
            return _table(n, self.seed, epoch)[first : first + mine]
        together = max(1, _TOGETHER // mine)
        first = k - k % together
        steps = range(first, min(first + together, self.steps_per_epoch))
        at = (k - first) * mine
        return _keyed(n, self.seed, epoch, mine, self.rank, self.world, steps)[at : at + mine]

    def _of_pairs(self, pairing: Pairing, pairs: np.ndarray, view: int) -> np.ndarray:
        places = 2 * np.repeat(pairs, 2) + np.tile([0, 1], len(pairs))
        return pairing.images(places, np.full(len(places), view))


def evaluation_picks(n: int, batch: int, rank: int = 0, world: int = 1) -> list[Picks]:
    """Return this process's batches of an evaluation, at view 0: every image exactly once over all processes.

    Each process has a contiguous part of the set in batches of `batch // world` (the last one shorter); the
    parts differ by at most one image, so processes may have different numbers of batches, or none.
    """
    mine = max(1, batch // world)
    first, last = n * rank // world, n * (rank + 1) // world
    starts = range(first, last, mine)
    parts = [np.arange(start, min(start + mine, last), dtype=np.int64) for start in starts]
    return [Picks(part, np.zeros_like(part)) for part in parts]
