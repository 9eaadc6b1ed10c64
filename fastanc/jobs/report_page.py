"""The report's HTML: table, curves as inline SVG, notes and configurations, without any external part."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from html import escape
from typing import Any

from fastanc.jobs.run_list import is_number

_COLOURS = ("#2563eb", "#dc6803", "#0f9960", "#c026d3", "#b42318", "#0e7490", "#7a5af8", "#667085")
_JUDGED = {
    "d_teacher": ("teacher", "#1d2939"),
    "d_student": ("student", "#dc6803"),
    "d_adversarial": ("adversarial sample", "#c026d3"),
}
_SHARES = {"compute": "#2563eb", "waiting for data": "#f5a524", "waiting for the teacher": "#98a2b3"}
# fmt: off
_IN_TABLE = {
    "name", "state", "method", "student", "teacher", "teacher_source", "teacher_params", "labels", "params", "macs",
    "error_pct", "agreement_pct", "teacher_kl", "teacher_top1", "top1", "images_per_s", "data_share", "teacher_share",
    "wall_s",
}
# fmt: on
_INK, _MUTED, _LINE = "#1d2939", "#667085", "#e4e7ec"


@dataclass(frozen=True)
class RunFolder:
    """What a run left behind; a part that it did not (yet) write is empty."""

    label: str
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    config: str
    samples: bytes = b""
    """The sample sheet of generated images, a PNG."""
    views: bytes = b""
    """Some images with their views, a PNG or JPEG."""
    no_views: str = ""
    """Why there is none, though the views are dressed or mixed."""
    profile: str = ""
    """What `fastanc profile` measured, as a table of text."""

    def series(self, kind: str, column: str) -> tuple[list[float], list[float]]:
        """Return (epochs, values) of one column over the lines of one kind."""
        found = [x for x in self.metrics if x["kind"] == kind and is_number(x.get(column))]
        return [x["epoch"] for x in found], [x[column] for x in found]

    def columns(self) -> list[str]:
        """Return every column of the train lines, in order of appearance."""
        return list(dict.fromkeys(key for line in self.metrics if line["kind"] == "train" for key in line))

    def terms(self, player: str) -> list[str]:
        """Return the columns that add up to a player's loss."""
        return [column for column in self.columns() if column.startswith(f"{player}/")]


Shown = Sequence[tuple[RunFolder, str]]
"""Runs with their colours."""


def page(
    runs: Sequence[RunFolder],
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    num_words: int,
    lead: str = "",
) -> str:
    """Return the whole page.

    Args:
        runs: one or more.
        header: titles of the head table's columns, the run's first.
        cells: per run the texts of the other columns.
        num_words: how many columns hold words; the others hold numbers and are aligned right.
        lead: HTML that stands above the head table.
    """
    shown = [(run, _COLOURS[i % len(_COLOURS)]) for i, run in enumerate(runs)]
    with _style():
        figures = _figures(shown)
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>fastanc: {count}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_CSS}</style></head><body>"
        f"<header><h1>fastanc</h1><p>{count} · {datetime.now():%Y-%m-%d %H:%M}</p></header>"
        f"{lead}{_table(shown, header, cells, num_words)}<div class='figures'>{''.join(figures)}</div>"
        f"{''.join(_details(run, colour) for run, colour in shown)}</body></html>\n"
    )


def _table(shown: Shown, header: Sequence[str], cells: Sequence[Sequence[str]], num_words: int) -> str:
    def row(tag: str, texts: Sequence[str]) -> str:
        kinds = ["" if i < num_words else " class='n'" for i in range(len(texts))]
        return f"<tr>{''.join(f'<{tag}{kind}>{text}</{tag}>' for kind, text in zip(kinds, texts))}</tr>"

    head = row("th", [escape(text) for text in header])
    body = [row("td", [_name(*one), *map(escape, texts)]) for one, texts in zip(shown, cells)]
    return f"<div class='wide'><table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"


def _name(run: RunFolder, colour: str) -> str:
    return f"<i style='background:{colour}'></i><b>{escape(run.label)}</b>"


def _figures(shown: Shown) -> list[str]:
    """Return the cards that these runs have something to show on."""
    by_epoch = "sum of its terms, by epoch"
    figures = []
    if tested := [one for one in shown if one[0].series("val", "error_pct")[0]]:
        figures.append(_figure("Validation error", "percent, by epoch", _draw_error, tested))
    for player in dict.fromkeys(c.split("/")[0] for run, _ in shown for c in run.columns() if "/" in c):
        mine = [one for one in shown if one[0].terms(player)]
        draw = partial(_draw_loss, player=player)
        figures.append(_figure(f"Loss of the {player}", by_epoch, draw, mine))
    for one in shown:
        if any(one[0].series("train", column)[0] for column in _JUDGED):
            title = f"The discriminator's view: {one[0].label}"
            subtitle = "how surely it takes a sample for the teacher's; at 0.5 it cannot tell"
            figures.append(_figure(title, subtitle, _draw_judgement, [one]))
    if examined := [one for one in shown if one[0].series("val", "distance")[0]]:
        subtitle = (
            "sliced Wasserstein, in deviations of the teacher's features, by epoch; the last one in words: "
        )
        subtitle += "; ".join(_health(run) for run, _ in examined)
        figures.append(_figure("From the teacher's distribution", subtitle, _draw_distance, examined))
    if taught := [one for one in shown if one[0].series("train", "lr")[0]]:
        figures.append(_figure("Learning rate", "of the student, by epoch", _draw_rate, taught))
    needed = {"data_share", "teacher_share", "images_per_s"}
    if timed := [one for one in shown if all(is_number(one[0].summary.get(key)) for key in needed)]:
        subtitle = "shares of the training loop's time, and images per second"
        figures.append(_figure("Where the time goes", subtitle, _draw_time, timed, legend=False))
    return figures


def _figure(
    title: str, subtitle: str, draw: Callable[[Any, Shown], None], shown: Shown, legend: bool = True
) -> str:
    """Return one card with a drawing as inline SVG; several runs get a legend of their colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 2.9), layout="constrained")
    draw(figure.subplots(), shown)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    names = "".join(f"<span><i style='background:{c}'></i>{escape(run.label)}</span>" for run, c in shown)
    caption = f"<figcaption>{names}</figcaption>" if legend and len(shown) > 1 else ""
    return (
        f"<figure role='img' aria-label='{escape(title)}'><h2>{escape(title)}</h2><p>{escape(subtitle)}</p>"
        f"{svg[svg.index('<svg') :]}{caption}</figure>"
    )


def _draw_error(axes: Any, shown: Shown) -> None:
    for run, colour in shown:
        axes.plot(
            *run.series("val", "error_pct"), color=colour, marker="o", markersize=3.5, markeredgewidth=0
        )
    axes.set_xlim(left=0)


def _draw_loss(axes: Any, shown: Shown, player: str) -> None:
    drawn: list[float] = []
    for run, colour in shown:
        terms = run.terms(player)
        lines = [x for x in run.metrics if x["kind"] == "train" and all(is_number(x.get(t)) for t in terms)]
        curves = {"sum": (colour, 1.6, [sum(line[term] for term in terms) for line in lines])}
        if len(shown) == 1 and len(terms) > 1:
            for term, other in zip(terms, _COLOURS[1:]):
                curves[term.split("/", 1)[1]] = (other, 1.0, [line[term] for line in lines])
        for label, (ink, width, values) in curves.items():
            epochs = [line["epoch"] for line in lines]
            axes.plot(epochs, values, color=ink, linewidth=width, label=label, **_dots(epochs))
            drawn += values
        if len(curves) > 1:
            axes.legend()
    if drawn and min(drawn) > 0 and max(drawn) > 30 * min(drawn):
        axes.set_yscale("log")
    axes.set_xlim(left=0)


def _dots(values: Sequence[float]) -> dict[str, Any]:
    """A line of one point is seen as that."""
    return {"marker": "o", "markersize": 3.5, "markeredgewidth": 0} if len(values) == 1 else {}


def _draw_rate(axes: Any, shown: Shown) -> None:
    for run, colour in shown:
        epochs, rates = run.series("train", "lr")
        axes.plot(epochs, rates, color=colour, **_dots(epochs))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _draw_judgement(axes: Any, shown: Shown) -> None:
    axes.axhline(0.5, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    for column, (label, ink) in _JUDGED.items():
        epochs, values = shown[0][0].series("train", column)
        if epochs:
            axes.plot(epochs, values, color=ink, label=label, **_dots(epochs))
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.legend()


def _health(run: RunFolder) -> str:
    """Return the numbers of a game at its last evaluation."""
    distance, held, pull = (run.series("val", key)[1][-1] for key in ("distance", "held_won", "pull_share"))
    return f"{run.label} {distance:.3g}, held-out views told apart {held:.1%}, the game's pull {pull:.1%}"


def _draw_distance(axes: Any, shown: Shown) -> None:
    for run, colour in shown:
        epochs, values = run.series("val", "distance")
        axes.plot(epochs, values, color=colour, marker="o", markersize=3.5, markeredgewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _draw_time(axes: Any, shown: Shown) -> None:
    for place, (run, _) in enumerate(shown):
        data, teacher = run.summary["data_share"], run.summary["teacher_share"]
        left = 0.0
        for share, ink in zip((max(0.0, 1 - data - teacher), data, teacher), _SHARES.values()):
            axes.barh(place, share, left=left, color=ink, height=0.55, edgecolor="white", linewidth=0.6)
            left += share
        axes.text(1.02, place, f"{run.summary['images_per_s']:,.0f}/s", va="center")
    axes.set_yticks(range(len(shown)), [run.label for run, _ in shown])
    spare = max(0, 3 - len(shown)) / 2  # so that a single bar is no beam
    axes.set_ylim(len(shown) - 0.5 + spare, -0.5 - spare)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(False)
    handles = [axes.barh(0, 0, color=ink) for ink in _SHARES.values()]
    axes.legend(handles, list(_SHARES), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _details(run: RunFolder, colour: str) -> str:
    """Return a run's section: what the head table leaves out, its notes, its configuration folded."""
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(run.summary))
    parts = f"<dl>{facts}</dl>" if facts else ""
    if notes := [line for line in run.metrics if line["kind"] == "note"]:
        items = (f"<li><em>step {x['step'] + 1}</em> {escape(x['text'])}</li>" for x in notes)
        parts += f"<ul>{''.join(items)}</ul>"
    if run.no_views:
        parts += f"<ul><li>the views are not shown: {escape(run.no_views)}</li></ul>"
    parts += _sheet(run.samples, f"images of the generator of {run.label}")
    parts += _sheet(run.views, f"images of {run.label} and their views")
    if run.profile:
        parts += f"<pre>{escape(run.profile)}</pre>"
    if run.config:
        parts += f"<details><summary>configuration</summary><pre>{escape(run.config)}</pre></details>"
    return f"<section><h2>{_name(run, colour)}</h2>{parts}</section>"


def _sheet(picture: bytes, says: str) -> str:
    """A picture inside the page; "" for none."""
    if not picture:
        return ""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    held = base64.b64encode(picture).decode()
    return f"<img class='sheet' alt='{escape(says)}' src='data:image/{kind};base64,{held}'>"


def _facts(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and short texts of what the head table does not show."""
    for key, value in summary.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{key}.")
        elif value is not None and key not in _IN_TABLE:
            yield prefix + key, _short(value)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return f"{value:,.5g}" if isinstance(value, float) else str(value)


def _style() -> AbstractContextManager[None]:
    """Return matplotlib's settings: text stays text, and the SVG's ids are the same every time."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("the report's drawings need matplotlib: pip install matplotlib") from error
    import logging

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "fastanc",
            "font.family": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
            "font.size": 9,
            "text.color": _INK,
            "axes.edgecolor": _LINE,
            "axes.labelcolor": _MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": _LINE,
            "grid.linewidth": 0.7,
            "lines.linewidth": 1.6,
            "lines.solid_capstyle": "round",
            "xtick.color": _LINE,
            "ytick.color": _LINE,
            "xtick.labelcolor": _MUTED,
            "ytick.labelcolor": _MUTED,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "legend.labelcolor": _INK,
        }
    )


_CSS = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 36px 32px 64px; max-width: 1400px; background: #fff; color: {_INK};
  font: 14px/1.5 -apple-system, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }}
header {{ display: flex; align-items: baseline; gap: 14px; margin-bottom: 22px; }}
h1 {{ font-size: 26px; letter-spacing: -.02em; margin: 0; }}
header p, figure p {{ color: {_MUTED}; margin: 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; }}
.wide {{ overflow-x: auto; }}
th {{ text-align: left; font-weight: 500; color: {_MUTED}; border-bottom: 1.5px solid {_INK}; }}
th, td {{ padding: 8px 7px; white-space: nowrap; vertical-align: bottom; }}
td {{ border-bottom: 1px solid {_LINE}; }}
td:nth-child(3) {{ white-space: normal; }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
i {{ display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 20px;
  margin: 30px 0; }}
figure {{ margin: 0; padding: 16px 18px 14px; border: 1px solid {_LINE}; border-radius: 10px;
  break-inside: avoid; }}
figure svg {{ width: 100%; height: auto; display: block; margin-top: 8px; }}
figure p {{ font-size: 12.5px; }}
h2 {{ font-size: 15px; margin: 0; }}
figcaption {{ display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 12.5px; margin-top: 6px; }}
section {{ border-top: 1px solid {_LINE}; padding: 18px 0; break-inside: avoid-page; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 4px 20px;
  margin: 12px 0 0; font-size: 12.5px; }}
dt {{ color: {_MUTED}; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
ul {{ margin: 14px 0 0; padding: 0; list-style: none; font-size: 13px; }}
li {{ padding: 6px 12px; margin-bottom: 6px; background: #f9fafb; border-left: 3px solid {_LINE}; }}
li em {{ color: {_MUTED}; font-style: normal; margin-right: 8px; }}
.sheet {{ width: 100%; max-width: 760px; margin-top: 14px; image-rendering: pixelated; }}
details {{ margin-top: 12px; }} summary {{ cursor: pointer; color: {_MUTED}; font-size: 13px; }}
pre {{ background: #f9fafb; padding: 14px 16px; border-radius: 8px; font-size: 12px; overflow-x: auto; }}
@media print {{ body {{ padding: 0; }} .figures {{ grid-template-columns: 1fr 1fr; }}
  details {{ display: none; }} table {{ font-size: 10px; }} th, td {{ padding: 5px 4px; }} }}
"""
