"""The site: what is generated says all that the code has, each page has its place, `make docs` has no warning."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastanc
from fastanc.cli import _parser
from fastanc.config import GROUPS
from fastanc.jobs.study_file import study_names
from fastanc.manual import class_of, entries
from fastanc.methods.base import Method
from fastanc.parsing import method_names, recipe_names

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
pytest.importorskip("sphinx", reason="the site is built with pip install 'fastanc[docs]'")
sys.path.insert(0, str(DOCS / "site"))

import generated  # noqa: E402


def own_methods() -> list[str]:
    """Return the names of fastanc's own methods, whatever other tests have registered."""
    kinds = {name: Method.get_choice_class(name) for name in method_names()}
    return [name for name, kind in kinds.items() if kind.__module__.startswith("fastanc.methods")]


def field_names() -> Iterator[str]:
    for group in GROUPS:
        if group != "method":
            yield from (entry.name for entry in entries(class_of(group), group))
    for name in own_methods():
        for entry in entries(Method.get_choice_class(name), "method"):
            yield f"{entry.name} ({name})"


def pages() -> list[Path]:
    return [path for path in sorted(DOCS.rglob("*")) if path.suffix in {".md", ".ipynb"}]


def test_a_field_is_written_with_its_range_default_and_meaning() -> None:
    text = generated.filled("<!-- generated: fields -->")
    start = text.index(":::{field} data.batch\n")
    assert text[start : text.index(":::\n", start)].split("\n")[1:4] == [
        "Images per step over all processes.",
        "",
        "Takes a whole number, from 1 to 1048576; default 64.",
    ]
    assert text.count(":::{field} ") == sum("(" not in name for name in field_names())


def test_every_method_and_field_of_it_is_written_once() -> None:
    text = generated.filled("<!-- generated: methods -->")
    heads = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert set(own_methods()) <= set(heads)
    named = re.findall(r"^:::\{field\} (.*)$", text, re.MULTILINE)
    wanted = [name for name in field_names() if "(" in name]
    assert sorted(set(named) & set(wanted)) == sorted(wanted)
    assert len(named) == len(set(named))


def test_every_option_of_every_command_says_what_it_is_and_takes() -> None:
    found = dict(generated.every_command(_parser()))
    assert {"fastanc index", "fastanc cache build", "fastanc study", "fastanc version"} <= set(found)
    silent = [
        f"{words} {action.dest}"
        for words, parser in found.items()
        for action in parser._actions
        if not action.help or not generated._taken(action)
    ]
    assert silent == []
    text = generated.filled("<!-- generated: commands -->")
    assert "A whole number, from 1 to 100; default 90." in text  # pack --quality, by its own reader
    assert "One of cpu, cuda." in text


@pytest.mark.parametrize("text", ["jitter[-bB-cC]", "a * b_c <X> {name: 1} #2 | ~x", "`{a: *}` and 1 * 2"])
def test_text_of_the_code_is_shown_as_it_is(text: str) -> None:
    from markdown_it import MarkdownIt

    shown = re.sub(r"<[^>]+>", "", MarkdownIt().render(generated.verbatim(text)))
    assert html.unescape(shown).strip() == text.replace("`", "")


def test_marks_of_pages_are_known_and_each_part_has_its_page() -> None:
    marks = [mark for path in pages() for mark in generated.MARK.findall(path.read_text())]
    assert sorted(marks) == sorted(generated.PARTS)


def test_every_page_has_a_place_in_the_index() -> None:
    listed = re.findall(r"^([a-z_]+(?:/[a-z_]+)?)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    names = [path.relative_to(DOCS).with_suffix("").as_posix() for path in pages()]
    assert sorted(listed) == sorted(set(names) - {"index"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as the command of `make docs` builds it, elsewhere."""
    target = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "-m sphinx" in line)
    words = target.split()[1:]
    out = tmp_path_factory.mktemp("site")
    elsewhere = {"build/doctrees": str(out / "doctrees"), "build/docs": str(out / "html")}
    done = subprocess.run(
        [sys.executable, *(elsewhere.get(word, word) for word in words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out / "html"


def shown_in(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.mark.slow
def test_the_built_site_has_every_field_command_recipe_and_export(site: Path) -> None:
    reference = site / "reference"
    text = shown_in(reference / "fields.html") + shown_in(reference / "methods.html")
    assert [name for name in field_names() if name not in text] == []
    text = shown_in(reference / "commands.html")
    words = ["fastanc train", *dict(generated.every_command(_parser()))]
    assert [word for word in words if word not in text] == []
    text = shown_in(reference / "recipes.html")
    assert [name for name in recipe_names() if f"--recipe {name}" not in text and name not in text] == []
    text = shown_in(reference / "studies.html")
    assert [name for name in study_names() if name not in text] == []
    text = shown_in(reference / "python.html")
    assert [name for name in fastanc.__all__ if not name.startswith("_") and name not in text] == []
    assert "The bare network, trained, in eval mode: normalised images" in text  # no type before a colon
    for path in pages():
        assert (site / path.relative_to(DOCS)).with_suffix(".html").is_file(), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["[gone](nowhere.md)", "[gone](cache.md#no-such-heading)", "{ref}`no-such-place`"]
)
def test_a_broken_link_ends_the_build(fault: str, tmp_path: Path) -> None:
    """With the settings of the site, on pages of two."""
    (tmp_path / "conf.py").write_text(
        f"import runpy; globals().update(runpy.run_path({str(DOCS / 'conf.py')!r}))\n"
        f"sys.path.insert(0, {str(DOCS / 'site')!r})\n"
    )
    (tmp_path / "cache.md").write_text("# Cache\n")
    for links, code in ((f"[there](cache.md) {fault}", 1), ("[there](cache.md#cache)", 0)):
        (tmp_path / "index.md").write_text(f"# Index\n\n{links}\n\n```{{toctree}}\ncache\n```\n")
        words = ["-q", "-W", "--keep-going", "-E", str(tmp_path), str(tmp_path / "out")]
        done = subprocess.run(
            [sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stderr
