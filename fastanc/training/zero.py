"""The optimizer that DeepSpeed's ZeRO has cut into parts, whole again for a checkpoint.

What is saved is what one process would save, so that a run may go on with another number of processes, another
stage, or without DeepSpeed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def whole_state(zero: Any) -> dict[str, Any]:
    """Return the state dictionary of the torch optimizer inside a ZeRO 1 or 2 optimizer; every process calls it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    inner, groups = zero.optimizer, []
    _link(zero)
    state: dict[int, dict[str, Any]] = {}
    for flat, params, group in zip(_flats(zero), zero.bit16_groups, inner.param_groups, strict=True):
        first = len(state)
        for param in params:
            state[len(state)] = {
                # Adam's count of steps is copied: shared, each parameter would count it up for all of them
                key: safe_get_full_optimizer_state(param, key)
                if _is_cut(value, flat)
                else copy.deepcopy(value)
                for key, value in inner.state[flat].items()
            }
        options = {key: value for key, value in group.items() if key != "params"}
        groups.append({**options, "params": list(range(first, len(state)))})
    return {"state": state, "param_groups": groups}


def take_whole_state(zero: Any, whole: dict[str, Any]) -> None:
    """Cut a state dictionary into this process's part, and take the weights that the network has by now."""
    from deepspeed.utils import safe_set_full_optimizer_state

    inner, number = zero.optimizer, 0
    for flat, params, group, saved in zip(
        _flats(zero), zero.bit16_groups, inner.param_groups, whole["param_groups"], strict=True
    ):
        group.update({key: value for key, value in saved.items() if key != "params"})
        for key, value in whole["state"].get(number, {}).items():
            cut = isinstance(value, Tensor) and value.shape == params[0].shape and value.dim() > 0
            inner.state[flat][key] = torch.zeros_like(flat) if cut else copy.deepcopy(value)
        number += len(params)
    _link(zero)
    for number, param in enumerate(p for params in zero.bit16_groups for p in params):
        for key in param._hp_mapping.get_optim_state_keys() if param._hp_mapping is not None else ():
            value = whole["state"][number][key]
            safe_set_full_optimizer_state(param, value.to(param.device, torch.float32), key)
    zero.refresh_fp32_params()


def _link(zero: Any) -> None:
    """Let every weight find its part of the state; DeepSpeed does so when the first of several groups has moved."""
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def _flats(zero: Any) -> list[Tensor]:
    """Return this process's part of the weights of every group, the only parameters the inner optimizer has."""
    flats: list[Tensor] = zero.single_partition_of_fp32_groups
    return flats


def _is_cut(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape
