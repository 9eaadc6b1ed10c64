"""A contact sheet of views: one row an image, as evaluation sees it, then its views as the student gets them.

Below a view of a set that is mixed stand its partner's number and the weight of the image itself, or "alone".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fastanc.batch import Batch
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.order import Picks
from fastanc.pipelines.views import CentreCrop
from fastanc.training.inputs import Input

_IMAGES, _VIEWS = 8, 6
SMALLEST_PX = 96
"""Side of the smallest picture on a sheet; smaller ones are enlarged."""
_EDGE, _GAP, _LINE, _FONT_PX = 14, 8, 16, 11
_APART = " " * 5  # the font has narrow spaces
_INK, _PALE = (29, 41, 57), (102, 112, 133)


@dataclass(frozen=True)
class Layout:
    """Where everything stands on a sheet, in its pixels."""

    px: int
    """Side of the pictures as a network sees them."""
    rows: int
    columns: int
    """Evaluation's and one a view."""

    @property
    def times(self) -> int:
        """How many pixels of the sheet, each way, show one of a picture."""
        return -(-SMALLEST_PX // self.px)

    @property
    def tile_px(self) -> int:
        """Side of a picture on the sheet."""
        return self.times * self.px

    @property
    def size(self) -> tuple[int, int]:
        """(Width, height) of the sheet."""
        x, y = self.corner(self.rows - 1, self.columns - 1)
        return x + self.tile_px + _EDGE, y + self.tile_px + _LINE + _EDGE

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return the (x, y) of a picture's upper left pixel; column 0 is evaluation's."""
        x = _EDGE + column * (self.tile_px + _GAP) + (_GAP if column else 0)
        return x, _EDGE + 2 * _LINE + row * (self.tile_px + _LINE + _GAP)


def contact_sheet(source: Input, images: int | None = None, views: int | None = None) -> Image.Image:
    """Return the sheet of so many images, evenly spaced over the set, in views 0, 1, ...; None takes 8 and 6.

    Raises ValueError for more images or views than there are.
    """
    numbers, count = _numbers(source, images), _count(source, views)
    layout = Layout(source.views.out_px, len(numbers), 1 + count)
    pictures = [_as_evaluated(source, numbers)]
    pictures += [_pixels(source.picked(len(numbers), view, numbers)) for view in range(count)]
    captions = [_names(source, numbers), *(partners(source, numbers, view) for view in range(count))]
    titles = ["evaluation", *(f"view {view}" for view in range(count))]
    return _drawn(layout, f"{source.train.name}: {policy(source)}", titles, pictures, captions)


def _numbers(source: Input, images: int | None) -> np.ndarray:
    there = source.train.num_images
    if images is not None and images > there:
        raise ValueError(f"--images {images} is more than the {there} of {source.train.name}: lower it")
    count = min(_IMAGES, there) if images is None else images
    return np.arange(count) * there // count


def _count(source: Input, views: int | None) -> int:
    there = source.order.views
    if views is not None and there is not None and views > there:
        raise ValueError(
            f"--views {views} is more than the {there} that every image has: lower it, or raise data.views"
        )
    return min(_VIEWS, there or _VIEWS) if views is None else views


def _as_evaluated(source: Input, numbers: np.ndarray) -> np.ndarray:
    rule = source.eval_rule
    if isinstance(source.train, ArraySet):  # whose images have their size; the validation set may be of files
        rule = CentreCrop(rule.out_px, rule.out_px)
    return _pixels(source.train.batches([Picks(numbers, np.zeros_like(numbers))], rule))


def _pixels(batches: Iterable[Batch]) -> np.ndarray:
    """Pictures [N, S, S, 3] uint8 of some batches; grey ones three times over."""
    images = torch.cat([batch.images.cpu() for batch in batches])
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _names(source: Input, numbers: np.ndarray) -> list[str]:
    """Each image's number and class."""
    train = source.train
    if train.labels is None:
        return [str(number) for number in numbers]
    return [f"{number}: {train.classes[train.labels[number]]}" for number in numbers]


def partners(source: Input, numbers: np.ndarray, view: int) -> list[str]:
    """Return with whom images [N] are mixed in a view, and their own weight; "" where nothing is mixed."""
    if source.views.mixing is None:
        return [""] * len(numbers)
    mix = source.views.mixing.draw(numbers, np.full_like(numbers, view))
    return [
        f"+ {partner}{_APART}{own:.2f}" if own < 1 else "alone"
        for partner, own in zip(mix.partner.tolist(), mix.own.tolist())
    ]


def policy(source: Input) -> str:
    """What is done to the pictures beside cutting them, in words."""
    return str(source.views).removeprefix(", ") or "cut, neither dressed nor mixed"


def _drawn(
    layout: Layout,
    title: str,
    titles: Sequence[str],
    pictures: Sequence[np.ndarray],
    captions: Sequence[Sequence[str]],
) -> Image.Image:
    """The sheet, from columns of pictures [R, S, S, 3] and of their captions."""
    sheet = Image.new("RGB", layout.size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)

    def write(x: int, y: int, text: str, colour: tuple[int, int, int], width: int) -> None:
        text = text.encode("ascii", "replace").decode()  # the font that PIL brings has few letters
        while font.getlength(text) > width:
            text = text[:-1]
        pen.text((x, y), text, colour, font)

    write(_EDGE, _EDGE - 4, title, _INK, layout.size[0] - 2 * _EDGE)
    side = layout.tile_px
    for column, (head, shown, below) in enumerate(zip(titles, pictures, captions)):
        write(layout.corner(0, column)[0], _EDGE + _LINE - 2, head, _PALE, side)
        for row, (picture, caption) in enumerate(zip(shown, below)):
            x, y = layout.corner(row, column)
            tile = Image.fromarray(np.ascontiguousarray(picture))
            sheet.paste(tile.resize((side, side), Image.Resampling.NEAREST), (x, y))
            write(x, y + side + 1, caption, _INK, side)
    return sheet
