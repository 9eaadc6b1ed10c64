"""A run that is asked to stop saves itself first: signals, agreed upon by all processes at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator


class Interruption:
    """SIGTERM or SIGUSR1 at any process, noticed by all of them at the same step.

    Alone it is a flag. Several processes sum their flags by an all-reduce on the host that runs beside the next
    step and is read after it, so nothing waits and the device is not asked.
    """

    def __init__(self, accelerator: Accelerator):
        several = accelerator.num_processes > 1
        self._group: Any = torch.distributed.new_group(backend="gloo") if several else None
        self._work: Any = None
        self._sum = torch.zeros(1)
        self._asked = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Catch the signals from here on; only a main thread can, elsewhere they keep their meaning."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Give the signals their former meaning back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def agreed(self) -> bool:
        """Return whether the run ends after this step: the same answer on every process; called once a step."""
        if self._group is None:
            return self._asked
        if self._work is not None:
            self._work.wait()
            if self._sum.item() > 0:
                return True
        self._sum = torch.full((1,), float(self._asked))
        self._work = torch.distributed.all_reduce(self._sum, group=self._group, async_op=True)
        return False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
