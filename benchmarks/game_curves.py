"""Draws the health of games side by side: `python -m benchmarks.game_curves RUN ... --out FILE` (docs/game.md).

Each run is a folder that `fastanc train` or `fastanc study` left, with `--method.health true`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastanc.jobs.report_figures import COLOURS, RunFolder, draw_distance, draw_pull, draw_told_apart
from fastanc.jobs.run_list import lines_of

PANELS = {
    "the game's share of the pull": draw_pull,
    "told apart (dotted: held-out views)": draw_told_apart,
    "distance to the teacher's distribution": draw_distance,
}


def draw(folders: Sequence[Path], path: Path) -> None:
    """Draw pull, decisions and distance of the runs by epoch; ValueError for one without a game's measures."""
    import matplotlib
    from matplotlib.figure import Figure

    runs = [RunFolder(folder.name, {}, lines_of(folder), "") for folder in folders]
    for run, folder in zip(runs, folders):
        if not run.series("val", "distance")[0]:
            raise ValueError(f"{folder} has no game's measures: train it with --method.health true")
    shown = list(zip(runs, COLOURS))
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fastanc"})  # words stay words
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    for axes, (title, draw_panel) in zip(figure.subplots(1, len(PANELS)), PANELS.items()):
        draw_panel(axes, shown)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    marks = [axes.plot([], color=colour, label=run.label.rsplit("-seed", 1)[0])[0] for run, colour in shown]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(shown), frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Draw the runs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="file to draw into (SVG, PNG or PDF)")
    options = parser.parse_args()
    draw(options.runs, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
