"""Which networks a run has: the fields of teacher, its members, and student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastanc.cache.top import TOP
from fastanc.fields import Fields, Length, OneOf, Plain, Precision, Share, Text, Unit, Weight, make

_T = TypeVar("_T")


def free(default: _T) -> _T:
    """Declare a field in which a run may differ from the checkpoint that it continues; every other one is fixed."""
    return field(default=default, metadata={"free": True})


@dataclass(frozen=True, kw_only=True)
class NamedConfig(Fields):
    """What makes one network of a name."""

    name: Text = "resnet8"
    """Own name (`fastanc networks` lists them), torchvision:NAME[@WEIGHTS], timm:NAME[.TAG] or
    hf:NAME, of a folder or a repository of transformers' image classifiers."""
    weights: Text | None = None
    """File of weights (.safetensors, .pt, .pth, .th) or folder of a finished run; none starts from random ones."""
    weights_key: Text | None = None
    """Which state dict of that file, e.g. state_dict_ema or model; none takes the only one, or the moving average."""
    mean: Annotated[tuple[Unit, ...], Length((1, 3))] | None = None
    """Channel means on the 0..1 scale, one a channel or one for all; none takes the file's, the family's or the data
    set's."""
    std: Annotated[tuple[Share, ...], Length((1, 3))] | None = None
    """Channel deviations on the 0..1 scale, likewise."""
    head: Text | None = None
    """Module name of the last linear layer; none finds it."""
    kwargs: dict[str, Plain] | None = None
    """Arguments for what builds the network, e.g. {drop_path_rate: 0.1, img_size: 256} for a network of timm."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(NamedConfig):
    """One network by name."""

    group = "student"

    stages: tuple[Text, ...] = ()
    """Module names of the residual stages, for methods that read them; none takes the family's. `stem` is the map
    that enters the family's first stage."""


@dataclass(frozen=True, kw_only=True)
class MemberConfig(NamedConfig):
    """One of several teachers."""

    group = "teacher.members"
    spelt = "a network's name or {name: NAME, weights: FILE, ...}"

    name: Text = field()
    """As of every network."""

    @classmethod
    def chosen(cls, value: str | Mapping[str, Any], name: str) -> MemberConfig:
        """Return the member of a bare NAME or of `{name: NAME, field: value}`."""
        return make(cls, {"name": value} if isinstance(value, str) else value, f"{name}.")

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name if self.weights is None else f"{self.name} of {self.weights}"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(NetworkConfig):
    """The teacher and its cache."""

    group = "teacher"
    name: Text = "resnet14"
    """As of every network."""
    weights: Text | None = free(None)
    """File of weights; none takes those that the name stands for, the word random allows an untrained teacher (speed
    tests only)."""
    members: tuple[MemberConfig, ...] | None = None
    """Several teachers as one, in the place of name and weights: two or more names, or {name, weights, mean, ...}
    each. They are run once, and what is cached is one row."""
    average: Annotated[str, OneOf(("logits", "probabilities"))] = "logits"
    """What members have the mean of: logits, or probabilities, of which the logarithm is then the logits."""
    member_features: Annotated[str, OneOf(("auto", "concatenated", "first", "none"))] = "auto"
    """Features of several members: concatenated, the first one's, or none; auto is concatenated where the method
    reads features and else none, so that a row is no longer than the logits."""
    estimators: Text | None = free(None)
    """estimators.safetensors of a ksanc_teacher run on these weights; ksanc students need it."""
    headless: bool = False
    """The teacher gives features and knows no classes, and so does the student: its last layer is left out. Names
    whose published weights have none (timm's DINOv2) need not say it."""
    classes: Text | None = None
    """Which of the teacher's classes the set's are: its columns, joined by commas, or a file of its class names."""
    recipe: Text | None = free(None)
    """Recipe that trains the teacher, by this same loop, when the file of weights does not exist."""
    cache: Annotated[str, OneOf(("off", "fill", "read"))] = free("fill")
    """off runs the teacher in every step, fill writes what is missing, read insists on a complete cache."""
    cache_dir: Text = free("cache")
    """Folder that holds caches side by side, each named by its identity."""
    rows: Annotated[str, OneOf(("fp16", "fp32", "uint8", *TOP))] = "fp16"
    """Type of the cached rows: fp16, fp32 or uint8 (with a scale per row); or, for methods that soften the teacher's
    classes and read nothing else, top5, top10, top20: the most probable classes alone, in 24, 44 and 84 bytes."""
    pad_rows: bool = False
    """Cached rows begin on 4096-byte pages, for file systems that lock pages between nodes (Lustre, GPFS)."""
    memory_gib: Weight = free(2.0)
    """Complete cached views are held in memory, the device's if it is CUDA, when they fit into so much (read)."""
    precision: Precision = "fp32"
    """Arithmetic of the teacher's pass: fp32, or autocast to bf16 or fp16."""
    fold: bool = False
    """Fold BatchNorm into the convolutions before the teacher's pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members is None:
            return
        if len(self.members) < 2:
            advice = "write it as teacher.name" if self.members else "name two or more, or leave it out"
            count = "one network" if self.members else "no networks"
            raise ValueError(f"teacher.members has {count}: {advice}")
        for number, member in enumerate(self.members):
            if member in self.members[:number]:
                raise ValueError(f"teacher.members has {member.title} twice: name each once")

    @property
    def title(self) -> str:
        """What summaries and caches call it: its name, or those of its members."""
        return self.name if self.members is None else "+".join(member.name for member in self.members)


def check_idle(teacher: TeacherConfig, said: Iterable[str]) -> None:
    """Raise ValueError for a field of the user's own words that does nothing in this teacher."""
    of_one = ("name", "weights", "weights_key", "mean", "std", "head", "kwargs")
    of_several = ("average", "member_features")
    for name in of_one if teacher.members is not None else of_several:
        # A list of objects, given from Python, may be averaged otherwise, too.
        idle = name in of_one or not teacher.name.startswith("object:")
        if idle and f"teacher.{name}" in said:
            what = (
                "beside teacher.members, which say their own" if name in of_one else "without teacher.members"
            )
            raise ValueError(f"teacher.{name} does nothing {what}: leave it out")
