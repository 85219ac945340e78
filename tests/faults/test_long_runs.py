"""Two hundred epochs: memory, open files, threads and files on disk stay as they are after the first few."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from PIL import Image

from conftest import REPO

PROGRAM = """
import json, logging, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from isonet import load_cfg
from isonet.training.run import run_training

def sizes(folder):
    return {file.name: file.stat().st_size for file in Path(folder).iterdir()}

class Watch(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("epoch "):
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            row = {"rss_kb": int(status["VmRSS"].split()[0]), "threads": int(status["Threads"]),
                   "files": len(os.listdir("/proc/self/fd")), "sizes": sizes(sys.argv[2])}
            print(json.dumps(row), flush=True)

logging.getLogger("isonet").addHandler(Watch())
run_training(load_cfg(None, json.loads(sys.argv[3])), "run")
"""


def watched(tmp_path, opts):
    folder = tmp_path / "out/mine/run"
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(REPO),
        str(folder),
        json.dumps([*opts, "OUTPUT_DIR", str(tmp_path / "out")]),
    ]
    # one thread: with two, networks this small wait for each other's threads, where tests run side by side
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=env)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def images(tmp_path, size, n=16):
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "mine" / split / name
            folder.mkdir(parents=True)
            for i in range(n // 2):
                Image.effect_noise((size, size), 50).convert("RGB").save(folder / f"{i}.png")
    return ["DATASET.ROOT", str(tmp_path), "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 2, "DATASET.IMAGE_SIZE", size,
            "ISON.DEPTH", 8, "SOLVER.TRAIN_BATCH_SIZE", 4, "SOLVER.BASE_LR", 0.005]  # fmt: skip


def assert_flat(rows, start, leak_kb):
    first, last = rows[start], rows[-1]
    assert last["threads"] <= first["threads"]
    assert last["files"] <= first["files"]
    epochs = len(rows) - start
    assert last["rss_kb"] - first["rss_kb"] < leak_kb * epochs, (first["rss_kb"], last["rss_kb"])


def test_200_short_epochs_stay_flat(tmp_path, tally, capsys):
    rows = watched(tmp_path, [*images(tmp_path, 8), "SOLVER.MAX_EPOCHS", 200, "RUNTIME.SAVE_EVERY", 2])
    assert len(rows) == 200
    assert_flat(rows, start=50, leak_kb=20)  # a state of this network is 600 kB
    first, last = rows[50]["sizes"], rows[-1]["sizes"]
    assert len(last) == len(first)  # as many checkpoints
    per_epoch = {
        name: (last[name] - first[name]) / 149 for name in ("metrics.jsonl", "timing.jsonl", "latest.pt", "log.txt")
    }
    assert per_epoch["metrics.jsonl"] < 300  # bytes
    assert per_epoch["latest.pt"] < 600  # it holds the rows of both
    assert per_epoch["log.txt"] < 300
    memory = [rows[i]["rss_kb"] >> 10 for i in (50, -1)]
    growth = ", ".join(f"{name} {value:.0f}" for name, value in per_epoch.items())
    with capsys.disabled():
        print(f"\n200 epochs: {memory[0]} MiB after 51 and {memory[1]} MiB after 200, {rows[-1]['threads']} threads, "
              f"{rows[-1]['files']} open files; bytes an epoch: {growth}")  # fmt: skip
    tally("survived")


def test_epochs_with_worker_processes_stay_flat(tmp_path, tally, torture):
    epochs = 200 if torture else 25
    opts = [*images(tmp_path, 16), "RUNTIME.INPUT", "workers", "DATASET.NUM_WORKERS", 2, "SOLVER.MAX_EPOCHS", epochs]
    rows = watched(tmp_path, opts)
    assert_flat(rows, start=epochs // 4, leak_kb=100)
    tally("survived")
