"""Runs train.py, and kills its own process with SIGKILL at one moment: ``victim.py KIND COUNT <train.py's arguments>``.

KIND: step (after a training step), validation (before a batch of it), part (a write is half done), fsync,
rename, link (before the system's call), append (before a line of metrics). COUNT: at which one, from 1.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import isonet.training.trainer
import train
from isonet.data.memory import MemoryLoader
from isonet.errors import run_cli
from isonet.files import storage
from isonet.training.step import TrainStep

kind, left = sys.argv[1], int(sys.argv[2])


def die_now(this: str) -> bool:
    global left
    left -= this == kind
    return this == kind and left == 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(this: str, function):
    def wrapped(*args, **kwargs):
        if die_now(this):
            die()
        return function(*args, **kwargs)

    return wrapped


def step(self, *args, real=TrainStep.__call__):
    output = real(self, *args)
    if die_now("step"):
        die()
    return output


def batches(self, real=MemoryLoader.__iter__):
    for batch in real(self):
        if self.augment is None and die_now("validation"):
            die()
        yield batch


def opened(handle, mode, real=os.fdopen):
    file = real(handle, mode)
    if not die_now("part"):
        return file
    os.write(handle, os.urandom(5000))  # as much of a write as had reached the disk
    os.fsync(handle)
    die()


TrainStep.__call__ = step
MemoryLoader.__iter__ = batches
os.fdopen = opened
os.fsync, os.replace, os.link = before("fsync", os.fsync), before("rename", os.replace), before("link", os.link)
isonet.training.trainer.append_line = before("append", storage.append_line)

sys.exit(run_cli(train.main, train.parse_args(sys.argv[3:])))
