"""The zoo: names, weight files, normalisation rules, digests."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastanc.models.taps import Adapted, Tapped
from fastanc.models.zoo import (
    build,
    describe_names,
    head_digest,
    load_weights,
    save_weights,
    tap,
    weights_digest,
)
from fastanc.parsing import parse
from fastanc.training.assemble_networks import sketch

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
X = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.mark.parametrize("name", [name for name, _ in describe_names() if ":" not in name])
def test_every_example_name_builds_and_runs(name: str) -> None:
    network = build(name, num_classes=7, stages="auto").eval()
    out = network(X)
    assert out.logits.shape == (2, 7)
    assert out.features.shape == (2, network.feature_dim)
    assert len(out.stages) == len(network.stage_names) >= 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "depth 19 does not exist in this family: take a depth of the form 6n"),
        ("wrn-12-4", "depth 12 does not exist: take a depth of the form 6n"),
        ("imagenet_resnet34", "depth 34 is unknown: take one of 18, 50"),
        ("resnet", "network 'resnet' is unknown: take a name like resnet20"),
        ("torchvision:resnet17", "no classifier 'resnet17': take e.g. resnet18"),
        ("torchvision:resnet18@V9", "has no weights 'V9': take one of IMAGENET1K_V1"),
        ("torchvision:resnet18@IMAGENET1K_V1", "know 1000 classes and the data set has 10: ask for a new"),
    ],
)
def test_a_wrong_name_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(name, num_classes=10)
    assert "\n" not in str(caught.value)


def test_torchvision_by_name_is_torchvisions_own_network() -> None:
    network = build("torchvision:resnet18", num_classes=5).eval()
    bare = torchvision.models.resnet18(num_classes=5).eval()
    bare.load_state_dict(network.bare.state_dict())
    assert torch.equal(bare(network.normalise(X)), network(X).logits)
    grey = build("torchvision:resnet18", num_classes=5, in_channels=1)
    assert grey(X[:, :1]).logits.shape == (2, 5)


def _served(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **k: dict(state))
    monkeypatch.setattr("fastanc.models.libraries.answers", lambda url: True)
    return state


def test_published_weights_bring_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _served(monkeypatch)
    name = "torchvision:resnet18@IMAGENET1K_V1"
    network = build(name, num_classes=1000, default_mean=(0.1,) * 3, default_std=(0.2,) * 3)
    assert torch.equal(network.head.weight, state["fc.weight"])
    assert (network.mean, network.std) == IMAGENET
    assert build(name, num_classes=1000, mean=(0.4,) * 3).mean == (0.4,) * 3
    fresh = build(name, num_classes=10, new_head=True)
    assert fresh(X).logits.shape == (2, 10)
    assert torch.equal(fresh.bare.conv1.weight, state["conv1.weight"])


def test_weights_out_of_reach_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("fastanc.models.libraries.answers", lambda url: True)
    with pytest.raises(
        FileNotFoundError, match="IMAGENET1K_V1 of torchvision:resnet18 are not in .*checkpoi"
    ):
        build("torchvision:resnet18@IMAGENET1K_V1", num_classes=1000)


def test_timm_by_name() -> None:
    timm = pytest.importorskip("timm")
    network = build("timm:resnet18", num_classes=5, in_channels=1, stages="auto").eval()
    bare = timm.create_model("resnet18", num_classes=5, in_chans=1).eval()
    bare.load_state_dict(network.bare.state_dict())
    x = X[:, :1]
    assert torch.equal(bare(network.normalise(x)), network(x).logits)
    assert network.stage_channels() == (64, 128, 256, 512)
    with pytest.raises(ValueError, match="know 1000 classes and the data set has 5"):
        build("timm:resnet18.a1_in1k@pretrained", num_classes=5)
    with pytest.raises(ValueError, match=r"timm:resnet18\.foo cannot be read: .*tag"):
        build("timm:resnet18.foo", num_classes=5)
    with pytest.raises(ValueError, match="timm has no network 'resnet51'"):
        build("timm:resnet51", num_classes=5)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "bare.", "student.bare.", "network.", "network.network.", "_orig_mod.module."]
)
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weight_files_of_every_kind_load(tmp_path: Path, prefix: str, wrap: str | None, suffix: str) -> None:
    network = build("resnet8_v1", num_classes=4)
    state = {prefix + key: value for key, value in network.bare.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    again = build("resnet8_v1", num_classes=4, weights=path)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters()))


def test_a_file_of_another_network_names_the_first_differences(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_weights(build("resnet8", num_classes=4), path)
    with pytest.raises(
        ValueError, match=r"other.safetensors does not fit: it lacks layer1.1.bn1.weight, .* and"
    ):
        build("resnet14", num_classes=4, weights=path)
    with pytest.raises(ValueError, match=r"fc.weight is \[4, 64\] in the file and \[9, 64\] in the network"):
        build("resnet8", num_classes=9, weights=path)
    fresh = build("resnet8", num_classes=9, weights=path, new_head=True)
    assert torch.equal(fresh.bare.conv1.weight, load_file(path)["conv1.weight"])
    assert fresh.num_classes == 9


# Of these torch.load makes UnpicklingError, KeyError, IndexError, RuntimeError and EOFError.
STRANGE = [bytes(99), b"\x80\x02h\x05.", b"\x80\x02R.", b"\x80\x02}u.", b"PK\x03\x04" + b"\xff" * 99, b"\x80"]


def test_metadata_that_says_nonsense_is_one_sentence(tmp_path: Path) -> None:
    network = build("resnet8", num_classes=4)
    path = tmp_path / "student.safetensors"
    save_weights(network, path)
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    for key in ("num_classes", "mean"):
        for other in ({k: v for k, v in said.items() if k != key}, {**said, key: "0.5, 0.5"}):
            save_file(network.bare.state_dict(), path, other)
            with pytest.raises(ValueError, match=r"student\.safetensors is damaged: fetch or write it again"):
                load_weights(path)
    with pytest.raises(ValueError, match=r"student\.safetensors is damaged"):
        build("resnet8", num_classes=4, weights=path)


def test_a_missing_damaged_or_executable_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.pt does not exist"):
        build("resnet8", num_classes=4, weights=tmp_path / "none.pt")
    witness = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(witness),)

    trap = tmp_path / "trap.pth"
    torch.save({"state_dict": Trap()}, trap)
    (tmp_path / "raw.th").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    strange = {f"strange{k}.pt": data for k, data in enumerate(STRANGE)}
    for name, data in strange.items():
        (tmp_path / name).write_bytes(data)
    for name in ("trap.pth", "raw.th", "cut.safetensors", "empty.pt", "epoch.pt", *strange):
        with pytest.raises(ValueError, match=name):
            build("resnet8", num_classes=4, weights=tmp_path / name)
    assert not witness.exists()


def test_normalisation_rules_in_their_order(tmp_path: Path) -> None:
    bare, told = tmp_path / "bare.pt", tmp_path / "told.safetensors"
    network = build("resnet8_v1", num_classes=4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    torch.save(network.bare.state_dict(), bare)
    save_weights(network, told)

    def mean_of(weights: Path | None, name: str = "resnet8_v1", **kwargs: object) -> tuple[float, ...]:
        return build(name, num_classes=4, weights=weights, **kwargs).mean  # type: ignore[arg-type]

    default = {"default_mean": (0.7, 0.7, 0.7), "default_std": (0.3, 0.3, 0.3)}
    assert mean_of(told, mean=(0.9, 0.9, 0.9), **default) == (0.9, 0.9, 0.9)
    assert mean_of(told, **default) == (0.1, 0.2, 0.3)
    assert mean_of(bare, **default) == IMAGENET[0]
    assert mean_of(None, **default) == (0.7, 0.7, 0.7)
    assert mean_of(None) == (0.5, 0.5, 0.5)


def test_saved_weights_build_the_network_again_and_drop_the_adapter(tmp_path: Path) -> None:
    student = build("resnet8", num_classes=4, image_px=24, mean=(0.1, 0.2, 0.3), stages="auto").eval()
    path = tmp_path / "student.safetensors"
    save_weights(Adapted(student, 99).to(memory_format=torch.channels_last), path)
    assert set(load_file(path)) == set(student.bare.state_dict())
    again = load_weights(path, stages="auto").eval()
    assert weights_digest(again) == weights_digest(student)
    torch.testing.assert_close(again(X).logits, student(X).logits)
    assert (again.name, again.image_px, again.mean) == ("resnet8", 24, (0.1, 0.2, 0.3))
    save_file({"a": torch.zeros(1)}, tmp_path / "nameless.safetensors")
    with pytest.raises(ValueError, match="does not name its network"):
        load_weights(tmp_path / "nameless.safetensors")


def test_published_weights_saved_are_read_without_fetching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _served(monkeypatch)
    path = tmp_path / "teacher.safetensors"
    name = "torchvision:resnet18@IMAGENET1K_V1"
    teacher = build(name, num_classes=1000)
    save_weights(teacher, path)
    for place in ("torchvision.models._api.load_state_dict_from_url", "fastanc.models.libraries.answers"):
        monkeypatch.setattr(place, None)
    again = load_weights(path)
    assert (again.name, again.mean) == (name, IMAGENET[0])
    assert weights_digest(again) == weights_digest(teacher)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    save_weights(build("resnet8", num_classes=4), path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save_weights(build("resnet8", num_classes=4), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_digests_tell_weights_normalisation_and_head_apart() -> None:
    network = build("resnet8", num_classes=4)

    def twin(**kwargs: object) -> Tapped:
        other = build("resnet8", num_classes=4, **kwargs)  # type: ignore[arg-type]
        other.load_state_dict(network.state_dict())
        return other

    same = twin().to(memory_format=torch.channels_last)
    assert weights_digest(same) == weights_digest(network)
    assert weights_digest(twin(mean=(0.1, 0.2, 0.3))) != weights_digest(network)
    other = twin()
    with torch.no_grad():
        other.bare.bn.running_mean[0] += 1e-6
    assert weights_digest(other) != weights_digest(network)
    assert head_digest(other) == head_digest(network)
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    assert head_digest(other) != head_digest(network)
    assert weights_digest(network.bfloat16()) != weights_digest(same)
    assert head_digest(build("torchvision:squeezenet1_1", num_classes=4)) is None


def test_a_mean_has_a_value_for_each_channel_or_one_for_all() -> None:
    """The values are those that a subtraction done by hand needs; any other number of them is refused by name."""
    one = build("lenet5", num_classes=4, in_channels=3, mean=(0.4,), std=(0.2,))
    assert (one.mean, one.std) == ((0.4,) * 3, (0.2,) * 3)
    image = torch.rand(2, 3, 32, 32)
    expected = one.eval().bare((image - 0.4) / 0.2)
    torch.testing.assert_close(one(image).logits, expected)
    for channels, mean, told in (
        (3, (0.1, 0.2), "have 3 channels: give 1 or 3 values"),
        (1, (0.1, 0.2, 0.3), "have 1 channel: give 1 value"),
    ):
        with pytest.raises(ValueError, match=rf"mean of lenet5 is \(0\.1, 0\.2.*, but the images {told}"):
            build("lenet5", num_classes=4, in_channels=channels, mean=mean)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 64, 4))
        with pytest.raises(ValueError, match=f"std of object:.*Sequential.*{told}"):
            tap(net, image_px=8, in_channels=channels, std=mean)
    with pytest.raises(
        ValueError, match=r"student\.mean is \(0\.1, 0\.2, 0\.3\), but the images have 1 channel"
    ):
        sketch(parse(["--student.mean", "0.1,0.2,0.3"]), classes=10, channels=1)
