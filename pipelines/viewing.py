"""Views whole: what a set's pictures become when they were cut, dressed and mixed.

A data set cuts (decodes, crops, resizes, flips); what comes after that needs no data set. A step's picks are known
before its pixels, so the arithmetic of looks and mixing is done a step or two early, by a thread. On a CPU the same
threads work on the pixels, a part of the batch each; on a GPU the training thread only launches kernels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.pipelines.ahead import ahead
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.drawing import walked
from fastanc.pipelines.jpeg.options import cores_per_process
from fastanc.pipelines.looks import Looks
from fastanc.pipelines.mixing import Mix, Mixing, mixed, soft_labels
from fastanc.pipelines.order import Picking, Picks
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.views import ViewRule, boxes_crc

_AHEAD = 2
_CRC_IMAGES = 1 << 16


class _Plan(NamedTuple):
    """What is done to a step's pictures, as numbers of the host."""

    looks: list[tuple[slice, Any]]
    """Rows of the batch, and the looks' table of these."""
    mix: Mix | None
    partner: np.ndarray
    """[B] int64 rows of the partners; empty without mixing."""


@dataclass(frozen=True)
class Views:
    """What views are made by: the rule that cuts, the looks that dress, the mixing of pairs."""

    rule: ViewRule
    looks: Looks | None = None
    mixing: Mixing | None = None
    smoothing: float = 0.0
    """Share of a label's weight that is spread over all classes; labels are [B, K] then, and where pictures mix."""

    @property
    def out_px(self) -> int:
        """Side of the pictures."""
        return self.rule.out_px

    def describe(self) -> dict[str, object]:
        """Return the names and knobs of all that fixes pixels, ready for JSON: a part of the cache's identity."""
        parts = {"looks": self.looks, "mixing": self.mixing}
        return self.rule.describe() | {
            name: part.describe() for name, part in parts.items() if part is not None
        }

    def checks(self, sizes: np.ndarray) -> dict[str, int]:
        """Return a CRC-32 of what each part does to images of sizes [N, 2], so that no change of code goes unseen."""
        found = {"boxes_crc": boxes_crc(self.rule, sizes, 0)}
        if self.looks is not None:
            found["looks_crc"] = self.looks.crc()
        if self.mixing is not None:
            index = np.arange(min(len(sizes), _CRC_IMAGES))
            drawn = self.mixing.draw(index, np.zeros_like(index))
            found["mixing_crc"] = zlib.crc32(b"".join(part.tobytes() for part in drawn[:3]))
        return found

    def arranged(self, view: int, images: np.ndarray) -> np.ndarray:
        """Return image numbers [N] in the order in which their views are made with the least decoding: by pairs."""
        if self.mixing is None:
            return images
        return images[
            np.argsort(self.mixing.pairing.places(images, np.full(len(images), view)), kind="stable")
        ]

    def batches(
        self,
        data: DataSet,
        picks: Picking,
        device: torch.device,
        *,
        start: int = 0,
        stop: int | None = None,
        threads: int | None = None,
    ) -> Iterator[Batch]:
        """Return a set's batches of finished views, of steps start, start + 1, ... below `stop`, as a set does.

        Of a list's picks each batch may decode partners that it does not ask for; an order gives whole pairs.

        Args:
            data: cuts the pictures; bound to the device.
            picks: images and views of every step.
            device: of the batches.
            start: first step.
            stop: the step after the last; None: for ever, or all of a list.
            threads: that work on pixels where the device is a CPU; None takes the cores of this process.
        """
        if self.looks is None and self.mixing is None and not self.smoothing:
            return data.batches(picks, self.rule, start=start, stop=stop)
        asked, steps = walked(picks, start, stop)
        if self.mixing is not None and not callable(picks):
            picks = [self._with_partners(one) for one in picks]
        at, _ = walked(picks, start, stop)
        cut = data.batches(picks, self.rule, start=start, stop=stop)
        return self._finished(cut, asked, at, steps, data.num_classes, device, threads or cores_per_process())

    def _with_partners(self, picks: Picks) -> Picks:
        """The picks and after them the partners that are not among them."""
        assert self.mixing is not None
        partner = self.mixing.pairing.partners(picks.index, picks.view)
        known = set(zip(picks.index.tolist(), picks.view.tolist()))
        more = [(i, v) for i, v in zip(partner.tolist(), picks.view.tolist()) if (i, v) not in known]
        index, view = np.array(list(dict.fromkeys(more)), np.int64).reshape(-1, 2).T
        return Picks(np.concatenate([picks.index, index]), np.concatenate([picks.view, view]))

    def _finished(
        self,
        cut: Iterator[Batch],
        asked: Callable[[int], Picks],
        at: Callable[[int], Picks],
        steps: Sequence[int],
        num_classes: int,
        device: torch.device,
        threads: int,
    ) -> Generator[Batch, None, None]:
        on_cpu = device.type == "cpu"
        with ThreadPoolExecutor(threads, "looks") as pool:
            workers = pool if on_cpu else None
            plans = ahead(lambda step: self._plan(at(step), threads if on_cpu else 1), steps, _AHEAD)

            def finish(step: int) -> Batch:
                whole = self._made(next(cut), next(plans), num_classes, workers)
                return _first(whole, len(asked(step).index))

            made = ahead(finish, steps, _AHEAD) if on_cpu else (finish(step) for step in steps)
            try:
                yield from made
            finally:
                for stream in (made, plans, cut):  # who waits for another ends first
                    close = getattr(stream, "close", None)
                    if close is not None:
                        close()

    def _plan(self, picks: Picks, parts: int) -> _Plan:
        looks: list[tuple[slice, Any]] = []
        if self.looks is not None:
            size = -(-len(picks.index) // parts) or 1
            rows = [slice(k, k + size) for k in range(0, len(picks.index), size)]
            looks = [(r, self.looks.draw(picks.index[r], picks.view[r], self.out_px)) for r in rows]
        if self.mixing is None:
            return _Plan(looks, None, np.empty(0, np.int64))
        mix = self.mixing.draw(picks.index, picks.view)
        return _Plan(looks, mix, _rows_of(mix.partner, picks))

    def _made(self, batch: Batch, plan: _Plan, num_classes: int, pool: ThreadPoolExecutor | None) -> Batch:
        images, labels = batch.images.permute(0, 2, 3, 1), batch.labels
        if self.looks is not None:
            images = self._dressed(images, plan, pool)
        partner, own = None, None
        if plan.mix is not None:
            partner = moved(torch.from_numpy(plan.partner), images.device)
            own = moved(torch.from_numpy(plan.mix.own), images.device)
            images = self._mixed(images, partner, plan.mix, pool)
        if labels is not None:
            labels = self.labels(labels, num_classes, partner, own)
        return replace(batch, images=images.permute(0, 3, 1, 2), labels=labels)

    def labels(
        self, labels: Tensor, num_classes: int, partner: Tensor | None = None, own: Tensor | None = None
    ) -> Tensor:
        """Return the labels [B] int64 of single pictures as a batch has them: [B, K] where they are shares.

        `partner` [B] are the rows with the rest of the weight, `own` [B] the weights of the own ones.
        """
        if self.mixing is None and not self.smoothing:
            return labels
        return soft_labels(labels, num_classes, partner, own, self.smoothing)

    def __str__(self) -> str:
        """Say what is done to the pictures beside cutting them; "" where nothing is."""
        return "".join(f", {part}" for part in (self.looks, self.mixing) if part is not None)

    def _dressed(self, images: Tensor, plan: _Plan, pool: ThreadPoolExecutor | None) -> Tensor:
        assert self.looks is not None
        apply = self.looks.apply
        if pool is None or len(plan.looks) == 1:
            parts = [apply(images[rows], table) for rows, table in plan.looks]
        else:
            parts = list(pool.map(lambda part: apply(images[part[0]], part[1]), plan.looks))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _mixed(self, images: Tensor, partner: Tensor, mix: Mix, pool: ThreadPoolExecutor | None) -> Tensor:
        if pool is None:
            return mixed(images, partner, mix, slice(0, len(images)))
        size = -(-len(images) // pool._max_workers)
        parts = [slice(k, k + size) for k in range(0, len(images), size)]
        made = list(pool.map(lambda rows: mixed(images, partner, mix, rows), parts))
        return made[0] if len(made) == 1 else torch.cat(made)


def _rows_of(partner: np.ndarray, picks: Picks) -> np.ndarray:
    """The rows [B] in which the partners of a batch lie; each is there, in the same view."""
    ours, wanted = picks.index << 32 | picks.view, partner << 32 | picks.view
    by_place = np.argsort(ours)
    ours = ours[by_place]
    found = np.searchsorted(ours, wanted)
    assert (ours[np.minimum(found, len(ours) - 1)] == wanted).all(), "a partner is not in its batch"
    return by_place[found]


def _first(batch: Batch, count: int) -> Batch:
    """The first images of a batch."""
    if count == len(batch.index):
        return batch
    return replace(
        batch,
        images=batch.images[:count],
        index=batch.index[:count],
        view=batch.view[:count],
        labels=None if batch.labels is None else batch.labels[:count],
    )
