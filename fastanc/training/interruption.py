"""A run that is asked to stop saves itself first: signals, agreed upon by all processes at the same step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

_NOTE = b"\nnote: the run ends and saves itself after this step; a second Ctrl-C ends it at once\n"


class Interruption:
    """SIGTERM, SIGUSR1 or SIGINT (Ctrl-C) at any process, noticed by all of them at the same step.

    A second Ctrl-C means what it meant before: KeyboardInterrupt, where it finds the process.
    Alone it is a flag. Several processes sum their flags by an all-reduce on the host that runs beside the next
    step and is read after it, so nothing waits and the device is not asked.
    """

    def __init__(self, accelerator: Accelerator):
        several = accelerator.num_processes > 1
        self._group: Any = torch.distributed.new_group(backend="gloo") if several else None
        self._work: Any = None
        self._sum = torch.zeros(1)
        self._asked, self._is_main = False, accelerator.is_main_process
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Catch the signals from here on; only a main thread can, elsewhere they keep their meaning."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                # A shell starts what it puts into the background with SIGINT ignored: so it stays.
                if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Give the signals their former meaning back."""
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not Python's
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
        if number == signal.SIGINT:
            signal.signal(number, self._before[number] or signal.default_int_handler)
            if self._is_main:
                os.write(2, _NOTE)  # not print: the signal may have come in the middle of one
        self._asked = True
