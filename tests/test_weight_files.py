"""Files of weights as users bring them: the right tensors are taken and said, or one sentence refuses the file."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import random
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastanc.models.weight_files import read_weights
from fastanc.models.zoo import build, own_classes, register_network, save_weights


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build("resnet8", num_classes=4).bare.state_dict()


RAW, AVERAGE = state(0), state(1)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


@pytest.mark.parametrize("raw", ["state_dict", "model", "params", "net"])
@pytest.mark.parametrize(
    "average", ["state_dict_ema", "model_ema", "ema", "params_ema", "ema_model", "averaged"]
)
def test_the_moving_average_is_taken_and_said_and_the_key_chooses(
    tmp_path: Path, raw: str, average: str
) -> None:
    path = tmp_path / "both.pth"
    torch.save({"epoch": 3, raw: RAW, average: AVERAGE, "optimizer": {"state": {0: RAW}}}, path)
    assert same(read_weights(path).state, AVERAGE)
    assert read_weights(path)[2:] == (average, (raw,))
    assert same(read_weights(path, raw).state, RAW)
    assert build("resnet8", num_classes=4, weights=path).weights_from == (
        f"{path}: {average}, not {raw} (weights_key chooses)"
    )
    with pytest.raises(ValueError, match=rf"no state dict at weights_key best: take one of .*{raw}"):
        read_weights(path, "best")


@pytest.mark.parametrize(
    "keys", [("teacher", "student"), ("generator", "discriminator"), ("model", "state_dict")]
)
def test_several_that_nothing_tells_apart_are_refused_by_name(tmp_path: Path, keys: tuple[str, str]) -> None:
    path = tmp_path / "two.pth"
    torch.save({keys[0]: RAW, keys[1]: AVERAGE}, path)
    with pytest.raises(ValueError, match=f"several state dicts, {', '.join(sorted(keys))}: say which"):
        read_weights(path)
    assert same(read_weights(path, keys[1]).state, AVERAGE)


@pytest.mark.parametrize("key", ["model_state_dict", "net", "network", "weights", "params", "anything"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net._orig_mod.", "_orig_mod.module."])
def test_wrapped_and_prefixed_ones_are_found(tmp_path: Path, key: str, prefix: str) -> None:
    path = tmp_path / "one.pth"
    torch.save(
        {"args": argparse.Namespace(lr=1), "outer": {key: under(prefix, RAW)}, "best": np.float64(3)}, path
    )
    assert same(read_weights(path).state, RAW)


@pytest.mark.parametrize(
    "prefix", ["backbone.", "module.net.backbone.", "net.backbone.", "shadow.", "encoder.0."]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_any_prefix_before_all_of_a_networks_names_is_cut_off(
    tmp_path: Path, prefix: str, suffix: str
) -> None:
    path = tmp_path / f"w{suffix}"
    stored = {**under(prefix, RAW), "criterion.centers": torch.zeros(3)}
    (save_file if suffix == ".safetensors" else torch.save)(stored, path)
    network = build("resnet8", num_classes=4, weights=path)
    assert same(network.bare.state_dict(), RAW)
    assert network.weights_from == f"{path}: {prefix.rstrip('.')}"  # that there is more in it
    assert own_classes("resnet8", path) == 4


@pytest.mark.parametrize(
    ("raw", "average"),
    [("model.", "model_ema."), ("net.", "ema_net.module."), ("model.", "shadow."), ("", "ema.")],
)
def test_of_two_under_prefixes_the_average_is_taken_and_the_key_chooses(
    tmp_path: Path, raw: str, average: str
) -> None:
    path = tmp_path / "w.ckpt"
    counters = {average.split(".")[0] + ".n_averaged": torch.tensor(3)}
    torch.save({"state_dict": {**under(raw, RAW), **under(average, AVERAGE), **counters}}, path)
    if not raw:  # nothing says that what the network's names lead to is not all of them
        with pytest.raises(ValueError, match=r"the network lacks ema\.conv1\.weight"):
            build("resnet8", num_classes=4, weights=path)
        return
    first, second = (f"state_dict.{prefix.rstrip('.')}" for prefix in (average, raw))
    network = build("resnet8", num_classes=4, weights=path)
    assert same(network.bare.state_dict(), AVERAGE)
    assert network.weights_from == f"{path}: {first}, not {second} (weights_key chooses)"
    other = build("resnet8", num_classes=4, weights=path, weights_key=second)
    assert same(other.bare.state_dict(), RAW)


@pytest.mark.parametrize("nested", [True, False])
def test_a_teacher_and_a_student_are_told_apart_by_what_fits_or_by_the_key(
    tmp_path: Path, nested: bool
) -> None:
    def put(**networks: dict[str, torch.Tensor]) -> Path:
        flat = {k: v for name, state in networks.items() for k, v in under(f"{name}.", state).items()}
        torch.save(networks if nested else flat, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    path = put(teacher=AVERAGE, student=RAW)
    with pytest.raises(ValueError, match="several state dicts, student, teacher: say which with weights_key"):
        build("resnet8", num_classes=4, weights=path)
    with pytest.raises(ValueError, match=r"at weights_key best: take one of .*student, teacher"):
        build("resnet8", num_classes=4, weights=path, weights_key="best")
    chosen = build("resnet8", num_classes=4, weights=path, weights_key="student")
    assert same(chosen.bare.state_dict(), RAW)
    for other in (build("resnet14", num_classes=4), build("resnet8", num_classes=9)):
        path = put(teacher=other.bare.state_dict(), student=RAW)
        found = build("resnet8", num_classes=4, weights=path)
        assert same(found.bare.state_dict(), RAW)
        assert found.weights_from.startswith(f"{path}: student")


def test_a_backbone_under_a_prefix_gets_a_new_head(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(under("encoder.", {k: v for k, v in RAW.items() if not k.startswith("fc.")}), path)
    network = build("resnet8", num_classes=9, weights=path, new_head=True)
    assert torch.equal(network.bare.conv1.weight, RAW["conv1.weight"])
    with pytest.raises(ValueError, match=r"does not fit: it lacks conv1\.weight"):
        build("resnet8", num_classes=9, weights=path)


def test_a_prefix_that_is_the_networks_own_stays(tmp_path: Path) -> None:
    class Inner(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images)

    register_network("all_under_model")(Inner)
    torch.save(Inner(4).state_dict(), tmp_path / "own.pth")
    again = build("all_under_model", num_classes=4, weights=tmp_path / "own.pth")
    saved = torch.load(tmp_path / "own.pth", weights_only=True)
    assert same(again.bare.state_dict(), saved)


class Settings(dict):  # type: ignore[type-arg]
    """As easydict, OmegaConf and the like keep them."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(a=Path("x")),
        np.float32(1.5),
        np.arange(3),
        Path("/x"),
        Settings(a=1),
        {collections.Counter},
    ],
)
def test_what_lies_beside_the_weights_is_not_in_the_way(tmp_path: Path, beside: object, zipped: bool) -> None:
    torch.save({"model": RAW, "beside": beside}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert same(read_weights(tmp_path / "x.pth").state, RAW)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_fit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in RAW.items()},
        p := tmp_path / "h.pt",
    )
    network = build("resnet8", num_classes=4, weights=p)
    assert torch.equal(network.bare.conv1.weight, RAW["conv1.weight"].to(dtype).float())


def quantised(weight: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")  # of torch, when it makes them
@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (
            lambda w: (w * 100).to(torch.int8),
            "is int8 in the file and float32 in the network: save it as float32",
        ),
        (lambda w: w.long(), "is int64 in the file and float32"),
        (lambda w: w > 0, "is bool in the file and float32"),
        (lambda w: w.to(torch.complex64), "is complex64 in the file and float32"),
        (lambda w: w.to(torch.float8_e4m3fn), "is float8_e4m3fn in the file and float32"),
        (lambda w: w.to_sparse(), "is sparse_coo and no plain tensor: save it dense"),
        (lambda w: w.reshape(len(w), -1).to_sparse_csr(), "is sparse_csr and no plain tensor"),
        (quantised, "is quantised and no plain tensor"),
        (lambda w: w.to("meta"), "is without values and no plain tensor"),
    ],
)
@pytest.mark.parametrize("key", ["layer2.0.conv1.weight", "layer1.0.bn1.running_var"])
def test_a_tensor_that_is_no_plain_float_is_named(
    tmp_path: Path, turn: Callable[[torch.Tensor], torch.Tensor], said: str, key: str
) -> None:
    torch.save({**RAW, key: turn(RAW[key])}, path := tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth: {key} {said}") as refused:
        build("resnet8", num_classes=4, weights=path)
    assert "\n" not in str(refused.value)


def test_whole_numbers_stay_whole_and_halved_ones_are_read(tmp_path: Path) -> None:
    key = "layer1.0.bn1.num_batches_tracked"
    for value in (torch.tensor(7), torch.tensor(7, dtype=torch.int32), torch.tensor(7).half()):
        torch.save({**RAW, key: value}, tmp_path / "w.pth")
        network = build("resnet8", num_classes=4, weights=tmp_path / "w.pth")
        assert network.bare.state_dict()[key] == 7


def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    save_file(RAW, tmp_path / "a.pth")
    torch.save(RAW, tmp_path / "b.safetensors")
    assert same(read_weights(tmp_path / "a.pth").state, RAW)
    assert same(read_weights(tmp_path / "b.safetensors").state, RAW)


def test_the_folder_of_a_run_means_its_student(tmp_path: Path) -> None:
    network = build("resnet8", num_classes=4)
    save_weights(network, tmp_path / "student.safetensors")
    assert same(read_weights(tmp_path).state, network.bare.state_dict())


def strange(folder: Path) -> dict[str, str]:
    """Write files that are no weights; return what is said of each."""
    network = nn.Sequential(nn.Linear(3, 4))
    torch.save(network, folder / "whole.pth")
    torch.jit.save(torch.jit.script(network), folder / "script.pth")
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3),)), folder / "program.pt2")
    with zipfile.ZipFile(folder / "zip.pth", "w") as archive:
        archive.writestr("readme.txt", "x")
    with tarfile.open(folder / "tar.pth", "w") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    (folder / "lfs.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    (folder / "page.pth").write_bytes(b"\n<!DOCTYPE html><html></html>")
    (folder / "empty.pth").touch()
    (folder / "gz.pth").write_bytes(b"\x1f\x8b\x08\x00rest")
    (folder / "net.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    torch.save({"epoch": 3, "optimizer": {"a": torch.ones(1)}}, folder / "none.pth")
    torch.save({"epoch": 3, "net": network}, folder / "module.pth")
    torch.save({"best": np.float64(1), "model": {"a": np.ones(2), "b": np.ones(3)}}, folder / "arrays.pth")
    torch.save({"a": np.ones(2)}, folder / "array.pth")
    torch.save([torch.ones(2)], folder / "list.pth")
    return {
        "whole.pth": r"state_dict\(\), 'weights.pth'\)",
        "script.pth": r"TorchScript program: .*torch\.jit\.load",
        "program.pt2": r"torch\.export: .*torch\.export\.load",
        "zip.pth": "zip of something else",
        "tar.pth": "is a tar: unpack",
        "lfs.pth": "git lfs pull",
        "page.pth": "web page",
        "empty.pth": "is empty",
        "gz.pth": "gzip",
        "net.onnx": "ONNX",
        "none.pth": r"no state dict but epoch \(int\), optimizer \(dict of Tensor\): save",
        "module.pth": r"no state dict but .*net \(torch.nn.modules.container.Sequential\)",
        "arrays.pth": r"no state dict but best .*model \(dict of numpy array\): .*torch\.as_tensor",
        "array.pth": r"no state dict but a \(numpy array\): .*torch\.as_tensor",
        "list.pth": "holds list and no state dict",
    }


def test_what_holds_no_weights_says_what_it_is_and_what_to_do(tmp_path: Path) -> None:
    for name, sentence in strange(tmp_path).items():
        with pytest.raises(ValueError, match=sentence) as refused:
            read_weights(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_anywhere_ends_in_a_sentence(tmp_path: Path, kind: str) -> None:
    tensors, path = {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}, tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(
            {"state_dict": tensors, "args": argparse.Namespace(a=1)},
            path,
            _use_new_zipfile_serialization=kind == "zip",
        )
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for k in range(300):
        data = bytearray(whole)
        if k % 3:
            for _ in range(1 + k % 4):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            del data[draw.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            read_weights(path)
        except ValueError as error:
            refused += str(path) in str(error)
    assert refused > 100


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_refused_with_what_reads_it(tmp_path: Path, protocol: int, arrays: bool) -> None:
    path = tmp_path / "bare.pth"
    path.write_bytes(pickle.dumps({k: v.numpy() if arrays else v for k, v in RAW.items()}, protocol))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="bare.pth is a bare pickle") as refused:
            read_weights(path)
    exec(
        re.search(r"torch\.save\(.*", str(refused.value))[0].replace("'weights.pth'", "again"),
        {  # type: ignore[index]
            "torch": torch,
            "pickle": pickle,
            "again": tmp_path / "again.pth",
        },
    )
    if not arrays:
        assert same(read_weights(tmp_path / "again.pth").state, RAW)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_of_torch_save_are_read_or_refused_quietly(
    tmp_path: Path, protocol: int, zipped: bool
) -> None:
    path = tmp_path / "w.pth"
    torch.save(RAW, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if protocol == 3:
            assert same(read_weights(path).state, RAW)
            return
        with pytest.raises(
            ValueError, match=rf"w\.pth was saved with pickle_protocol {protocol}, .* write it again"
        ):
            read_weights(path)


def deflated(path: Path) -> None:
    """Write a zip again with its members compressed, as an archiver does."""
    with zipfile.ZipFile(path) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members:
            new.writestr(name, data)


@pytest.mark.parametrize("packed", [False, True])
def test_a_flipped_byte_in_any_member_of_a_zip_is_refused(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": RAW, "epoch": 1}, path)
    if packed:
        deflated(path)
    assert same(read_weights(path).state, RAW)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.file_size > 1000]
    assert len(members) > 5
    for info in members:
        # of the header in front of the data, which has another length than the directory's
        lengths = (int.from_bytes(whole[info.header_offset + k :][:2], "little") for k in (26, 28))
        begin = info.header_offset + 30 + sum(lengths)
        data = bytearray(whole)
        data[begin + info.compress_size // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"w\.pth is damaged in "):
            read_weights(path)


def test_a_zip_that_was_written_without_crcs_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(RAW, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "w.pth") as archive, pytest.raises(zipfile.BadZipFile):
        archive.read("w/data.pkl")
    assert same(read_weights(tmp_path / "w.pth").state, RAW)


def test_nothing_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __init__(self, call: object, *args: object) -> None:
            self.made = call, args

        def __reduce__(self) -> object:
            return self.made

    witness = tmp_path / "executed"
    for k, trap in enumerate(
        [
            Trap(os.mkdir, str(witness)),
            Trap(exec, f"open({str(witness)!r}, 'w')"),
            Trap(open, str(witness), "w"),
        ]
    ):
        for zipped in (True, False):
            torch.save(
                {"model": RAW, "args": trap},
                path := tmp_path / f"{k}.pth",
                _use_new_zipfile_serialization=zipped,
            )
            try:
                assert same(read_weights(path).state, RAW)
            except ValueError as error:
                assert "does not execute" in str(error)  # noqa: PT017
            assert not witness.exists()
