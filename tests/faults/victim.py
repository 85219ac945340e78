"""Faults in the process of a run: SIGKILL at a given moment, a step that never ends, and a lost interrupt."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from isonet.data.memory import MemoryLoader
from isonet.training import TrainStep


def die_at(kind: str, count: int) -> None:
    """Kill this process at the ``count``-th moment of a kind, counted from 1.

    kind: step (after a training step), validation (before one of its batches), part (in the middle of a write),
    fsync, rename, link (before the system's call), append (before a line of metrics).
    """
    left = count

    def now(this: str) -> bool:
        nonlocal left
        left -= this == kind
        return this == kind and left == 0

    def before(this: str, function):
        def wrapped(*args, **kwargs):
            if now(this):
                _die()
            return function(*args, **kwargs)

        return wrapped

    def step(self, *args, real=TrainStep.__call__, **kwargs):
        output = real(self, *args, **kwargs)
        if now("step"):
            _die()
        return output

    def batches(self, real=MemoryLoader.__iter__):
        for batch in real(self):
            if self.augment is None and now("validation"):
                _die()
            yield batch

    def opened(self, mode="r", *args, real=Path.open, **kwargs):
        if mode == "a" and self.name == "metrics.jsonl" and now("append"):
            _die()
        file = real(self, mode, *args, **kwargs)
        if mode == "xb" and now("part"):
            file.write(os.urandom(5000))  # the part of a write that has reached the disk
            file.flush()
            os.fsync(file.fileno())
            _die()
        return file

    TrainStep.__call__ = step
    MemoryLoader.__iter__ = batches
    os.fsync, os.replace, os.link = before("fsync", os.fsync), before("rename", os.replace), before("link", os.link)
    Path.open = opened


def never_end_a_step() -> None:
    """Make the first training step of this process run forever. The step keeps working."""

    def step(self, *args, real=TrainStep.__call__, **kwargs):
        print("in the step", flush=True)
        while True:
            real(self, *args, **kwargs)

    TrainStep.__call__ = step


class _Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # Python raises the exception here


def swallow_an_interrupt() -> None:
    """Make this process receive SIGINT twice in its first step, the second time in a destructor."""

    def step(self, *args, real=TrainStep.__call__, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        _Swallows()
        while True:
            real(self, *args, **kwargs)

    TrainStep.__call__ = step


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
