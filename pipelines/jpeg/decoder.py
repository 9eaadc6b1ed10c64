"""One pass over steps: a thread reads ahead, DALI decodes the boxes, batches come out finished.

What flows. A step is a `_Feed` of G images with K views of each. `regions` are what is decoded: decoding costs most,
so it is the smallest rectangle around an image's K boxes, or the whole image in the plan `mixed`, whose decoder
cannot cut. `crops` are the boxes counted from their region's corner: they cut a view out of what was decoded, and are
left out of the graph where region and box are one. `scaled` is needed because evaluation resizes first and crops
then (`CentreCrop.exactly`): a resize does not see beyond a box, so cropping first would give other pixels; of a
training view it says "to S x S, keep all". On CUDA the graph does all of it: decode (CPU or GPU), cut, resize, cut,
flip. On the CPU it ends with the decoded regions and `_resize` does the rest, since DALI's resize takes 1 ms an image
there.

Who owns the memory. DALI reads the encoded bytes in place (`no_copy`): they are arrays of ours, kept alive by the
feed, which stays in `_feeds` until its outputs have come. Outputs are DALI's own and are seen by torch without a
copy; DALI may write to them again once torch's last tensor on them is gone. So a CPU batch is written into new memory
before its regions go, and a CUDA batch is held until the stream has passed its readers (`held`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def
from nvidia.dali import types as dali_types
from torch import Tensor

from fastanc.batch import Batch
from fastanc.pipelines.ahead import ahead
from fastanc.pipelines.drawing import Drawn, draw, images_of
from fastanc.pipelines.jpeg.bytes import ChangedImage, Indexed, Reader, undecodable
from fastanc.pipelines.jpeg.held import Held
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process
from fastanc.pipelines.order import Picks
from fastanc.pipelines.resize import finished, placed
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.views import CentreCrop, ViewRule
from fastanc.pipelines.waiting import waiting

types: Any = dali_types  # its constants are made at import, where mypy does not see them
_PREPARED = 2


class _Feed(NamedTuple):
    """One step's work for the decoder: G images, K views of each, B = G * K."""

    step: int
    picks: Picks
    encoded: list[np.ndarray]
    """G arrays of bytes."""
    regions: np.ndarray
    """[G, 4] int32 (x, y, w, h): what is decoded of each image."""
    crops: np.ndarray
    """[G, K, 4] int32: what is resized for each view, within its region."""
    scaled: np.ndarray
    """[G, K, 4] int32 (x, y, w, h): to w x h px, of which the square of out_px from (x, y) on is the view."""
    flips: np.ndarray
    """[G, K] int32."""


class Run:
    """The batches of some steps of one process, at most `largest` views a step, `views` of each image."""

    def __init__(
        self,
        index: Indexed,
        picks: Callable[[int], Picks],
        rule: ViewRule,
        steps: range,
        *,
        largest: int,
        views: int,
        device: torch.device,
        options: JpegOptions,
    ) -> None:
        self._index, self._rule, self._steps = index, rule, steps
        self._views, self._device, self._options = views, device, options
        self._threads = options.threads or cores_per_process()
        self._reader = Reader(index)
        self._resizers = ThreadPoolExecutor(self._threads, "resize")
        # Order, boxes and reading have a thread of their own: they cost the training thread nothing.
        drawn = draw(picks, rule, index.sizes.__getitem__, steps)
        self._prepared = ahead(lambda step: self._prepare(next(drawn)), steps, _PREPARED)
        self._feeds: deque[_Feed] = deque()
        self._failed = False
        self._pipeline: Any = _graph(
            self._source,
            options,
            rule,
            views=views if device.type == "cuda" else 0,
            batch_size=largest // views,
            num_threads=self._threads,
            device_id=_dali_device(device),
            prefetch_queue_depth=options.prefetch,
        )

    def batches(self) -> Generator[Batch, None, None]:
        """Yield the batches in order; closing the iterator ends the threads."""
        try:
            if self._device.type == "cuda":
                yield from self._cuda_batches()
            else:
                yield from ahead(self._cpu_batch, self._steps, self._options.prefetch)
        finally:
            self._prepared.close()
            self._resizers.shutdown(cancel_futures=True)
            self._reader.close()
            # It refers to our callback, which refers to it: DALI's memory would wait for the garbage collector.
            self._pipeline = None

    def _prepare(self, drawn: Drawn) -> _Feed:
        """All that can be done before decoding: regions, bytes."""
        (step, picks, boxes, flips), k = drawn, self._views
        images = images_of(step, picks, k)
        sizes = self._index.sizes[picks.index]
        boxes, scaled = placed(self._rule, boxes, sizes)
        crops = boxes.reshape(-1, k, 4).copy()
        if _in_regions(self._options):
            corner, far = crops[..., :2].min(1), (crops[..., :2] + crops[..., 2:]).max(1)
        else:
            corner, far = np.zeros((len(images), 2), np.int32), sizes[::k]
        crops[..., :2] -= corner[:, None]
        regions = np.concatenate([corner, far - corner], 1)
        try:
            encoded = self._reader.read(images)
        except ChangedImage as error:
            raise ChangedImage(f"step {step}: {error}") from error
        return _Feed(step, picks, encoded, regions, crops, scaled.reshape(-1, k, 4), flips.reshape(-1, k))

    def _source(self) -> list[Any]:
        """DALI's callback: the next step's inputs as _graph takes them; StopIteration ends the pipeline."""
        feed = next(self._prepared)
        self._feeds.append(feed)
        inputs: list[Any] = [feed.encoded]
        if _in_regions(self._options):
            inputs += _corner_and_extent(feed.regions)
        if self._device.type == "cuda":
            for k in range(feed.flips.shape[1]):
                inputs.append(_int32(feed.flips[:, k]))
                if _cuts(self._options, self._views):
                    inputs += _corner_and_extent(feed.crops[:, k])
                if isinstance(self._rule, CentreCrop):
                    inputs += _corner_and_extent(feed.scaled[:, k])
        return inputs

    def _decode(self, stream: torch.cuda.Stream | None = None) -> tuple[_Feed, tuple[Any, ...]]:
        """The next step's feed and DALI's outputs, ordered into this stream."""
        if self._failed:
            raise RuntimeError("the run ended with the error before")
        try:
            self._pipeline.schedule_run()
            with waiting():
                outputs = self._pipeline.outputs(stream)
        except RuntimeError as error:
            self._failed = True
            if isinstance(error, ChangedImage) or not self._feeds:
                raise
            raise RuntimeError(self._blame(self._feeds[0], str(error))) from error
        return self._feeds.popleft(), outputs

    def _blame(self, feed: _Feed, message: str) -> str:
        images = feed.picks.index[:: self._views]
        sample = re.search(r"sample #(\d+)", message)
        if sample:
            who = self._index.name(int(images[int(sample[1])]))
        else:
            who = f"one of the {len(images)} images from {self._index.name(int(images[0]))} on"
        return undecodable(feed.step, who)

    def _cpu_batch(self, step: int) -> Batch:
        feed, (regions,) = self._decode()
        (groups, k), side = feed.flips.shape, self._rule.out_px
        images = torch.empty(groups * k, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        share = -(-groups // self._threads)
        parts = [range(a, min(a + share, groups)) for a in range(0, groups, share)]
        list(self._resizers.map(lambda part: _resize(regions, feed, images, part), parts))
        return self._batch(feed, images)

    def _cuda_batches(self) -> Generator[Batch, None, None]:
        with Held(self._mark) as held:
            for _ in self._steps:
                feed, outputs = self._decode(torch.cuda.current_stream(self._device))
                views = [torch.from_dlpack(view.as_tensor()) for view in outputs]
                pixels = views[0] if len(views) == 1 else torch.stack(views, 1).flatten(0, 1)
                with held.lent(views):
                    yield self._batch(feed, pixels.permute(0, 3, 1, 2))

    def _mark(self) -> torch.cuda.Event:
        passing = torch.cuda.Event()
        passing.record(torch.cuda.current_stream(self._device))
        return passing

    def _batch(self, feed: _Feed, images: Tensor) -> Batch:
        labels = None
        if self._index.labels is not None:
            labels = moved(torch.from_numpy(self._index.labels[feed.picks.index]), self._device)
        return Batch(images, feed.picks.index, feed.picks.view, labels, feed.step)


def _dali_device(device: torch.device) -> int | None:
    """DALI's number of a device; None is the CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _in_regions(options: JpegOptions) -> bool:
    """Whether only the region around an image's boxes is decoded."""
    return options.decode != "mixed"


def _cuts(options: JpegOptions, views: int) -> bool:
    """Whether a view is only a part of what was decoded."""
    return views > 1 or not _in_regions(options)


def _int32(columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(columns, np.int32)


def _corner_and_extent(boxes: np.ndarray) -> list[np.ndarray]:
    return [_int32(boxes[:, :2]), _int32(boxes[:, 2:])]


def _resize(regions: Any, feed: _Feed, images: Tensor, part: range) -> None:
    """Crop, resize and flip all views of these decoded regions into images [B, 3, S, S]."""
    views, side = feed.flips.shape[1], images.shape[3]
    for g in part:
        region = torch.from_dlpack(regions[g]).permute(2, 0, 1)
        for k in range(views):
            images[g * views + k] = finished(
                region, feed.crops[g, k], feed.scaled[g, k], feed.flips[g, k], side
            )


@pipeline_def
def _graph(source: Callable[[], list[Any]], options: JpegOptions, rule: ViewRule, views: int) -> Any:
    """DALI's graph: K finished views [G, S, S, 3] uint8; for K 0 the decoded regions, which torch resizes.

    Nothing is rotated by EXIF: boxes count in stored pixels, as torchvision's ImageFolder sees them. Corners and
    extents are named arguments, which DALI reads on the host: a list in the place of an input becomes a constant of
    the GPU, which it copies back in every batch, waiting for its stream.
    """
    cuts, exact, in_regions = _cuts(options, views), isinstance(rule, CentreCrop), _in_regions(options)
    kinds = [types.UINT8] + [types.INT32] * (2 * in_regions + views * (1 + 2 * cuts + 2 * exact))
    encoded, *rest = fn.external_source(
        source=source, num_outputs=len(kinds), batch=True, no_copy=True, dtype=kinds
    )
    given: Iterator[Any] = iter(rest)
    decoder: dict[str, Any] = {"device": "cpu", "adjust_orientation": False, "output_type": types.RGB}
    if options.decode != "cpu":
        decoder |= {
            "device": "mixed",
            "hw_decoder_load": options.hw_decoder_load,
            "jpeg_fancy_upsampling": True,
        }
    if in_regions:
        corner, extent = next(given), next(given)
        pixels = fn.decoders.image_slice(encoded, start=corner, shape=extent, axis_names="WH", **decoder)
    else:
        pixels = fn.decoders.image(encoded, **decoder)
    if not views:
        return pixels
    if Pipeline.current().device_id is not None:
        pixels = pixels.gpu()
    side: list[int] = [rule.out_px, rule.out_px]
    finished = []
    for _ in range(views):
        flip = next(given)
        view: Any = pixels
        if cuts:
            corner, extent = next(given), next(given)
            view = fn.slice(view, start=corner, shape=extent, axis_names="WH")
        if exact:
            corner, extent = next(given), next(given)
            height_width = fn.cast(fn.stack(extent[1], extent[0]), dtype=types.FLOAT)
            view = fn.resize(view, size=height_width, interp_type=types.INTERP_LINEAR, antialias=True)
            view = fn.slice(view, start=corner, shape=side, axis_names="WH")
        else:
            view = fn.resize(view, size=side, interp_type=types.INTERP_LINEAR, antialias=True)
        finished.append(fn.flip(view, horizontal=flip))
    return tuple(finished)
