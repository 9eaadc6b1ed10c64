"""Looks: how the pictures of a view look after they were cut, as a pure function of (seed, view, image)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastanc.pipelines import look_ops
from fastanc.pipelines.draws import words_of
from fastanc.pipelines.look_backend import Loops, loops_for
from fastanc.pipelines.look_policies import OPS, Draws, Key, Slot, erased, flipped, greyed, policy_of
from fastanc.pipelines.own_looks import OwnLook, own_look
from fastanc.pipelines.transfer import moved

LOOKS_VERSION = 1
"""Of the policies' rules: a part of the cache's identity."""
_CACHED_PIXELS = 1 << 16
_TRIED, _TRIED_PX = 32, 24

Table = list["Slot | Draws"]
"""What is done to the pictures of a batch, one after the other; Draws are for the look of one's own."""


@dataclass(frozen=True)
class Looks:
    """A policy, and what comes before and after it."""

    policy: str = "none"
    """A name that `look_policies.policy_of` knows, or a registered look's."""
    erase: float = 0.0
    """Share of the views of which a rectangle is erased."""
    fill: tuple[int, ...] = (0, 0, 0)
    """Colour of what is erased, and of what lies beyond a picture's edge."""
    grey: float = 0.0
    """Share of the views without colours."""
    vflip: bool = False
    """Turn half of the views upside down."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.own is None:
            policy_of(self.policy)

    @property
    def own(self) -> OwnLook | None:
        """The registered look, where the policy is one."""
        return own_look(self.policy)

    def draw(self, index: np.ndarray, view: np.ndarray, px: int) -> Table:
        """Return what is done to image numbers [B] in views [B], as pictures of px."""
        key = Key(self.seed, index, view, px)
        policy = None if self.own is not None else policy_of(self.policy)
        return [
            *([flipped(key)] if self.vflip else []),
            *([Draws(key)] if self.own is not None else []),
            *([] if policy is None else policy.slots(key)),
            *([greyed(key, self.grey)] if self.grey else []),
            *([erased(key, self.erase)] if self.erase else []),
        ]

    def apply(self, images: Tensor, table: Table) -> Tensor:
        """Return pictures [B, H, W, C] uint8 as the table says, on their device; the input stays as it is."""
        if not any(isinstance(step, Draws) or step.op.any() for step in table):
            return images
        loops = loops_for(images.device)
        if loops is not None:
            return self._looped(images, table, loops)
        size = len(images)
        if images.device.type == "cpu":
            size = max(1, _CACHED_PIXELS // (images.shape[1] * images.shape[2]))
        parts = [slice(k, k + size) for k in range(0, len(images), size)]
        made = [self._apply(images[rows], [_cut(step, rows) for step in table]) for rows in parts]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _looped(self, images: Tensor, table: Table, loops: Loops) -> Tensor:
        fill = np.array(self.fill, np.uint8)
        work = images.clone(memory_format=torch.contiguous_format)
        for step in table:
            if isinstance(step, Draws):
                planes = self._by_own(work.permute(0, 3, 1, 2).contiguous(), step)
                work = torch.stack(planes.unbind(1), 3)
                continue
            for kind in np.unique(step.op[step.op > 0]).tolist():
                rows = np.flatnonzero(step.op == kind)
                parameters = step.parameters[rows]
                if OPS[kind] == "blur":
                    parameters = look_ops.blur_weights(parameters, *work.shape[1:3])
                loops.ops[OPS[kind]](work.numpy(), rows, parameters, fill)
        return work

    def _apply(self, images: Tensor, table: Table) -> Tensor:
        planes = images.permute(0, 3, 1, 2).contiguous()
        for step in table:
            planes = self._by_own(planes, step) if isinstance(step, Draws) else self._by_ops(planes, step)
        return torch.stack(planes.unbind(1), 3)

    def _by_ops(self, planes: Tensor, slot: Slot) -> Tensor:
        """Pictures that have one operation in common go through it together."""
        kinds = np.unique(slot.op)
        if len(kinds) == 1:
            return self._op(int(kinds[0]))(planes, slot.parameters)
        rows = [np.flatnonzero(slot.op == kind) for kind in kinds]
        made = []
        for kind, mine in zip(kinds.tolist(), rows):
            some = planes.index_select(0, moved(torch.from_numpy(mine), planes.device))
            made.append(self._op(kind)(some, slot.parameters[mine]))
        back = np.argsort(np.concatenate(rows), kind="stable")
        return torch.cat(made).index_select(0, moved(torch.from_numpy(back), planes.device))

    def _op(self, kind: int) -> look_ops.Op:
        name = OPS[kind]
        if name in look_ops.FILLING:
            return lambda planes, parameters: look_ops.FILLING[name](planes, parameters, self.fill)
        return look_ops.PLAIN.get(name, lambda planes, parameters: planes)

    def _by_own(self, planes: Tensor, draws: Draws) -> Tensor:
        assert self.own is not None
        made = self.own.apply(planes, draws)
        if not isinstance(made, Tensor) or made.shape != planes.shape or made.dtype != torch.uint8:
            found = f"{tuple(made.shape)} {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(
                f"the look {self.policy!r} gave {found} for pictures {tuple(planes.shape)} torch.uint8: return the"
                " same shape and type"
            )
        return made.contiguous()

    def describe(self) -> dict[str, object]:
        """Return what fixes the looks, ready for JSON: a part of the cache's identity."""
        return {
            "policy": self.policy,
            "version": LOOKS_VERSION if self.own is None else self.own.version,
            "erase": self.erase,
            "fill": list(self.fill),
            "grey": self.grey,
            "vflip": self.vflip,
            "seed": self.seed,
        }

    def crc(self) -> int:
        """Return the CRC-32 of what becomes of some pictures of noise, so that no change of the code goes unseen.

        A look of one's own is left out, whose bits another machine need not give.
        """
        images, table = self._tried()
        made = self._apply(images, [step for step in table if not isinstance(step, Draws)])
        return zlib.crc32(made.numpy().tobytes())

    def check(self) -> None:
        """Raise ValueError where a look of one's own writes into pictures, or where neighbours change a picture."""
        if self.own is None:
            return
        images, table = self._tried()
        whole = self._apply(images, table)
        planes = images.permute(0, 3, 1, 2).contiguous()
        kept, key = planes.clone(), Key(self.seed, np.arange(_TRIED), np.zeros(_TRIED, np.int64), _TRIED_PX)
        self._by_own(planes, Draws(key))
        alone = torch.cat(
            [
                self._apply(images[k : k + 1], [_cut(step, slice(k, k + 1)) for step in table])
                for k in range(_TRIED)
            ]
        )
        if not torch.equal(kept, planes):
            raise ValueError(
                f"the look {self.policy!r} writes into the pictures that it is given: let it make new ones"
            )
        if not torch.equal(whole, alone):
            raise ValueError(
                f"the look {self.policy!r} makes another picture of an image alone than in a batch, or another every"
                " time: let it depend on the image and its draws alone"
            )

    def _tried(self) -> tuple[Tensor, Table]:
        index, side, channels = np.arange(_TRIED), _TRIED_PX, len(self.fill)
        words = words_of(0, index[:, None], np.zeros(1, np.int64), np.arange(side * side * channels // 4))
        pixels = (
            (words >> np.uint64(24)).astype(np.uint8).transpose(1, 2, 0).reshape(_TRIED, side, side, channels)
        )
        return torch.from_numpy(np.ascontiguousarray(pixels)), self.draw(index, np.zeros_like(index), side)

    def __str__(self) -> str:
        said = [] if self.policy == "none" else [self.policy]
        said += [f"{100 * self.erase:g} % erased"] if self.erase else []
        said += [f"{100 * self.grey:g} % grey"] if self.grey else []
        return ", ".join([*said, *(["half upside down"] if self.vflip else [])])


def _cut(step: Slot | Draws, rows: slice) -> Slot | Draws:
    """A step of some pictures of the batch."""
    if isinstance(step, Draws):
        key = step.key
        return Draws(Key(key.seed, key.index[rows], key.view[rows], key.px))
    return Slot(step.op[rows], step.parameters[rows])
