"""Classify image files by the network beside this file: python predict.py IMAGE ...

It needs Pillow, NumPy and either onnxruntime or torch. The pixels are those that the network was judged on: to the
bit where torch is there to resize them, else to one level of 255. EXIF's orientation is not applied, as it was not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent
LONGEST = 8  # of an image's shorter side: the resize of a longer strip would be huge, so it is cut first

Program = Callable[[np.ndarray], np.ndarray]


def read_image(path: str, says: dict[str, Any]) -> np.ndarray:
    """Return the pixels [C, S, S] of a file, float32 0..1, as the network was judged on them."""
    with Image.open(path) as file:
        if file.mode[0] in "IF":  # Pillow would cut them off at 255, and training reads none
            raise ValueError("its pixels have more than 8 bits: save it with 8")
        image = file.convert(says["channels"])
    side, shorter = says["image_px"], min(image.size)
    size = [says["resize_px"] * length // shorter for length in image.size]
    corner = [round((length - side) / 2) for length in size]
    if max(image.size) > LONGEST * shorter:
        box = [
            _edges(at * length / whole, (at + side) * length / whole, length)
            for at, whole, length in zip(corner, size, image.size)
        ]
        image = image.crop((box[0][0], box[1][0], box[0][1], box[1][1]))
        size, corner = [side, side], [0, 0]
    pixels = _resized(image, size[0], size[1])
    pixels = pixels[corner[1] : corner[1] + side, corner[0] : corner[0] + side]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def _edges(near: float, far: float, length: int) -> tuple[int, int]:
    """The whole edges nearest to real ones, over all points between them."""
    best, least = (math.floor(near), min(math.ceil(far), length)), math.inf
    for first in (math.floor(near), math.ceil(near)):
        for last in (math.ceil(far), math.floor(far)):
            a, b = first - near, last - far
            if first < last <= length and a * a + a * b + b * b < least:
                best, least = (first, last), a * a + a * b + b * b
    return best


def _resized(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Pixels [height, width, C] uint8, bilinear with antialiasing."""
    if importlib.util.find_spec("torch") is None:
        found = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        return found.reshape(height, width, -1)
    import torch

    pixels = np.array(image).reshape(image.height, image.width, -1)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _by_onnxruntime(path: Path, says: dict[str, Any]) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"images": images})[0])


def _by_torch(path: Path, says: dict[str, Any]) -> Program:
    import torch

    network = torch.export.load(path).module()

    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(network(torch.from_numpy(images)).numpy())

    return run


def _by_library(path: Path, says: dict[str, Any]) -> Program:
    import torch
    from safetensors.torch import load_file

    asked = says["network"]
    if asked["library"] == "timm":
        import timm

        network = timm.create_model(asked["name"], **asked["arguments"])
    else:
        import torchvision

        network = torchvision.models.get_model(asked["name"], **asked["arguments"])
    network.load_state_dict(load_file(path))
    network.eval()
    mean, std = (torch.tensor(says[key]).view(-1, 1, 1) for key in ("mean", "std"))

    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(network((torch.from_numpy(images) - mean) / std).numpy())

    return run


_READERS = {".onnx": _by_onnxruntime, ".pt2": _by_torch, ".safetensors": _by_library}


def open_program(says: dict[str, Any], name: str | None = None) -> Program:
    """Return images [B, C, S, S] -> logits [B, K] of the named file, or of the first that can be run here."""
    files = list(says["programs"])
    if name is not None and name not in files:
        sys.exit(f"--program {name} is none of this folder's: take {', '.join(files)}")
    missing = set()
    for file in [name] if name is not None else says["first"]:
        if not (FOLDER / file).is_file():
            missing.add(file)
            continue
        try:
            return _READERS[Path(file).suffix](FOLDER / file, says)
        except ImportError as error:
            missing.add(str(error.name))
    sys.exit(f"{FOLDER} cannot be run without {' or '.join(sorted(missing))}: have one of them")


def main(words: Sequence[str] | None = None) -> int:
    """Print the five most probable classes of every image; return 2 where one could not be read."""
    parser = argparse.ArgumentParser(description="Classify image files by the network beside this file.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--program", help="a file of this folder, such as student_int8.onnx")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each image")
    options = parser.parse_args(words)
    try:
        says = json.loads((FOLDER / "preprocess.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{FOLDER / 'preprocess.json'} cannot be read ({error}): export the run again")
    if says.get("unfinished"):
        sys.exit(f"{FOLDER} was not written to its end: run `fastanc export` on it again")
    run = open_program(says, options.program)
    names: list[str | None] = [None] * says["classes"]
    if says["class_names"]:
        names = (FOLDER / says["class_names"]).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    status = 0
    for path in options.images:
        try:
            images = read_image(path, says)[None]
        except Exception as error:  # whatever a decoder makes of a broken file: the others are read
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            status = 2
            continue
        logits = run(images)[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-logits, kind="stable")[:5].tolist()
        if options.json:
            top = [{"class": k, "name": names[k], "probability": float(shares[k])} for k in best]
            print(json.dumps({"image": path, "top": top}))
        else:
            print("\n".join([path, *(f"  {shares[k]:.4f}  {k:4d}  {names[k] or ''}".rstrip() for k in best)]))
    return status


if __name__ == "__main__":
    sys.exit(main())
