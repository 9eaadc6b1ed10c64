"""The names of networks: fastanc's families by pattern, and the libraries' by the text of their sources.

Nothing is imported to judge a name, because torchvision and timm take many seconds; `zoo.build` asks the same rules.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from fastanc.quoting import cut, shown

TORCHVISION, TIMM, HF = "torchvision", "timm", "hf"
HF_UNTRAINED, TIMM_UNTRAINED = "hf_untrained", "timm_untrained"
"""Begin the name of a network that a repository or folder describes, without its weights."""
_TIMM_HUB, _TIMM_FOLDER = "hf-hub:", "local-dir:"
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Units of each stage of ANC's bottleneck ResNets."""
VGG_DEPTHS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of each block of the VGGs for 32 px."""
_DEEPEST, _WIDEST = 1202, 32  # twice and thrice what papers have
_MADE = re.compile(r"^@register_model(?:\(\))?\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_RENAMED = re.compile(r"register_model_deprecations\(__name__, (\{.*?\})\)", re.DOTALL)


class Family(NamedTuple):
    """Names of one kind of network."""

    key: str
    pattern: str
    """Regular expression of the name; its groups are the network's numbers."""
    example: str
    says: str
    check: Callable[[tuple[str, ...]], object] = lambda groups: None
    """Raises ValueError for numbers of which there is no network."""


def blocks_of(depth: int, layers: int) -> int:
    """Return the blocks of each of three stages in a ResNet for 32 px; ValueError for another depth."""
    _require_depth(depth)
    blocks, rest = divmod(depth - 2, 3 * layers)
    if rest or blocks < 1:
        raise ValueError(
            f"a ResNet of depth {depth} does not exist in this family: take a depth of the form {3 * layers}n+2"
        )
    return blocks


def _require_depth(depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"a ResNet of depth {depth} is too deep: take one of up to {_DEEPEST}")


def blocks_of_wide(depth: int, times: int = 1) -> int:
    """Return the blocks of each of three stages in a Wide ResNet; ValueError for another depth, or too many times."""
    _require_depth(depth)
    if times > _WIDEST:
        raise ValueError(f"a Wide ResNet {times} times wider is too wide: take up to {_WIDEST}")
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"a Wide ResNet of depth {depth} does not exist: take a depth of the form 6n+4")
    return blocks


def layers_of_vgg(depth: int) -> tuple[int, ...]:
    """Return the convolutions of each of five blocks in a VGG for 32 px; ValueError for another depth."""
    if depth not in VGG_DEPTHS:
        known = ", ".join(map(str, VGG_DEPTHS))
        raise ValueError(f"a VGG of depth {depth} is unknown: take one of {known}")
    return VGG_DEPTHS[depth]


def units_of(depth: int) -> tuple[int, int, int, int]:
    """Return the units of each of four stages in ANC's bottleneck ResNet; ValueError for another depth."""
    if depth not in DEPTHS:
        known = ", ".join(map(str, DEPTHS))
        raise ValueError(f"a bottleneck ResNet of depth {depth} is unknown: take one of {known}")
    return DEPTHS[depth]


FAMILIES = (
    Family(
        "resnet",
        r"resnet(\d+)",
        "resnet20",
        "ANC's pre-activation ResNet for 32 px, depth 6n+2: 8, 14, 20, 56, 110, 164",
        lambda g: blocks_of(int(g[0]), 2),
    ),
    Family(
        "resnet_v1",
        r"resnet(\d+)_v1",
        "resnet20_v1",
        "post-activation ResNet for 32 px, depth 6n+2; reads akamaster's published weights",
        lambda g: blocks_of(int(g[0]), 2),
    ),
    Family(
        "resnet_bottleneck",
        r"resnet(\d+)_bottleneck",
        "resnet164_bottleneck",
        "KSANC's pre-activation bottleneck ResNet for 32 px, depth 9n+2",
        lambda g: blocks_of(int(g[0]), 3),
    ),
    Family(
        "resnet_8x",
        r"resnet(18|34)_8x",
        "resnet18_8x",
        "torchvision's ResNet with a 3x3 stem for 32 px (DAFL, DFAD): 18, 34",
    ),
    Family(
        "imagenet_resnet",
        r"imagenet_resnet(\d+)",
        "imagenet_resnet18",
        "ANC's bottleneck ResNets for ImageNet: 18 is [2, 2, 2, 2], 50, 101, 152",
        lambda g: units_of(int(g[0])),
    ),
    Family(
        "wrn",
        r"wrn-(\d+)-(\d+)(?:-drop(0?\.\d+))?",
        "wrn-10-4-drop0.3",
        "Wide ResNet of depth 6n+4, times wider, dropout (CAN's have 0.3)",
        lambda g: blocks_of_wide(int(g[0]), int(g[1])),
    ),
    Family(
        "cifar_resnet",
        r"cifar_resnet(\d+)(x4)?",
        "cifar_resnet8x4",
        "the CIFAR-100 comparisons' ResNet, depth 6n+2, x4: four times wider; reads RepDistiller's checkpoints",
        lambda g: blocks_of(int(g[0]), 2),
    ),
    Family(
        "cifar_resnet50",
        r"cifar_resnet50_bottleneck",
        "cifar_resnet50_bottleneck",
        "their ResNet-50 for 32 px (79.34 % on CIFAR-100)",
    ),
    Family(
        "cifar_vgg",
        r"cifar_vgg(\d+)",
        "cifar_vgg8",
        "their VGG for 32 px with BatchNorm: 8, 11, 13, 16, 19",
        lambda g: layers_of_vgg(int(g[0])),
    ),
    Family("cifar_mobilenetv2", "cifar_mobilenetv2", "cifar_mobilenetv2", "their MobileNetV2, half as wide"),
    Family(
        "cifar_shufflenetv1", "cifar_shufflenetv1", "cifar_shufflenetv1", "their ShuffleNet with 3 groups"
    ),
    Family("cifar_shufflenetv2", "cifar_shufflenetv2", "cifar_shufflenetv2", "their ShuffleNetV2 1x"),
    Family("nin", "nin", "nin", "ANC's Network in Network teacher, 1024 features"),
    Family("lenet4", "lenet4", "lenet4", "ANC's LeNet-4 student, 1024 features"),
    Family(
        "lenet5",
        "lenet5(_half)?",
        "lenet5_half",
        "DAFL's LeNet-5 teacher (lenet5) and student (lenet5_half) for 28 or 32 px",
    ),
)


def family_of(name: str) -> tuple[Family, tuple[str, ...]] | None:
    """Return the family of a name with the numbers in it, or None; ValueError for numbers without a network."""
    for family in FAMILIES:
        if match := re.fullmatch(family.pattern, name, re.ASCII):
            family.check(match.groups())
            return family, match.groups()
    return None


def has_published(name: str) -> bool:
    """Tell whether a name asks for published weights: NAME@WEIGHTS, or timm's NAME.TAG."""
    library, _, rest = name.partition(":")
    if library in (HF_UNTRAINED, TIMM_UNTRAINED):
        return False
    described = library == HF or (library == TIMM and described_elsewhere(rest))
    return described or "@" in rest or (library == TIMM and "." in rest)


def described_elsewhere(rest: str) -> bool:
    """Tell whether what follows `timm:` is a repository or a folder (hf-hub:ORG/NAME, local-dir:FOLDER)."""
    return rest.startswith((_TIMM_HUB, _TIMM_FOLDER))


def without_published(name: str) -> str:
    """Return the name of the same network that asks for no weights."""
    if name.startswith(f"{HF}:"):
        return HF_UNTRAINED + name.removeprefix(HF)
    if name.startswith(f"{TIMM}:") and described_elsewhere(name.removeprefix(f"{TIMM}:")):
        return TIMM_UNTRAINED + name.removeprefix(TIMM)
    if name.startswith(f"{TIMM_UNTRAINED}:"):
        return name
    name = name.partition("@")[0]
    return name.partition(".")[0] if name.startswith(f"{TIMM}:") else name


def check_name(name: str, *, may_be_registered: bool = False) -> None:
    """Raise ValueError for a name that no network has; a plugin's, which `may_be_registered`, is left to the zoo."""
    library, colon, rest = name.partition(":")
    if library == TORCHVISION:
        check_torchvision(*_parts(rest))
    elif library == TIMM_UNTRAINED or (library == TIMM and described_elsewhere(rest)):
        _check_timm_place(name, rest)
    elif library == TIMM:
        check_timm(*_parts(rest))
    elif library in (HF, HF_UNTRAINED):
        _check_hub(name, rest)
    elif library != "object" and family_of(name) is None and not may_be_registered:
        raise unknown(name)


def unknown(name: str, registered: tuple[str, ...] = ()) -> ValueError:
    """Return the error for a name that nobody knows."""
    examples = [family.example for family in FAMILIES]
    close = difflib.get_close_matches(name, [*examples, *registered], 1, cutoff=0.7)
    others = [f"{lib}:{name}" for lib in (TORCHVISION, TIMM) if name in _names(lib)]
    hint = f"; did you mean {' or '.join(others or close)}?" if others or close else ""
    known = ", ".join([*examples, "torchvision:NAME[@WEIGHTS]", *registered, "timm:NAME[.TAG]", "hf:NAME"])
    return ValueError(
        f"network {shown(name)} is unknown: take a name like {known}, or name the Python file that registers it"
        f" (--plugin){hint}"
    )


def check_torchvision(name: str, tag: str) -> None:
    """Raise ValueError unless torchvision has a classifier of this name, with these weights if there is a tag."""
    names = _names(TORCHVISION)
    if name not in names:
        close = ", ".join(difflib.get_close_matches(name, names, cutoff=0.3))
        raise ValueError(f"torchvision has no classifier {shown(name)}: take e.g. {close or 'resnet18'}")
    choices = _torchvision_weights(name) if tag else ()
    if tag and choices and tag not in choices:
        raise ValueError(f"torchvision:{name} has no weights {shown(tag)}: take one of {', '.join(choices)}")


def _check_hub(name: str, rest: str) -> None:
    """Raise ValueError unless transformers is installed and the rest is a folder, or the name of a repository."""
    if find_spec("transformers") is None:
        raise ValueError(f"{name} needs transformers: pip install 'fastanc[hf]'")
    if Path(rest).is_dir():
        if not (Path(rest) / "config.json").is_file():
            raise ValueError(f"{name}: the folder has no config.json: name one that save_pretrained wrote")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest):
        raise ValueError(f"{name} is neither a folder that is here nor a name such as hf:microsoft/resnet-18")


def _check_timm_place(name: str, rest: str) -> None:
    """Raise ValueError unless timm is installed and the rest is a repository's name, or a folder that timm wrote."""
    if find_spec("timm") is None:
        raise ValueError(f"{shown(name)} needs timm: pip install timm")
    kind, _, place = rest.partition(":")
    if f"{kind}:" == _TIMM_FOLDER and not (Path(place) / "config.json").is_file():
        raise ValueError(
            f"{shown(name)}: there is no config.json in the folder: name one that timm's save_for_hf wrote"
        )
    if f"{kind}:" == _TIMM_HUB and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", place):
        raise ValueError(f"{shown(name)} is no repository: write it as timm:hf-hub:timm/resnet18.a1_in1k")


def check_timm(name: str, tag: str) -> None:
    """Raise ValueError unless timm is installed and has a network of this name."""
    names = _names(TIMM)
    if not names:
        raise ValueError(f"timm:{name} needs timm: pip install timm")
    if tag not in ("", "pretrained"):
        raise ValueError(
            f"timm:{name}@{cut(tag)} cannot be read: write timm:{name}, timm:{name}@pretrained or timm:NAME.TAG"
        )
    bare, dot, _ = name.partition(".")
    if bare not in names:
        close = ", ".join(difflib.get_close_matches(bare, names, cutoff=0.3))
        raise ValueError(f"timm has no network {shown(name)}: take e.g. {close or 'resnet18'}")


def _parts(rest: str) -> tuple[str, str]:
    name, _, tag = rest.partition("@")
    return name, tag


@cache
def _sources(library: str) -> dict[Path, str]:
    found = find_spec(library)
    if found is None or not found.submodule_search_locations:
        return {}
    folder = Path(found.submodule_search_locations[0]) / "models"
    files = folder.glob("*.py") if library == TORCHVISION else folder.rglob("*.py")
    return {path: path.read_text(encoding="utf-8") for path in sorted(files)}


@cache
def _names(library: str) -> dict[str, Path]:
    """Return every classifier that a library registers, with the file that defines it."""
    found = {}
    for path, text in _sources(library).items():
        found.update(dict.fromkeys(_MADE.findall(text), path))
        for renamed in _RENAMED.findall(text):
            found.update(dict.fromkeys(ast.literal_eval(renamed), path))
    return found


def _torchvision_weights(name: str) -> tuple[str, ...]:
    """Return the members of a classifier's enumeration of weights, () where its source does not say."""
    tree = ast.parse(_sources(TORCHVISION)[_names(TORCHVISION)[name]])
    made = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    says = [n.id for arg in made.args.kwonlyargs for n in ast.walk(arg) if isinstance(n, ast.Name)]
    enum = next((word for word in says if word.endswith("_Weights")), None)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == enum:
            assigned = [n for n in node.body if isinstance(n, ast.Assign)]
            return tuple(t.id for n in assigned for t in n.targets if isinstance(t, ast.Name))
    return ()
