"""docs/train.sbatch: a warned job saves, requeues itself and resumes; one that fails or ends does not requeue."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_launched import CFG, RUN, assert_same_weights, train

from conftest import REPO, once
from isonet.files.checkpoint import read_checkpoint
from launch import forked, wait_until

pytestmark = pytest.mark.usefixtures("no_pictures")

# The programs of Slurm that the script calls, on a cluster of one node. Like the real program, this srun forwards
# SIGTERM as SIGKILL. scancel signals the processes of the step
SRUN = """#!/bin/bash
set -m
"$@" & child=$!
echo $child > "$(dirname "$0")/step"
trap 'kill -KILL -- -$child' TERM
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""
SCANCEL = """#!/bin/bash
[ "$*" = "--signal=TERM 4711.0" ] && kill -TERM -- "-$(cat "$(dirname "$0")/step")"
"""
SCONTROL = '#!/bin/bash\nif [ "$1" = show ]; then echo localhost; else echo "$@" >> "$0.calls"; fi\n'


@pytest.fixture
def job(tmp_path):
    """``job(KEY, VALUE, ...)`` starts the script as Slurm does, from the repository, and returns its process."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "torchrun").symlink_to(Path(sys.executable).parent / "torchrun")

    def start(*opts, **env):
        slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n[1-1]", "SLURM_NNODES": "1", "GPUS": "2",
                 "CFG": str(CFG[1]), "OUTPUT": "run", "PATH": f"{programs}:{os.environ['PATH']}"}  # fmt: skip
        return subprocess.Popen(
            ["bash", REPO / "docs" / "train.sbatch", *map(str, once(*RUN, "OUTPUT_DIR", tmp_path, *opts))],
            cwd=REPO, env={**os.environ, **slurm, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    start.requeued = lambda: (programs / "scontrol.calls").exists() and (programs / "scontrol.calls").read_text()
    return start


def finished(process: subprocess.Popen) -> str:
    return process.communicate(timeout=300)[0]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_warned_job_requeues_and_resumes_to_the_result_of_a_run_without_a_warning(job, tmp_path):
    folder, whole = tmp_path / "digits" / "run", tmp_path / "whole"
    forked(2, train, tmp_path, whole, None, *RUN)
    process = job()
    wait_until((folder / "epoch0001-step000005.pt").exists, process)
    os.kill(process.pid, signal.SIGUSR1)  # only to the script, like B: in --signal
    output = finished(process)
    assert "stopped: by SIGTERM in epoch " in output
    assert process.returncode != 0
    assert job.requeued() == "requeue 4711\n"
    assert read_checkpoint(folder / "latest.pt")["epoch"] < 2
    process = job()
    output = finished(process)
    assert process.returncode == 0, output
    assert job.requeued() == "requeue 4711\n"  # no second requeue
    assert_same_weights(folder / "latest.pt", read_checkpoint(whole / "digits" / "run" / "latest.pt"))


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_job_that_fails_does_not_requeue(job):
    process = job("SOLVER.BASE_LR", "fast", RESTARTS="0", GPUS="1")
    assert re.search("error: .*SOLVER.BASE_LR", finished(process))
    assert process.returncode != 0
    assert not job.requeued()
