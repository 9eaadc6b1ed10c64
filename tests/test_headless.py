"""Teachers that give features and know no classes: built, cached, learnt from, judged by neighbours, exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastanc.api import compress
from fastanc.batch import Batch
from fastanc.cache.identity import caches, read_identity
from fastanc.jobs.export import export_run
from fastanc.models import zoo
from fastanc.train import main
from fastanc.training.neighbours import evaluate_features
from support.tiny_run import LENETS, as_words

MEAN, STD = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)


def pictures(px: int = 32, count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, px, px), dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet8", "lenet5", "torchvision:mobilenet_v3_small", "timm:test_vit"])
def test_without_its_head_a_network_gives_the_features_of_the_classifier(name: str, tmp_path: Path) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    whole = zoo.build(name, num_classes=7, image_px=32, mean=MEAN, std=STD).eval()
    torch.save(whole.bare.state_dict(), tmp_path / "whole.pth")
    bare = zoo.build(
        name, num_classes=0, image_px=32, mean=MEAN, std=STD, weights=tmp_path / "whole.pth"
    ).eval()
    images = pictures()
    out, expected = bare(images), whole(images)
    torch.testing.assert_close(out.features, expected.features, rtol=1e-5, atol=1e-5)
    assert out.logits.shape == (4, 0)
    assert (bare.head, bare.num_classes, bare.feature_dim) == (None, 0, whole.feature_dim)
    zoo.save_weights(bare, tmp_path / "bare.safetensors")
    again = zoo.load_weights(tmp_path / "bare.safetensors").eval()
    assert torch.equal(again(images).features, out.features)


def test_what_gives_no_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gives \[2, 4, 6, 6\] for two images and no features \[2, D\]"):
        zoo.tap(torch.nn.Conv2d(3, 4, 3), image_px=8, headless=True)
    with pytest.raises(ValueError, match="has no last linear layer to leave out"):
        zoo.build("torchvision:squeezenet1_1", num_classes=0, image_px=64)


def test_a_vote_of_neighbours_by_hand() -> None:
    """Against NumPy, one image at a time."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)).astype(np.float32)
    labels = rng.integers(0, 3, 40)
    features[np.arange(40), labels] += 1.5

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor):
            from fastanc.batch import Outputs

            return Outputs(images[:, :0], images)

    batches = [
        Batch(
            images=torch.from_numpy(features[at]), index=at, view=at * 0, labels=torch.from_numpy(labels[at])
        )
        for at in np.array_split(rng.permutation(40), 3)
    ]
    network = Given()

    def teacher(batch: Batch):
        return network(batch.images.roll(1, 1))  # the same angles

    found = evaluate_features(network, batches, lambda t: t, 40, 6, teacher, 6)
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    right = 0
    for i in range(40):
        cosines = {j: unit[i] @ unit[j] for j in range(40) if j != i}
        votes = np.zeros(3)
        for j in sorted(cosines, key=lambda j: -cosines[j])[:20]:
            votes[labels[j]] += np.exp(cosines[j] / 0.07)
        right += votes.argmax() == labels[i]
    assert found["top1"] == pytest.approx(right / 40)
    assert found["teacher_top1"] == found["top1"]
    assert found["agreement_pct"] == 100
    unlabelled = [Batch(images=b.images, index=b.index, view=b.view) for b in batches]
    assert evaluate_features(network, unlabelled, lambda t: t, 40, 6) == {}


def words(tmp_path: Path, **more: str) -> list[str]:
    fields = {**LENETS, "teacher.headless": "true", "teacher.cache": "fill", "run.max_steps": "3"}
    fields |= {"teacher.cache_dir": str(tmp_path / "rows"), "run.out": str(tmp_path), "run.name": "run"}
    return as_words({**fields, **{key.replace("__", "."): value for key, value in more.items()}})


def test_rows_hold_features_alone_and_the_student_is_a_backbone(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert main(words(tmp_path, method__data="features")) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["val"]) == {"top1", "error_pct", "agreement_pct", "teacher_top1"}
    for path in caches(tmp_path / "rows"):
        assert [(f["name"], f["width"]) for f in read_identity(path)["fields"]] == [("features", 84)]
    again = ["--run.resume", "latest", "--run.max_steps", "5", "--teacher.cache", "fill"]
    assert main([*words(tmp_path, method__data="features"), *again]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 5
    files = export_run(tmp_path / "run", tmp_path / "exported", ("safetensors", "torch_export"))
    program = torch.export.load(files["torch_export"]).module()
    student = zoo.load_weights(files["safetensors"]).eval()
    images = pictures()
    with torch.no_grad():
        torch.testing.assert_close(program(images / 255), student(images).features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        {"method__type": "queue", "method__size": "32"},
        {"method__type": "cosine"},
        {"method__type": "relations", "method__task": "false"},
        {"method__type": "relations", "method__task": "false", "method__relation": "pkt"},
    ],
)
def test_methods_on_features_alone(tmp_path: Path, method: dict[str, str]) -> None:
    pytest.importorskip("sklearn")
    assert main(words(tmp_path, **method, run__max_steps="2", teacher__cache="off")) == 0
    assert "top1" in json.loads((tmp_path / "run" / "summary.json").read_text())["val"]


@pytest.mark.parametrize(
    ("method", "reads"), [("anc", "logits"), ("kd", "logits and soft_labels"), ("relations", "soft_labels")]
)
def test_a_method_that_reads_classes_is_refused(
    tmp_path: Path, method: str, reads: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    from fastanc.cli import main as command

    assert command(["train", *words(tmp_path, method__type=method)]) == 2
    said = capsys.readouterr().err
    assert f"method.type {method} reads {reads}, and the teacher lenet5 knows no classes" in said


def test_an_object_and_an_ensemble_without_heads(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)

    def body(width: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )

    fields = {"data.batch": 16, "run.eval_every": 0, "schedule.warmup_epochs": 0, "teacher.headless": True}
    fields["method.data"] = "features"
    result = compress(
        body(7), body(5), images, "anc", epochs=1, image_px=8, cache=None, out=tmp_path / "one", fields=fields
    )
    assert set(result.metrics) == {"agreement_pct"}
