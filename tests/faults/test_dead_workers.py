"""Worker processes that die, receive signals, or outlive their run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from isonet.data import build, decode, workers
from isonet.data.processes import explain_dead_workers, worker_context
from isonet.errors import DataError, WorkerError
from pictures import epoch, loader, make_images, refused


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path)


@pytest.fixture
def many(images):
    """Enough images that the workers are still reading when the main process has the first batch."""
    for i in range(300):
        (images / f"train/class1/more{i}.jpg").symlink_to("1.jpg")
    return images


def worker_pids():
    """Return the process ids of the two workers that were started last."""
    return [child.pid for child in sorted(multiprocessing.active_children(), key=lambda child: child.pid)[-2:]]


DEATHS = {
    signal.SIGKILL: ["SIGKILL", "out-of-memory", "fewer DATASET.NUM_WORKERS"],
    signal.SIGSEGV: ["SIGSEGV", "damaged image", "DATASET.NUM_WORKERS 0"],
    signal.SIGBUS: ["SIGBUS", "/dev/shm", "fewer DATASET.NUM_WORKERS"],
}


@pytest.mark.parametrize("number", DEATHS)
@pytest.mark.parametrize("when", ["waiting", "computing"])
def test_a_killed_worker_is_reported_immediately(many, tally, number, when):
    batches = loader(many, "workers", batch=2)
    start = time.monotonic()
    with refused(tally, "a process that reads images (pid", *DEATHS[number]) as refusal, explain_dead_workers():
        for i, _ in enumerate(batches):
            if i == 0:
                pid = worker_pids()[1]
                os.kill(pid, number)
                while when == "computing" and time.monotonic() - start < 30:
                    pass
    assert f"(pid {pid})" in refusal.message


def use_forever(flag):
    while True:
        flag.is_set()


def test_a_worker_killed_while_it_reads_the_flag_of_its_end_does_not_block_the_main_process(tally):
    context = worker_context()
    flag = context.Event()
    for _ in range(20):
        worker = context.Process(target=use_forever, args=(flag,), daemon=True)
        worker.start()
        time.sleep(0.01)
        worker.kill()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
    flag.set()
    assert flag.is_set()
    tally("survived", 20)


def test_a_worker_that_exits_by_itself_is_reported(images, tally, monkeypatch):
    monkeypatch.setattr(decode, "to_rgb", lambda _: os._exit(3))
    with refused(tally, "a process that reads images (pid", "exit code 3", "DATASET.NUM_WORKERS 0"):
        epoch(loader(images, "workers"))
    message = "DataLoader worker (pid(s) 1) exited unexpectedly"  # torch's message, after five seconds, for exit code 0
    with refused(tally, "a process that reads images", "DATASET.NUM_WORKERS 0"), explain_dead_workers():
        raise RuntimeError(message)


def test_a_worker_killed_while_a_set_is_decoded_is_reported(images, tally, monkeypatch):
    test = os.getpid()

    def read(_):
        assert os.getpid() != test
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers, "WORTH_WORKERS", 0)
    monkeypatch.setattr(decode, "to_rgb", read)
    monkeypatch.setattr(build, "usable_cores", lambda: 2)
    with refused(tally, "SIGKILL"):
        loader(images, "memory", **{"DATASET.NUM_WORKERS": 2})


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error"), DataError("a"), ValueError("DataLoader"), StopIteration()]
)
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as found, explain_dead_workers(), explain_dead_workers():
        raise error
    assert found.value is error
    with pytest.raises(WorkerError, match=r"/dev/shm.*is too small"), explain_dead_workers(), explain_dead_workers():
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: Success (0)")


def test_workers_survive_the_signals_that_stop_a_run(many, tally):
    batches = loader(many, "workers", batch=2)
    names = iter(["INT", "TERM", "USR1", "HUP"])
    count = 0
    for i, (_, labels) in enumerate(batches):
        count += len(labels)
        if i % 30 == 0 and (name := next(names, None)):  # sent by another process: workers obey SIGTERM from this one
            subprocess.run(["kill", f"-{name}", *map(str, worker_pids())], check=True)
    assert next(names, None) is None
    assert count == 309
    tally("survived", 4)


def test_signals_to_the_whole_group_do_not_stop_workers_that_are_starting(images, tally, torture):
    """A child in a separate process group starts workers while every process of the group receives signals."""
    group_read, group_write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, lambda *_: None)
            os.write(group_write, b"x")
            sums = [sum(len(y) for _, y, _ in epoch(loader(images, "workers"))) for _ in range(40 if torture else 8)]
            code = 0 if set(sums) == {9} else 2
        finally:
            os._exit(code)
    os.read(group_read, 1)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.killpg(child, number)
        time.sleep(0.002)
    assert os.waitstatus_to_exitcode(status) == 0
    tally("survived")


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def main_process(images):
    """Start a process that reads images forever, and return the ids of the process and of its two workers."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the parent's threads do not exist here, and torch would wait for them forever
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        batches = loader(images, "workers", batch=2)
        next(iter(batches))
        os.write(write, " ".join(map(str, worker_pids())).encode())
        time.sleep(60)
        os._exit(0)
    pids = [int(pid) for pid in os.read(read, 100).split()]
    assert len(pids) == 2
    return child, pids


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_no_worker_outlives_a_killed_main_process(many, tally):
    """Torch's workers check for the main process every five seconds."""
    left = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        child, pids = main_process(many)
        left += pids
        os.kill(child, number)
        os.waitpid(child, 0)
    start = time.monotonic()
    while not all(map(gone, left)):
        assert time.monotonic() - start < 30
        time.sleep(0.1)
    tally("survived", 2)


def test_workers_end_with_their_loader(images):
    batches = loader(images, "workers")
    epoch(batches)
    pids = worker_pids()
    del batches
    assert all(map(gone, pids))
