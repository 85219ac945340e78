"""The signals that ask a run to stop: one list for the whole project. Needs no torch."""

from __future__ import annotations

import signal

STOP_SIGNALS = (
    signal.SIGINT,  # Ctrl-C in a terminal
    signal.SIGTERM,  # kill, torchrun when another rank has failed, a scheduler at the end of a job
    signal.SIGUSR1,  # a scheduler some time before the end of a job, as in sbatch --signal=USR1@120
    signal.SIGHUP,  # a terminal that closes
)
