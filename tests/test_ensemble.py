"""Several teachers as one: the mean, one row in the cache, a head over features side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastanc.api import compress
from fastanc.cache.identity import caches, read_identity
from fastanc.models import zoo
from fastanc.models.ensemble import Ensemble, joined
from fastanc.models.taps import Tapped
from fastanc.parsing import dump, parse
from fastanc.train import main
from support.tiny_run import LENETS, as_words

MEANS, STDS = ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)), ((0.2, 0.25, 0.3), (0.3, 0.2, 0.1))


def two(classes: tuple[int, int] = (5, 5)) -> list[Tapped]:
    """Two networks of other widths, statistics and heads."""
    made = [
        zoo.build(name, num_classes=k, image_px=8, mean=mean, std=std).eval()
        for name, k, mean, std in zip(("resnet8", "wrn-10-1"), classes, MEANS, STDS)
    ]
    for network in made:
        torch.nn.init.normal_(network.head.bias)
    return made


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)


@torch.no_grad()
def test_the_mean_is_bit_for_bit_the_members_own_and_their_features_give_it_back_by_one_matrix() -> None:
    members, images = two(), pictures()
    outs = [member(images) for member in members]
    mean = (outs[0].logits + outs[1].logits) / 2
    plain = zoo.tap(joined(members), image_px=8).eval()(images)
    assert torch.equal(plain.logits, mean)
    assert plain.features is None
    whole = zoo.tap(joined(members, features="concatenated"), image_px=8).eval()
    assert whole.head_name == "head"
    out = whole(images)
    assert torch.equal(out.features, torch.cat([o.features for o in outs], 1))
    exact = torch.stack(
        [
            F.linear(o.features.double(), m.head.weight.double(), m.head.bias.double())
            for o, m in zip(outs, members)
        ]
    ).mean(0)
    torch.testing.assert_close(out.logits.double(), exact, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("features", ["none", "first", "concatenated"])
def test_the_mean_of_probabilities(features: str) -> None:
    members, images = two(), pictures()
    outs = [member(images) for member in members]
    whole = zoo.tap(joined(members, average="probabilities", features=features), image_px=8).eval()
    assert whole.head is None  # the logarithm of a mean is no linear map of anything
    out = whole(images)
    mean = torch.stack([o.logits.double().softmax(1) for o in outs]).mean(0)
    torch.testing.assert_close(out.logits.double().exp(), mean, rtol=1e-5, atol=1e-6)
    wanted = {
        "none": None,
        "first": outs[0].features,
        "concatenated": torch.cat([o.features for o in outs], 1),
    }
    expected = wanted[features]
    assert out.features is None if expected is None else torch.equal(out.features, expected)
    assert whole.feature_dim == (None if expected is None else expected.shape[1])


def test_what_is_no_ensemble_is_one_sentence() -> None:
    one, other = two((5, 6))
    with pytest.raises(ValueError, match=r"know other classes \(resnet8 5, wrn-10-1 6\)"):
        joined([one, other])
    with pytest.raises(ValueError, match="same network with the same weights"):
        joined([one, one])
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5), torch.nn.ReLU())
    with pytest.raises(ValueError, match=r"has no features .*member_features to none"):
        joined([one, zoo.tap(flat, image_px=8)], features="concatenated")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--teacher.members", "[]"], r"teacher\.members has no networks: name two or more"),
        (["--teacher.members", "resnet8"], r"teacher\.members has one network: write it as teacher\.name"),
        (["--teacher.members", "resnet8,lenet5,resnet8"], r"teacher\.members has resnet8 twice"),
        (["--teacher.members", "[{weights: a.th}, resnet8]"], r"teacher\.members\.name has no default"),
        (["--teacher.members", "[{name: a, weight: b}, c]"], r"did you mean teacher\.members\.weights"),
        (["--teacher.members", "[{name: a, mean: nan}, c]"], r"teacher\.members\.mean is 'nan'"),
        (["--teacher.members", "a,b", "--teacher.weights", "c"], r"teacher\.weights does nothing beside"),
        (["--teacher.average", "logits"], r"teacher\.average does nothing without teacher\.members"),
        (
            ["--teacher.average", "votes"],
            r"teacher\.average is 'votes': it takes one of logits, probabilities",
        ),
    ],
)
def test_members_are_read_and_wrong_ones_named(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(words)


def test_members_of_a_command_line_are_those_of_its_file(tmp_path: Path) -> None:
    config = parse(["--teacher.members", "[{name: resnet56_v1, weights: ä b.th, std: 0.5}, resnet20_v1]"])
    assert config.teacher.members is not None
    assert [(one.name, one.weights, one.std) for one in config.teacher.members] == [
        ("resnet56_v1", "ä b.th", (0.5,)),
        ("resnet20_v1", None, None),
    ]
    (tmp_path / "again.yaml").write_text(dump(config), encoding="utf-8")
    assert parse(["--config_path", str(tmp_path / "again.yaml")]) == config


def test_a_missing_file_of_a_member_is_named_before_torch() -> None:
    words = ["--teacher.members", "[{name: lenet5, weights: /no/file.th}, resnet8]"]
    with pytest.raises(FileNotFoundError, match=r"teacher\.members\.weights: there is no file /no/file\.th"):
        parse(words, front=True)
    with pytest.raises(ValueError, match=r"teacher\.members\.weights is missing"):
        parse(["--teacher.members", "lenet5,resnet8"], front=True)
    with pytest.raises(ValueError, match=r"teacher\.members\.name: network 'lennet5' is unknown"):
        parse(["--teacher.members", "lennet5,resnet8"], front=True)


def trained(tmp_path: Path, name: str, members: str, **more: str) -> Path:
    fields = {
        k: v for k, v in LENETS.items() if k not in ("teacher.name", "teacher.weights", "teacher.recipe")
    }
    fields |= {
        "teacher.cache": "fill",
        "teacher.cache_dir": str(tmp_path / "rows"),
        "teacher.members": members,
    }
    fields |= {"teacher.rows": "fp32", "schedule.epochs": "1", "run.max_steps": "2", "run.name": name}
    fields |= {"run.out": str(tmp_path), **{key.replace("__", "."): value for key, value in more.items()}}
    assert main(as_words(fields)) == 0
    return tmp_path / name


@pytest.mark.usefixtures("_digits")
def test_one_row_whose_identity_names_every_member_in_its_order(tmp_path: Path) -> None:
    files = []
    for number, name in enumerate(("lenet5", "lenet5_half")):
        torch.manual_seed(number)
        files.append(tmp_path / f"{name}.safetensors")
        zoo.save_weights(zoo.build(name, num_classes=10, image_px=32), files[-1])
    one, other = (f"{{name: {path.stem}, weights: {path}}}" for path in files)
    run = trained(tmp_path, "first", f"[{one}, {other}]")
    assert json.loads((run / "summary.json").read_text())["teacher"] == "lenet5+lenet5_half"
    (rows,) = [path for path in caches(tmp_path / "rows") if "-val" not in path.name]
    facts = read_identity(rows)
    assert [member["name"] for member in facts["teacher"]["members"]] == ["lenet5", "lenet5_half"]
    assert len({member["weights"] for member in facts["teacher"]["members"]}) == 2
    assert [field["name"] for field in facts["fields"]] == ["features"]
    before = len(caches(tmp_path / "rows"))
    trained(tmp_path, "again", f"[{one}, {other}]", run__max_steps="1")
    assert len(caches(tmp_path / "rows")) == before
    trained(tmp_path, "turned", f"[{other}, {one}]")
    assert len(caches(tmp_path / "rows")) == 2 * before
    trained(tmp_path, "probable", f"[{one}, {other}]", teacher__average="probabilities")
    made = [read_identity(path) for path in caches(tmp_path / "rows") if "-val" not in path.name]
    (newest,) = [facts for facts in made if facts["teacher"]["average"] == "probabilities"]
    assert [field["name"] for field in newest["fields"]] == ["features", "logits"]


@pytest.fixture
def _digits() -> None:
    pytest.importorskip("sklearn")


def test_a_list_of_objects_may_have_features_too(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
    fields = {"data.batch": 16, "run.eval_every": 0, "schedule.warmup_epochs": 0}
    result = compress(
        list(two()),
        "resnet8",
        images,
        "anc",
        epochs=1,
        image_px=8,
        cache=None,
        out=tmp_path / "run",
        fields=fields,
    )
    assert result.metrics["agreement_pct"] >= 0
    log = (tmp_path / "run" / "config.yaml").read_text()
    assert f"object:{Ensemble.__module__}" in log


@pytest.mark.slow
def test_two_real_networks_are_better_than_either(data_root: Path) -> None:
    folder = data_root / "weights"
    files = {"resnet56_v1": "resnet56-4bfd9763.th", "resnet20_v1": "resnet20-12fca82f.th"}
    if not all((folder / file).is_file() for file in files.values()):
        pytest.skip(f"no CIFAR weights under {folder}")
    from fastanc.pipelines.catalogue import open_dataset

    val = open_dataset("cifar10", "val", str(data_root))
    count = 1500
    images = torch.from_numpy(np.ascontiguousarray(val.images[:count])).permute(0, 3, 1, 2)
    members = [zoo.build(n, num_classes=10, weights=folder / f).eval() for n, f in files.items()]
    both = zoo.tap(joined(members, features="concatenated"), image_px=32).eval()
    with torch.no_grad():
        guesses = [net(images).logits.argmax(1).numpy() for net in (*members, both)]
    right = [(guess == val.labels[:count]).sum() for guess in guesses]
    assert right[2] > max(right[:2])
