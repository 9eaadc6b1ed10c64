"""The report's HTML: table, drawings, notes and configurations, without any external part."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from fastanc.jobs.report_figures import COLOURS, INK, LINE, MUTED, RunFolder, Shown, figures_of
from fastanc.quoting import counted

# fmt: off
_IN_TABLE = {
    "name", "state", "method", "student", "teacher", "teacher_source", "teacher_params", "labels", "params", "macs",
    "error_pct", "agreement_pct", "teacher_kl", "teacher_top1", "top1", "images_per_s", "data_share", "teacher_share",
    "wall_s",
}
# fmt: on


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
    shown = [(run, COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs)]
    figures = figures_of(shown)
    count = counted(len(runs), "run")
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


_CSS = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 36px 32px 64px; max-width: 1400px; background: #fff; color: {INK};
  font: 14px/1.5 -apple-system, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }}
header {{ display: flex; align-items: baseline; gap: 14px; margin-bottom: 22px; }}
h1 {{ font-size: 26px; letter-spacing: -.02em; margin: 0; }}
header p, figure p {{ color: {MUTED}; margin: 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; }}
.wide {{ overflow-x: auto; }}
th {{ text-align: left; font-weight: 500; color: {MUTED}; border-bottom: 1.5px solid {INK}; }}
th, td {{ padding: 8px 7px; white-space: nowrap; vertical-align: bottom; }}
td {{ border-bottom: 1px solid {LINE}; }}
td:nth-child(3) {{ white-space: normal; }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
i {{ display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 20px;
  margin: 30px 0; }}
figure {{ margin: 0; padding: 16px 18px 14px; border: 1px solid {LINE}; border-radius: 10px;
  break-inside: avoid; }}
figure svg {{ width: 100%; height: auto; display: block; margin-top: 8px; }}
figure p {{ font-size: 12.5px; }}
h2 {{ font-size: 15px; margin: 0; }}
figcaption {{ display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 12.5px; margin-top: 6px; }}
section {{ border-top: 1px solid {LINE}; padding: 18px 0; break-inside: avoid-page; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 4px 20px;
  margin: 12px 0 0; font-size: 12.5px; }}
dt {{ color: {MUTED}; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
ul {{ margin: 14px 0 0; padding: 0; list-style: none; font-size: 13px; }}
li {{ padding: 6px 12px; margin-bottom: 6px; background: #f9fafb; border-left: 3px solid {LINE}; }}
li em {{ color: {MUTED}; font-style: normal; margin-right: 8px; }}
.sheet {{ width: 100%; max-width: 760px; margin-top: 14px; image-rendering: pixelated; }}
details {{ margin-top: 12px; }} summary {{ cursor: pointer; color: {MUTED}; font-size: 13px; }}
pre {{ background: #f9fafb; padding: 14px 16px; border-radius: 8px; font-size: 12px; overflow-x: auto; }}
@media print {{ body {{ padding: 0; }} .figures {{ grid-template-columns: 1fr 1fr; }}
  details {{ display: none; }} table {{ font-size: 10px; }} th, td {{ padding: 5px 4px; }} }}
"""
