"""The typed configuration of a run.

Only the entry points read a Config; everything else gets plain values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import draccus

from fastanc.cache.top import TOP
from fastanc.fields import (
    Ahead,
    BelowOne,
    Count,
    Few,
    Fields,
    Images,
    Inside,
    MixAlpha,
    OneOf,
    Padding,
    Pixels,
    Positive,
    Precision,
    Quality,
    Ratio,
    Seed,
    Share,
    Steps,
    Text,
    Threads,
    Tracker,
    Unit,
    Weight,
)
from fastanc.methods.anc import Anc
from fastanc.methods.base import Method
from fastanc.network_fields import NetworkConfig, TeacherConfig, check_idle, free
from fastanc.optimizers import OptimizerConfig
from fastanc.quoting import shown


@dataclass(frozen=True, kw_only=True)
class DataConfig(Fields):
    """Which images, and which views of them."""

    group = "data"

    name: Text = "digits"
    """A data set's name (`fastanc datasets` lists them; run.plugin may register others), or the path of a folder,
    tar, zip, parquet file, list of paths or folder of shards; `data/train-*.parquet` names all shards of a name."""
    root: Text | None = free(None)
    """Folder to look in first; then FASTANC_DATA, then the usual places."""
    val: Text | None = None
    """Another set to validate on, as data.name: its val split, or all of it; nothing is held out of data.name
    then."""
    labels: Text | None = None
    """File of labels for training images that have none, and for validation images that have none."""
    columns: Text | None = None
    """IMAGE,LABEL: what the columns of a list, of parquet or of MDS shards are called, where they do not say it."""
    images: Text | None = None
    """Folder that the paths of a list are relative to; the list's own where none is named."""
    class_map: Text | None = None
    """File that numbers the classes: a JSON list of names or {name: number}, or one name a line; without one they are
    numbered in the order of their sorted names, as torchvision's ImageFolder does, or as the source says."""
    image_px: Pixels = 32
    """Side of the square image a network sees, pixels."""
    resize_px: Pixels = 32
    """Evaluation scales the shorter side to this before the centre crop, pixels."""
    crop: Annotated[str, OneOf(("auto", "resized", "padded"))] = "auto"
    """How training views are cut: resized (a random part, scaled), padded (a window of the image, which is scaled to
    image_px and gets a border of zeros), or auto: padded for sets kept as small arrays, resized for all others."""
    min_scale: Share = 0.6
    """Smallest share of an image's area that a random crop may have (resized crops)."""
    max_ratio: Ratio = 4 / 3
    """Widest shape w / h that a random crop may have, and the tallest h / w (resized crops)."""
    flip: bool = False
    """Mirror half of the views."""
    vflip: bool = False
    """Turn half of the views upside down."""
    looks: Text = "none"
    """How views look: none, jitter[-bB-cC-sS-hH], rand-mM-nN[-mstdS] (RandAugment, M of 30), trivial, three, or the
    name of a plugin's own; applied after the crop, part of what a teacher's cache is kept for."""
    grey: Unit = 0.0
    """Share of the views that lose their colours."""
    erase: Unit = 0.0
    """Share of the views of which a rectangle is erased."""
    erase_fill: Annotated[str, OneOf(("mean", "zero"))] = "mean"
    """What is seen where nothing is left, of an erased rectangle or a turned picture: the set's mean, or black."""
    mix: Annotated[str, OneOf(("none", "mixup", "cutmix", "both"))] = "none"
    """Mix the pictures of each view by pairs: the teacher is asked about the mixed picture, and its row is kept."""
    mix_alpha: MixAlpha = 1.0
    """Of the mixing weight's distribution Beta(alpha, alpha); 1 is uniform."""
    mix_share: Unit = 1.0
    """Share of the pairs that are mixed."""
    smoothing: BelowOne = 0.0
    """Share of a label's weight that is spread over all classes."""
    pad: Padding = 4
    """Zero padding around an image before its random crop, pixels; less than image_px (padded crops)."""
    views: Count = 8
    """Number of different views of every image; epochs repeat them. 0 draws new ones in every epoch."""
    view_seed: Seed = 0
    """Seed of the views; apart from run.seed, so that students of all seeds share one cache."""
    steps_per_epoch: Steps = 50
    """Steps of an epoch where no data set says it: methods that train on latent vectors (datafree)."""
    views_per_image: Few = 1
    """Views of one image in one batch: decode once, crop so many times (JPEG sets)."""
    share: Share = 1.0
    """Share of the training images that are used, the same ones in every run and as many of every class."""
    val_share: Inside = 0.05
    """Share of the training images that is held out where a set has no val split, the same images in every run."""
    batch: Images = 64
    """Images per step over all processes."""
    eval_batch: Images = free(256)
    """Images per evaluation batch over all processes."""
    threads: Threads = free(0)
    """Decoding threads per process; 0 takes what the machine has for each process."""
    prefetch: Ahead = free(2)
    """Batches decoded ahead."""
    decode: Annotated[str, OneOf(("auto", "cpu", "mixed", "mixed_roi", "torchvision"))] = free("auto")
    """Decode plan: auto (the cache's, else measured once and kept), DALI's cpu and, on CUDA, mixed and mixed_roi; or
    torchvision, which needs no DALI and is auto's where DALI is missing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.image_px <= self.resize_px,
            f"data.resize_px ({self.resize_px}) must not be smaller than data.image_px ({self.image_px})",
        )
        _require(
            self.pad < self.image_px or self.crop == "resized",
            f"data.pad ({self.pad}) must be smaller than data.image_px ({self.image_px}), or views are empty",
        )

    @property
    def dressed(self) -> bool:
        """Whether views look otherwise than they were cut."""
        return bool(self.looks != "none" or self.erase or self.grey or self.vflip)

    @property
    def finished(self) -> bool:
        """Whether anything is done to views beside cutting them."""
        return self.dressed or self.mix != "none"


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Fields):
    """How every player's learning rate moves."""

    group = "schedule"

    name: Annotated[str, OneOf(("cosine", "step", "constant"))] = "cosine"
    """cosine (to zero), step (times gamma at each milestone) or constant."""
    epochs: Positive = 10
    """Length of the run."""
    warmup_epochs: Weight = 1.0
    """Linear warm-up from zero."""
    milestones: tuple[Unit, ...] = (0.79,)
    """Where step drops, as shares of the run; the paper's 80k of 101.7k iterations is 0.79."""
    gamma: Unit = 0.1
    """Factor of each drop."""
    extend: Count = 0
    """Epochs by which this run lengthens the finished run run.parent, whose other fields it has."""
    extend_name: Annotated[str, OneOf(("constant", "cosine"))] = "constant"
    """How the learning rates move in them: constant at the other run's last, or a new cosine from the base ones."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Fields):
    """Where a run lives and how it is executed."""

    group = "run"

    name: Text = free("digits-anc")
    """Name of the run's folder."""
    out: Text = free("runs")
    """Folder that holds the runs."""
    plugin: Text | None = None
    """Python file that is imported before the configuration is read: it registers methods, networks or data sets.
    Its whole path is kept, so that the run can go on from any folder."""
    parent: Text | None = None
    """Folder of the finished run that this one lengthens by schedule.extend epochs, from its last checkpoint."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the images and dropout."""
    precision: Precision = "fp32"
    """Arithmetic of the student's passes, trained and evaluated: fp32, or autocast to bf16 or fp16."""
    ema: BelowOne = 0.0
    """Decay of the student's moving average, which is then what is evaluated and kept; 0 keeps the student itself."""
    ema_warmup: bool = False
    """Let that decay grow from 0.1 as (1 + step) / (10 + step), so that an average begins near the student."""
    deterministic: bool = free(False)
    """Only kernels that give the same bits every time, and none that won a race on this device (cuDNN's search):
    slower on CUDA, but a run that was killed and went on is there, too, the same to the last bit."""
    compile: bool = free(False)
    """Compile student and teacher (torch.compile); a failure falls back to eager with one line."""
    compile_mode: Annotated[str, OneOf(("default", "reduce-overhead", "max-autotune"))] = "default"
    """How the student is compiled: default, reduce-overhead (CUDA graphs, where launching kernels takes longer than
    running them: small images, small batches) or max-autotune."""
    kernels: Annotated[str, OneOf(("auto", "plain", "compiled", "captured", "triton"))] = "auto"
    """How the plays are executed: plain, as a method writes them; compiled; captured as CUDA graphs; by Triton's
    kernels; auto takes the fastest that is right, measured once where they cost a minute or more of the run."""
    accumulate: Positive = free(1)
    """Parts into which a process cuts its batch for less memory; each play sums their gradients before it moves."""
    skip_nonfinite: Count = free(0)
    """Updates that may be left out because their loss is not finite; the host then waits for the device in each."""
    max_steps: Count = free(0)
    """Stop after so many steps; 0 runs the whole schedule."""
    log_every: Positive = free(20)
    """Steps between two lines of metrics.jsonl; nothing is read from the device in between."""
    best: Quality | None = free(None)
    """The number of an evaluation by which the best student so far is kept, as best.safetensors; agreement_pct and
    teacher_kl ask the teacher at every evaluation."""
    patience: Count = free(0)
    """Evaluations without a better run.best after which the run ends, as a finished one; 0 goes on."""
    trackers: tuple[Tracker, ...] = free(())
    """Who is told the numbers of metrics.jsonl as well: tensorboard (files in the run's folder), wandb, trackio and
    mlflow, as they are set up on the machine; one that fails is left out."""
    eval_every: Count = free(1)
    """Epochs between two evaluations; 0 evaluates at the end only."""
    checkpoint_every: Count = free(0)
    """Steps between two checkpoints; 0 writes one at the end of every epoch."""
    keep: Positive = free(2)
    """Checkpoints kept."""
    resume: Text = free("never")
    """never refuses a folder that has checkpoints, latest continues, anew starts over, or a checkpoint's path."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.compile or self.compile_mode == "default",
            f"run.compile_mode {self.compile_mode} does nothing alone: set run.compile to true",
        )
        _require(
            self.compile_mode == "default" or self.accumulate == 1,
            f"run.compile_mode {self.compile_mode} replays one CUDA graph, which would overwrite the gradients of the"
            " part before it: set it to default, or run.accumulate to 1",
        )
        _require(
            not self.patience or (self.best is not None and self.eval_every > 0),
            "run.patience counts evaluations without a better run.best: set run.best, e.g. to error_pct, and"
            " run.eval_every to 1 or more",
        )
        _require(
            self.ema > 0 or not self.ema_warmup,
            "run.ema_warmup is of a moving average, and there is none: set run.ema, e.g. to 0.9999",
        )
        _require(
            not self.skip_nonfinite or self.accumulate == 1,
            "run.skip_nonfinite leaves out whole updates: set it to 0, or run.accumulate to 1",
        )
        _require(
            self.name not in (".", "..") and "/" not in self.name and self.name.strip().isprintable(),
            f"run.name {shown(self.name)} is no folder's name: write one without / (run.out says where the runs lie)",
        )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out) / self.name


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    run: RunConfig = field(default_factory=RunConfig)
    """Folder, seed, precision, checkpoints."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and views."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Teacher and cache."""
    student: NetworkConfig = field(default_factory=NetworkConfig)
    """The network that is trained and kept."""
    method: Method = field(default_factory=Anc)
    """The game; `type` chooses it."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The student's optimizer, and every other player's unless the method says otherwise."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Length and learning rates."""

    said: ClassVar[frozenset[str]] = frozenset()
    """Fields that the user's own words set, beside a recipe's, as group.field: one that does nothing is refused."""

    def __post_init__(self) -> None:
        if isinstance(self.method, Method) and type(self.method) is Method:
            raise ValueError("method.type is missing: choose one, e.g. `method: {type: anc}`")
        _require(
            (self.schedule.extend > 0) == (self.run.parent is not None),
            "schedule.extend and run.parent go together: set both, how many epochs and the folder of the finished run"
            " that they lengthen",
        )
        for player, own in self.method.optimizers().items():
            _require(
                own.layer_decay == 1,
                f"the {player}'s optimizer has layer_decay {own.layer_decay:g}, which is of a student's blocks: set"
                " optimizer.layer_decay",
            )
        _require(
            not self.top_rows or self.method.softens_only,
            f"teacher.rows {self.teacher.rows} keeps the most probable classes alone, and method.type"
            f" {self.method.kind} reads more of the teacher: set it to fp16, or take a method that softens the"
            " classes and reads nothing else, such as kd without standardised logits",
        )

    @property
    def top_rows(self) -> bool:
        """Whether the method is taught by rows of the most probable classes."""
        kept = self.teacher.rows in TOP and self.teacher.cache != "off"
        return kept and self.method.needs_teacher and "latents" not in self.method.needs


GROUPS = tuple(one.name for one in fields(Config))
"""The groups of fields, in the order of the class."""


def with_said(config: Config, keys: Iterable[str]) -> Config:
    """Return the configuration, which now knows what the user's own words set; ValueError for one that is idle."""
    said = frozenset(keys)
    check_idle(config.teacher, said)
    object.__setattr__(config, "said", said)  # no field: it is not written down, and compares equal
    return config


def free_fields(config: Config) -> dict[str, frozenset[str]]:
    """Return, for every group of a configuration, the fields that are `free`."""
    return {
        group.name: frozenset(
            one.name for one in fields(getattr(config, group.name)) if one.metadata.get("free")
        )
        for group in fields(config)
    }


def completed(owner: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was once written down of a configuration, or a group of it, with what it is too old to have.

    A field that did not exist yet had the value that is now its default, also in a group within a group.
    """
    found = {one.name: draccus.encode(one.default) for one in fields(owner) if one.default is not MISSING}
    found |= saved
    for one in fields(owner):
        now, old = getattr(owner, one.name), found.get(one.name)
        if is_dataclass(now) and isinstance(old, Mapping):
            found[one.name] = completed(now, old)
        elif isinstance(now, tuple) and isinstance(old, list) and len(now) == len(old):
            found[one.name] = [
                completed(part, was) if is_dataclass(part) and isinstance(was, Mapping) else was
                for part, was in zip(now, old)
            ]
    return found


def _require(good: bool, sentence: str) -> None:
    if not good:
        raise ValueError(sentence)
