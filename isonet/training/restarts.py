"""A launcher that starts a run again: torchrun repeats its command after a failure, and when machines come or go."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

from isonet.files.run_folder import RunFolder
from isonet.training.resume import AUTO
from isonet.training.world import World


def launcher() -> str:
    """The torchrun that started this process, under a name that no other ever has; "": it was not torchrun.

    The name is of host, number, and time of its start.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # others may be the parents of many runs
        return ""
    parent, began = os.getppid(), ""
    with contextlib.suppress(OSError, IndexError):  # not on macOS
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {parent} {began}".rstrip()


def after_restart(folder: RunFolder, world: World, resume: str | None, overwrite: bool) -> tuple[str | None, bool]:
    """What is to be done about the run in ``folder``, of the command's --resume and --overwrite.

    A run that one of these same launchers began is gone on with, whatever the command said the first time. If it
    had saved nothing, it begins again as the command says, and its log is kept aside.
    """
    launchers = set(world.gather(launcher())) - {""}
    if not world.leads or not launchers & set(_began_by(folder)):
        return resume, overwrite
    if folder.resumable():
        return AUTO, False
    folder.set_log_aside()
    folder.clear()
    return resume, overwrite


def _began_by(folder: RunFolder) -> list[str]:
    try:
        found = json.loads(folder.versions.read_text(encoding="utf-8"))["launchers"]
        return [str(name) for name in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []
