"""Scripts under torchrun, as users start them: killed and failing workers, two machines, and a signal to one rank."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import REPO, TINY, once
from isonet import load_cfg
from isonet.errors import DataError, Stopped
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import RunFolder
from isonet.launch import launch
from isonet.training.run import run_training
from launch import Script, environment, forked, free_port, start, torchrun, wait_until

RUN = once(
    *TINY, "SOLVER.TRAIN_BATCH_SIZE", 24, "SOLVER.BASE_LR", 0.005, "SOLVER.MAX_EPOCHS", 2,
    "RUNTIME.SAVE_EVERY", 5, "ISON.DROPOUT", True, "ISON.DROPOUT_RATE", 0.3,
)  # fmt: skip
CFG = ("--cfg", REPO / "configs" / "digits_ISO20.yaml", "--output", "run")

pytestmark = pytest.mark.usefixtures("no_pictures")


def train(_rank, tmp_path, resume=None, *opts):
    run_training(load_cfg(CFG[1], [*RUN, "OUTPUT_DIR", str(tmp_path), *opts]), "run", resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The checkpoint of an uninterrupted run of three ranks."""
    tmp_path = tmp_path_factory.mktemp("whole")
    forked(3, train, tmp_path, tmp_path)
    return read_checkpoint(tmp_path / "digits" / "run" / "latest.pt")


def assert_same_weights(found: Path, expected: dict):
    state = read_checkpoint(found)
    assert state["epoch"] == expected["epoch"]
    for name, value in expected["model"].items():
        torch.testing.assert_close(state["model"][name], value, rtol=0, atol=1e-6)
    for row, other in zip(state["history"], expected["history"], strict=True):
        assert row == pytest.approx(other, rel=1e-6)


def workers(torchrun_pid: int) -> dict[int, int]:
    """Return a dictionary from rank to process id for the workers of a torchrun."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == torchrun_pid:
                environment = dict(e.split("=", 1) for e in (folder / "environ").read_text().split("\0") if "=" in e)
                found[int(environment["RANK"])] = int(folder.name)
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return found


def wait_for(path: Path, process: Script):
    wait_until(path.exists, process)


def test_kill_9_of_one_of_three_workers_does_not_change_the_run(whole, tmp_path):
    options = ("--standalone", "--nproc-per-node", 3, "--max-restarts", 1)
    process = torchrun(*options, "train.py", *CFG, *RUN, "OUTPUT_DIR", tmp_path, cwd=tmp_path)
    folder = tmp_path / "digits" / "run"
    wait_for(folder / "epoch0001-step000005.pt", process)
    os.kill(workers(process.pid)[2], signal.SIGKILL)
    process.wait()
    assert process.returncode == 0, process.output
    assert_same_weights(folder / "latest.pt", whole)
    log = (folder / "log.txt").read_text()
    assert re.search(r"Error: .*connection", log)
    assert re.search(r"resuming .*after epoch \d, step \d+", log)
    assert log.count("epoch 2/2") == 1
    assert not (folder / "lock").exists()


def train_until_signalled(rank, tmp_path):
    """Like ``train``, but one rank receives a signal when the first checkpoint exists."""

    def send():
        while not (tmp_path / "digits" / "run" / "epoch0001-step000005.pt").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGUSR1)

    if rank == 2:
        threading.Thread(target=send, daemon=True).start()
    try:
        train(rank, tmp_path)
    except Stopped as stopped:
        return str(stopped)
    except SystemExit as silent:  # only rank 0 reports why
        return f"{silent.code}: {silent.__context__}"


def test_after_a_signal_to_one_rank_all_ranks_stop_at_the_same_step_and_resume_correctly(whole, tmp_path):
    (message, *others) = forked(3, train_until_signalled, tmp_path, tmp_path)
    folder = tmp_path / "digits" / "run"
    steps = read_checkpoint(folder / "latest.pt")["part"]["sums"]["steps"]
    assert re.match(rf"by SIGUSR1 in epoch 1 after step {steps};", message)
    assert others == [f"75: {message}"] * 2
    forked(3, train, tmp_path, tmp_path, "auto")
    assert_same_weights(folder / "latest.pt", whole)


def test_when_the_launcher_is_killed_its_processes_save_and_end(tmp_path):
    options = ("--standalone", "--nproc-per-node", 2)
    process = torchrun(*options, "train.py", *CFG, *RUN, "OUTPUT_DIR", tmp_path, cwd=tmp_path)
    folder = tmp_path / "digits" / "run"
    wait_for(folder / "epoch0001-step000005.pt", process)
    orphans = workers(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in orphans.values()):
        time.sleep(0.01)
    assert "stopped: by SIGHUP in epoch " in process.output
    assert len(orphans) == 2
    assert read_checkpoint(folder / "latest.pt")["part"]
    assert not (folder / "lock").exists()


@pytest.mark.torture
def test_two_launchers_are_one_run_and_its_checkpoint_is_evaluated_by_two(tmp_path):
    """Two launchers on loopback stand for two machines: each runs torchrun --nnodes 2."""
    alone, launched = tmp_path / "alone", tmp_path / "launched"
    opts = ("SOLVER.MAX_EPOCHS", 1)
    forked(4, train, tmp_path, alone, None, *opts)
    nodes = ("--nnodes", 2, "--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-id", "test",
             "--rdzv-endpoint", f"127.0.0.1:{free_port()}")  # fmt: skip
    command = ("train.py", *CFG, *once(*RUN, "OUTPUT_DIR", launched, *opts))
    machines = [torchrun(*nodes, *command, cwd=tmp_path) for _ in range(2)]
    outputs = [machine.wait().output for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert sum(output.count("epoch 1/1: ") for output in outputs) == 1  # only one process prints
    rows = [(root / "digits" / "run" / "metrics.jsonl").read_text() for root in (alone, launched)]
    assert rows[0] == rows[1]

    json_file = tmp_path / "found.json"
    output = outputs_of_ranks(
        2, tmp_path, "test.py", "--ckpt", launched / "digits" / "run" / "latest.pt", "--json", json_file,
        "SOLVER.TEST_BATCH_SIZE", 50,
    )  # fmt: skip
    assert output.count("top-1") == 1, output
    found, row = json.loads(json_file.read_text()), json.loads(rows[0])
    assert (found["top1"], found["top5"], found["images"]) == (row["top1"], row["top5"], 360)
    assert found["loss"] == pytest.approx(row["val_loss"], rel=1e-6)


def outputs_of_ranks(processes: int, cwd: Path, *args: object) -> str:
    """Return the output of a script in all ranks, with the environment and the store that torchrun provides."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
    ranks = [start(*args, cwd=cwd, **env, **environment(rank, processes, store.port)) for rank in range(processes)]
    return "".join(rank.wait().output for rank in ranks)


def test_a_launcher_that_joins_and_one_whose_worker_is_killed_resume_the_run(tmp_path):
    """torchrun restarts all ranks twice. Its restart count stays 0 when a machine joins, and rises on only one."""
    folder = tmp_path / "digits" / "run"
    nodes = ("--nnodes", "1:2", "--nproc-per-node", 1, "--max-restarts", 2, "--rdzv-backend", "c10d",
             "--rdzv-id", "elastic", "--rdzv-conf", "last_call_timeout=1",
             "--rdzv-endpoint", f"127.0.0.1:{free_port()}")  # fmt: skip
    separate_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # without it, no machine can join (see findings/)
    command = ("train.py", *CFG, *once(*RUN, "SOLVER.MAX_EPOCHS", 1000, "OUTPUT_DIR", tmp_path))
    first = torchrun(*nodes, *command, cwd=tmp_path, **separate_store)
    wait_for(folder / "epoch0001-step000005.pt", first)
    second = torchrun(*nodes, *command, cwd=tmp_path, **separate_store)
    wait_until(lambda: times_resumed(folder) >= 1, first)
    os.kill(next(iter(workers(second.pid).values())), signal.SIGKILL)
    wait_until(lambda: times_resumed(folder) >= 2, first)
    for machine in (first, second):
        machine.send_signal(signal.SIGTERM)
    outputs = [machine.wait().output for machine in (first, second)]
    log = (folder / "log.txt").read_text()
    assert " on 2 ranks" in log, outputs
    assert not list(folder.glob("log-before-restart*"))
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]
    assert epochs == list(range(1, len(epochs) + 1))


def times_resumed(folder: Path) -> int:
    return (folder / "log.txt").read_text().count(f"resuming {folder}")


def test_the_error_of_one_rank_ends_all_of_them_and_is_printed_once(tmp_path):
    for split, count in (("train", 24), ("val", 4)):
        for name in "ab":
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "mine" / split / name / f"{i:02}.png")
    (tmp_path / "mine" / "train" / "b" / "07.png").write_bytes(b"not an image")
    opts = [*RUN, "DATASET.ROOT", tmp_path, "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 2, "DATASET.IMAGE_SIZE", 8]
    opts += ["RUNTIME.INPUT", "workers", "DATASET.NUM_WORKERS", 0, "SOLVER.TRAIN_BATCH_SIZE", 2, "RUNTIME.LOG_EVERY", 1]
    opts += ["OUTPUT_DIR", tmp_path / "out"]
    process = torchrun("--standalone", "--nproc-per-node", 3, "train.py", *CFG, *once(*opts), cwd=tmp_path)
    output = process.wait().output
    assert process.returncode == 1
    errors = re.findall(r"^error: (.*)$", output, re.MULTILINE)
    own = [line for line in errors if "07.png: " in line and " failed: " not in line]
    assert len(own) == 1, output
    assert len(errors) <= 2, output  # rank 0 repeats the error of another rank
    rank = int((re.search(r"rank (\d) on", own[0]) or [0, 0])[1])
    root = output.split("Root Cause")[1]
    assert re.search(rf"rank +: {rank} ", root), output
    assert re.search(r"exitcode +: 2 ", root), output
    assert "07.png: " in (tmp_path / "out" / "mine" / "run" / "log.txt").read_text()


def test_a_mistake_that_all_ranks_detect_is_printed_once(tmp_path):
    output = outputs_of_ranks(3, tmp_path, "train.py", *CFG, "SOLVER.BASE_LR", "fast")
    (line,) = output.splitlines()
    assert line.startswith("error: ")
    assert "SOLVER.BASE_LR" in line
    assert "'fast'" in line


@pytest.mark.parametrize("batch", [2, 8])
def test_if_no_image_can_be_read_the_error_is_about_the_storage(tmp_path, batch):
    """Each rank reads only a part of the images. In small batches, these are too few to decide."""
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for i in range(10):
                (tmp_path / "mine" / split / name / f"{i}.png").write_bytes(b"not an image")
    assert forked(2, train_on_nothing, tmp_path, tmp_path, batch) == ["DataError", "DataError"]
    log = (tmp_path / "out" / "mine" / "run" / "log.txt").read_text()
    assert "storage" in log


def train_on_nothing(_rank, tmp_path, batch):
    opts = ["DATASET.ROOT", str(tmp_path), "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 2, "DATASET.IMAGE_SIZE", 8,
            "RUNTIME.INPUT", "workers", "DATASET.NUM_WORKERS", 0, "DATASET.ON_ERROR", "skip", "OUTPUT_DIR",
            str(tmp_path / "out"), "SOLVER.TRAIN_BATCH_SIZE", batch]  # fmt: skip
    try:
        run_training(load_cfg(CFG[1], [*RUN, *opts]), "run")
    except DataError as error:
        return type(error).__name__
    except SystemExit as silent:
        return type(silent.__context__).__name__


class FirstOfTorchrun:
    """Gives this test process the environment that torchrun sets, which is the same for all runs in the block."""

    def __enter__(self):
        os.environ.update(environment(0, 1, free_port()), TORCHELASTIC_ERROR_FILE="/tmp/drawn/attempt_0/0/error.json")

    def __exit__(self, *_):
        for name in (*environment(0, 1, 0), "TORCHELASTIC_ERROR_FILE"):
            os.environ.pop(name, None)


def test_a_restart_resumes_if_a_checkpoint_exists_and_otherwise_follows_the_command(tmp_path):
    other = tmp_path / "other"
    train(0, other, None, "SOLVER.MAX_EPOCHS", 1)
    start = str(other / "digits" / "run" / "latest.pt")
    folder = RunFolder(tmp_path / "digits" / "run")
    config = load_cfg(CFG[1], [*RUN, "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_EPOCHS", 2])
    with FirstOfTorchrun():
        folder.path.mkdir(parents=True)
        folder.versions.write_text(json.dumps({"launchers": [launch().launcher]}))  # it died without a checkpoint
        folder.log.write_text("why it died")
        assert run_training(config, "run", resume=start).path == folder.path
        rows = folder.metrics.read_text().splitlines()
        assert len(rows) == 2
        assert rows[0] == (other / "digits" / "run" / "metrics.jsonl").read_text().strip()  # not from scratch
        assert (folder.path / "log-before-restart.txt").read_text() == "why it died"
        run_training(config, "run", overwrite=True)  # with the same launcher, this is a restart
        assert "nothing to do: 2 epochs are finished" in folder.log.read_text()
    run_training(config, "run", overwrite=True)  # without the launcher, this is a new run
    assert "nothing to do" not in folder.log.read_text()
