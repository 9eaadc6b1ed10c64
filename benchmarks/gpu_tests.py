"""The part of `benchmarks.gpu_check` that runs the tests marked `gpu`: a row for every file, and for what fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.checkout import ROOT
from benchmarks.gpu_rows import Row, begin, row

_TEST = re.compile(
    r"^(?P<name>(?P<file>\S+\.py)::.+?) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b"
)
_BEGUN = re.compile(r"^\S+\.py::.+ $")
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")


def tests(rehearse: bool) -> Iterator[Row]:
    """The tests that are skipped without CUDA."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    yield from run_tests(files[:2] if rehearse else files, ["-m", "gpu"])  # there all are skipped


def run_tests(files: Sequence[Path], options: Sequence[str]) -> Iterator[Row]:
    """Run test files by pytest; yield a row for each that failed, and one for each file when it is done."""
    # A file that cannot be imported, for want of a package, must not keep the others from running.
    words = ["-v", "-rN", "--no-header", "--continue-on-collection-errors", "--color=no", *options]
    begin("collecting the tests")
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *words, *map(str, files)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        counts: dict[str, Counter[str]] = {}
        said = ""
        for line in _heard(process.stdout.fileno()):
            said += line
            found = _TEST.match(line)
            if found is None:
                continue
            if found["file"] not in counts:
                yield from _last_file(counts)
            counts.setdefault(found["file"], Counter())[found["outcome"].lower()] += 1
            if found["outcome"] in ("FAILED", "ERROR"):
                yield row(found["name"], "FAILED: see the output")
        yield from _last_file(counts)
    yield from _collection_rows(said, process.returncode)
    if process.returncode not in (0, 5):
        print(said[-8000:], flush=True)


def _heard(descriptor: int) -> Iterator[str]:
    """Yield whole lines; pytest -v writes a test's name when it begins: a line that is not whole says which."""
    rest, begun = "", ""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
        yield from (f"{line}\n" for line in lines)
        if _BEGUN.match(rest) and rest != begun:
            begun = rest
            begin(rest.strip())


def _last_file(counts: dict[str, Counter[str]]) -> Iterator[Row]:
    for file in list(counts)[-1:]:
        says = ", ".join(f"{number} {outcome}" for outcome, number in counts[file].items())
        yield row(file, says)


def _collection_rows(said: str, code: int) -> Iterator[Row]:
    """Yield what happened beside single tests: files that could not be imported, or no test at all."""
    blocks = re.split(r"^_+ ERROR collecting (\S+) _+$", said, flags=re.MULTILINE)[1:]
    for file, text in zip(blocks[::2], blocks[1::2]):
        missing = _MISSING.search(text)
        ours = missing is None or missing[1].partition(".")[0] in ("fastanc", "benchmarks", "support")
        yield row(file, "FAILED: it cannot be imported, see the output" if ours else f"needs {missing[1]}")
    last = said.strip().splitlines()[-1].strip("= ") if said.strip() else "nothing was said"
    broken = code not in (0, 1, 5) and not blocks  # 1: tests failed, each has its row; 5: none was chosen
    yield row("pytest -m gpu", f"FAILED: {last}" if broken else last)
