"""The model card of an exported student: README.md, with a head that the Hugging Face hub reads."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from fastanc import __version__
from fastanc.jobs.gains_table import describe
from fastanc.jobs.native import Native
from fastanc.models.published_facts import licence_of
from fastanc.plain_yaml import dump_yaml
from fastanc.training.folder import PROFILE, read_summary

_SAYS = {
    "student.safetensors": "weights, as `fastanc` reads them (`--teacher.weights`, `--student.weights`)",
    "model.safetensors": "weights, as {library} lays them out",
    "config.json": "how timm makes the network of this folder",
    "student.pt2": "program for `torch.export.load`: images [B, C, S, S] float 0..1 to {gives}",
    "student.onnx": "the same for ONNX",
    "student_fp16.onnx": "the same in fp16; images and {gives} stay fp32",
    "student_int8.onnx": "the same in int8",
    "preprocess.json": "how images are shown to it",
    "classes.txt": "the names of its classes, one a line, in the order of its logits",
    "predict.py": "classifies image files, without fastanc",
}
_MEASURES = {
    "top1": ("top-1", "{:.2%}"),
    "top5": ("top-5", "{:.2%}"),
    "loss": ("cross-entropy, nats", "{:.4g}"),
    "agreement_pct": ("same first guess as the teacher, %", "{:.2f}"),
    "teacher_kl": ("KL(teacher, student), nats", "{:.4g}"),
    "teacher_top1": ("the teacher's top-1", "{:.2%}"),
}
_BY_NEIGHBOURS = {
    "top1": ("top-1 of a vote of the 20 nearest validation images", "{:.2%}"),
    "agreement_pct": ("same nearest validation image as the teacher, %", "{:.2f}"),
    "teacher_top1": ("the teacher's top-1 of such a vote", "{:.2%}"),
}
"""What the same keys mean of a student without classes (`training.neighbours`)."""
_GROUPS = ("data", "teacher", "student", "method", "optimizer", "schedule", "run")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a card tells of an export."""

    run: Path
    files: Sequence[str]
    says: Mapping[str, Any]
    """Of preprocess.json."""
    native: Native | None
    command: str
    """By which it was written."""
    notes: Sequence[str]
    """Sentences about its programs."""


def card(export: Exported) -> str:
    """Return the card: Markdown below a head of YAML."""
    tree, summary = _config(export.run), read_summary(export.run) or {}
    head = yaml.safe_dump(_head(export, tree, summary), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---\n",
        f"# {_name(export.run, summary)}\n",
        _about(tree, summary),
        _use(export),
        _quality(summary, export.notes, _MEASURES if export.says["gives"] == "logits" else _BY_NEIGHBOURS),
        _gains(export.run),
        _training(export, tree),
        "## Intended use and limits\n\nTo be written by the author, as is the licence of these weights.\n",
    ]
    return "\n".join(part for part in parts if part)


def _config(run: Path) -> dict[str, dict[str, Any]]:
    """The groups of a run's configuration; of a path on its machine the last part."""
    try:
        tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))  # to be shown, not to be run
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(tree, dict):
        return {}
    return {key: _without_places(tree[key]) for key in _GROUPS if isinstance(tree.get(key), dict)}


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_places(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    return os.path.basename(value.rstrip("/")) if isinstance(value, str) and os.path.isabs(value) else value


def _name(run: Path, summary: Mapping[str, Any]) -> str:
    return str(summary.get("name") or run.resolve().name)


def _data_name(tree: Mapping[str, Mapping[str, Any]]) -> str:
    return str(tree.get("data", {}).get("name", "an unnamed set"))


def _head(export: Exported, tree: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    head: dict[str, Any] = {
        "library_name": "timm" if export.native and export.native.library == "timm" else "pytorch",
        "pipeline_tag": "image-feature-extraction"
        if export.says["gives"] == "features"
        else "image-classification",
        "tags": ["knowledge-distillation", "model-compression", "fastanc"],
    }
    teacher = str(summary.get("teacher") or "")
    if teacher.startswith("hf:") and not os.path.exists(teacher[3:]):
        head["base_model"] = teacher[3:]
    top1 = _val(summary).get("top1")
    if top1 is not None and export.says["gives"] == "logits":  # a vote of neighbours is no classification
        data = _data_name(tree)
        head["metrics"] = ["accuracy"]
        task = {"type": "image-classification"}
        measured = [{"type": "accuracy", "name": "top-1", "value": round(float(top1), 6)}]
        result = {"task": task, "dataset": {"name": data, "type": data}, "metrics": measured}
        head["model-index"] = [{"name": _name(export.run, summary), "results": [result]}]
    return head


def _val(summary: Mapping[str, Any]) -> dict[str, float]:
    """The last evaluation's finite numbers; neither a reader nor the hub has a use for others."""
    val = summary.get("val")
    known = val.items() if isinstance(val, Mapping) else ()
    return {key: one for key, one in known if isinstance(one, int | float) and math.isfinite(one)}


def _about(tree: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    student = tree.get("student", {}).get("name") or summary.get("student", "A student")
    size = ""
    if "params" in summary and "macs" in summary:
        size = f", {summary['params']:,} parameters and {summary['macs']:,} multiply-accumulates an image"
    method = tree.get("method", {}).get("type") or summary.get("method", "an unnamed method")
    lines = [f"`{student}`{size}, trained on {_data_name(tree)} by fastanc's method `{method}`."]
    if summary.get("teacher"):
        lines.append(f"Its teacher was {_teachers(tree.get('teacher', {}), str(summary['teacher']))}.")
    return " ".join(lines) + "\n"


def _teachers(teacher: Mapping[str, Any], title: str) -> str:
    members = teacher.get("members")
    if not isinstance(members, list):
        return _teacher(title, teacher.get("weights"))
    return " and ".join(_teacher(str(one.get("name")), one.get("weights")) for one in members if one)


def _teacher(name: str, weights: Any) -> str:
    if weights is not None:
        return f"`{name}` (weights {os.path.basename(str(weights).rstrip('/'))}, whose licence no name says)"
    licence = licence_of(name)
    return (
        f"`{name}` (licence {licence})"
        if licence
        else f"`{name}` (its licence is not said where it is published)"
    )


def _use(export: Exported) -> str:
    words = {"library": export.native.library if export.native else "", "gives": export.says["gives"]}
    files = [f"| `{name}` | {_SAYS[name].format(**words)} |" for name in _SAYS if name in export.files]
    lines = ["## Use", ""]
    if "predict.py" in export.files:
        lines += [
            "    pip install pillow numpy onnxruntime    # or torch",
            "    python predict.py photo.jpg",
            "",
        ]
    if export.native is not None and "model.safetensors" in export.files:
        lines += [
            "```python",
            "from safetensors.torch import load_file",
            f"import {export.native.library}",
            "",
            f"network = {export.native.call}",
            'network.load_state_dict(load_file("model.safetensors"))',
            "network.eval()  # of images that are normalised, as preprocess.json says",
            "```",
            "",
        ]
    says = export.says
    shown = (
        f"Images: {says['channels']}, the shorter side scaled to {says['resize_px']} px ({says['interpolation']},"
        f" with antialiasing),\nthe middle {says['image_px']} px kept, 0..1. The programs normalise by themselves;"
        f" the bare network wants mean\n{says['mean']} and std {says['std']}."
    )
    return "\n".join([*lines, shown, "", "| file | what it is |", "| --- | --- |", *files, ""])


def _quality(
    summary: Mapping[str, Any], notes: Sequence[str], measures: Mapping[str, tuple[str, str]]
) -> str:
    val = _val(summary)
    rows = [f"| {title} | {form.format(val[key])} |" for key, (title, form) in measures.items() if key in val]
    table = (
        ["On the run's validation images:", "", "| measure | value |", "| --- | --- |", *rows, ""]
        if rows
        else []
    )
    said = [f"- {note}" for note in notes]
    return "\n".join(["## Quality", "", *table, *said, *([""] if said else [])]) if table or said else ""


def _gains(run: Path) -> str:
    try:
        table = describe(json.loads((run / PROFILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""
    return f"## Size and speed\n\n```\n{table}\n```\n"


def _training(export: Exported, tree: Mapping[str, Any]) -> str:
    kept = {key: dict(group) for key, group in tree.items()}
    versions = f"fastanc {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return "\n".join(
        [
            "## Training",
            "",
            "`fastanc train --config_path config.yaml`, with this config.yaml (paths without their folders):",
            "",
            "```yaml",
            dump_yaml(kept).rstrip("\n"),
            "```",
            "",
            f"Exported by `{export.command}` with {versions}.",
            "",
        ]
    )
