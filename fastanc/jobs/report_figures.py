"""The report's drawings: what a run left behind as curves, each a card of inline SVG."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from fastanc.jobs.run_list import is_number

COLOURS = ("#2563eb", "#dc6803", "#0f9960", "#c026d3", "#b42318", "#0e7490", "#7a5af8", "#667085")
_JUDGED = {
    "d_teacher": ("teacher", "#1d2939"),
    "d_student": ("student", "#dc6803"),
    "d_adversarial": ("adversarial sample", "#c026d3"),
}
_HEALTH = ("distance", "held_won", "pull_share")
_SHARES = {"compute": "#2563eb", "waiting for data": "#f5a524", "waiting for the teacher": "#98a2b3"}
INK, MUTED, LINE = "#1d2939", "#667085", "#e4e7ec"


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


def figures_of(shown: Shown) -> list[str]:
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
    if examined := [one for one in shown if all(one[0].series("val", key)[0] for key in _HEALTH)]:
        subtitle = (
            "sliced Wasserstein, in deviations of the teacher's features, by epoch; the last one in words: "
        )
        subtitle += "; ".join(_health(run) for run, _ in examined)
        figures.append(_figure("From the teacher's distribution", subtitle, draw_distance, examined))
    if pulled := [one for one in shown if one[0].series("train", "pull_data")[0]]:
        subtitle = "the game's share of the two gradients at the student's features, by epoch"
        figures.append(_figure("The game's pull", subtitle, draw_pull, pulled))
    if examined:
        subtitle = (
            "the discriminator's right decisions on training views, dotted on held-out ones; 0.5 guesses"
        )
        figures.append(_figure("Told apart", subtitle, draw_told_apart, examined))
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
    buffer = io.StringIO()
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        draw(figure.subplots(), shown)
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
            for term, other in zip(terms, COLOURS[1:]):
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
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    for column, (label, ink) in _JUDGED.items():
        epochs, values = shown[0][0].series("train", column)
        if epochs:
            axes.plot(epochs, values, color=ink, label=label, **_dots(epochs))
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.legend()


def _health(run: RunFolder) -> str:
    """Return the numbers of a game at its last evaluation."""
    distance, held, pull = (run.series("val", key)[1][-1] for key in _HEALTH)
    return f"{run.label} {distance:.3g}, held-out views told apart {held:.1%}, the game's pull {pull:.1%}"


def draw_distance(axes: Any, shown: Shown) -> None:
    """Draw how far the student's features are from the teacher's distribution, by epoch."""
    for run, colour in shown:
        epochs, values = run.series("val", "distance")
        axes.plot(epochs, values, color=colour, marker="o", markersize=3.5, markeredgewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def draw_pull(axes: Any, shown: Shown) -> None:
    """Draw the game's share of both gradients' norms, by epoch, on a scale on which a hundredth is seen."""
    for run, colour in shown:
        pulls = ("pull_game", "pull_data")
        lines = [
            x for x in run.metrics if x["kind"] == "train" and all(is_number(x.get(key)) for key in pulls)
        ]
        epochs = [line["epoch"] for line in lines]
        both = [sum(line[key] for key in pulls) for line in lines]
        shares = [line["pull_game"] / total if total else 0.0 for line, total in zip(lines, both)]
        axes.plot(epochs, shares, color=colour, **_dots(epochs))
    axes.set_yscale("symlog", linthresh=0.01, linscale=0.5)
    axes.set_yticks([0, 0.01, 0.1, 1], ["0", "1 %", "10 %", "100 %"])
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)


def draw_told_apart(axes: Any, shown: Shown) -> None:
    """Draw how often the discriminator is right, on training views and, dotted, on held-out ones, by epoch."""
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    for run, colour in shown:
        epochs, won = run.series("train", "won")
        axes.plot(epochs, won, color=colour, **_dots(epochs))
        axes.plot(*run.series("val", "held_won"), ":o", color=colour, markersize=3.5, markeredgewidth=0)
    axes.set_ylim(0, 1.02)
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


def _style() -> AbstractContextManager[None]:
    """Return matplotlib's settings: text stays text, and the SVG's ids are the same every time."""
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("the report's drawings need matplotlib: pip install matplotlib") from error
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "fastanc",
            "font.family": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
            "font.size": 9,
            "text.color": INK,
            "axes.edgecolor": LINE,
            "axes.labelcolor": MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": LINE,
            "grid.linewidth": 0.7,
            "lines.linewidth": 1.6,
            "lines.solid_capstyle": "round",
            "xtick.color": LINE,
            "ytick.color": LINE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "legend.labelcolor": INK,
        }
    )
