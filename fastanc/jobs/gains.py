"""What compression bought: a run's teacher and student side by side on this machine (`fastanc profile RUN`)."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastanc.errors import sentence
from fastanc.files import write_text
from fastanc.jobs.classifier import Classifier
from fastanc.jobs.export import load_student
from fastanc.models.counting import count
from fastanc.models.taps import Tapped, unwrapped
from fastanc.parsing import parse
from fastanc.teacher.frozen import AUTOCAST
from fastanc.training.assemble_networks import sketch
from fastanc.training.folder import PROFILE, SUMMARY

_ROUNDS = 7


def profile_run(
    run: Path,
    *,
    device: str | None = None,
    batches: Sequence[int] = (1, 32),
    threads: int | None = None,
    precision: str = "fp32",
    seconds: float = 4.0,
    plugin: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure a finished run's networks, keep the numbers as profile.json in its folder, and return them.

    The teacher is built by its name without weights, on which no time depends. Both take turns, medians count.

    Args:
        run: its folder.
        device: cpu or cuda; None takes what there is.
        batches: images of a pass, rising; the last one's rate and memory are told.
        threads: of a CPU; None leaves torch's.
        precision: fp32, or autocast to bf16 or fp16.
        seconds: about how long each batch size is measured.
        plugin: Python file that registers the networks, where it is not the one that the run names.
        say: told why the numbers are not kept, where the folder cannot be written.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: there is no such device, or the configuration is not read.
    """
    place = _device(device)
    networks, before = _networks(run, plugin), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        found = _measured(networks, place, batches, precision, seconds)
    finally:
        torch.set_num_threads(before)
    try:
        write_text(run / PROFILE, json.dumps(found, indent=1))
    except OSError as error:  # another user's run: what took minutes to measure is shown all the same
        say(f"note: these numbers are not kept: {sentence(error)}")
    return found


def _measured(
    networks: Mapping[str, Tapped],
    place: torch.device,
    batches: Sequence[int],
    precision: str,
    seconds: float,
) -> dict[str, Any]:
    ready = {
        role: Classifier(network).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for role, network in networks.items()
    }
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "threads": torch.get_num_threads() if place.type == "cpu" else None,
        "precision": precision,
        "torch": torch.__version__,
        "batches": list(batches),
        "networks": {role: _counted(network) for role, network in networks.items()},
    }
    with torch.inference_mode(), torch.autocast(place.type, AUTOCAST[precision], enabled=precision != "fp32"):
        for batch in batches:
            latency = _latencies(ready, _images(networks["student"], batch, place), place, seconds)
            for role, value in latency.items():
                found["networks"][role].setdefault("latency_s", {})[str(batch)] = value
        for role, network in ready.items():
            images = _images(networks["student"], batches[-1], place)
            found["networks"][role]["images_per_s"] = (
                batches[-1] / found["networks"][role]["latency_s"][str(batches[-1])]
            )
            found["networks"][role]["peak_bytes"] = _peak(network, images, place)
    return found


def _networks(run: Path, plugin: str | None) -> dict[str, Tapped]:
    if not (run / SUMMARY).is_file() or not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} has no {SUMMARY} or config.yaml: name the folder of a finished run")
    own = [] if plugin is None else [f"--run.plugin={plugin}"]
    config = parse(
        [f"--config_path={run / 'config.yaml'}", *own]
    )  # and the run's own networks are registered
    student = load_student(run)
    drawn = sketch(config, classes=student.num_classes, channels=student.in_channels)
    teacher = {} if drawn.teacher is None else {"teacher": unwrapped(drawn.teacher)}
    return {**teacher, "student": student}


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here: take --device cpu")
    return torch.device(name)


def _counted(network: Tapped) -> dict[str, Any]:
    counts = count(network)
    state = network.bare.state_dict().values()
    return {
        "name": network.name,
        "parameters": counts.parameters,
        "macs": counts.macs,
        "bytes": sum(value.numel() * value.element_size() for value in state),
    }


def _images(student: Tapped, batch: int, device: torch.device) -> Tensor:
    images = torch.rand(batch, student.in_channels, student.image_px, student.image_px)
    return images.to(device, memory_format=torch.channels_last)


def _latencies(
    networks: Mapping[str, nn.Module], images: Tensor, device: torch.device, seconds: float
) -> dict[str, float]:
    """Median seconds of a pass of each network, which take turns."""
    passes = {role: _passes(network, images, device, seconds) for role, network in networks.items()}
    taken: dict[str, list[float]] = {role: [] for role in networks}
    for _ in range(_ROUNDS):
        for role, network in networks.items():
            began = time.perf_counter()
            for _ in range(passes[role]):
                network(images)
            _settle(device)
            taken[role].append((time.perf_counter() - began) / passes[role])
    return {role: statistics.median(values) for role, values in taken.items()}


def _passes(network: nn.Module, images: Tensor, device: torch.device, seconds: float) -> int:
    """Passes of one turn, so that all turns of two networks take about so long; warms up."""
    network(images)
    _settle(device)
    began = time.perf_counter()
    network(images)
    _settle(device)
    share = seconds / (2 * _ROUNDS)
    return max(1, min(1000, int(share / max(time.perf_counter() - began, 1e-6))))


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(network: nn.Module, images: Tensor, device: torch.device) -> int | None:
    """Bytes that a pass has beside the images at most, its weights included; None where the system does not say."""
    weights = sum(w.numel() * w.element_size() for w in (*network.parameters(), *network.buffers()))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        network(images)
        return torch.cuda.max_memory_allocated(device) - before + weights
    gc.collect()
    try:
        with suppress(OSError, AttributeError):  # what was freed goes back to the system, where it is glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins at what is there now
        before = _status("VmRSS")
        network(images)
        return _status("VmHWM") - before + weights
    except (OSError, KeyError):
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[key].split()[0]) * 1024
