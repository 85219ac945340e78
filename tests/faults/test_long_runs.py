"""Many epochs: memory, open files, threads and files on disk do not grow after the first few epochs."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from launch import REPO, start


class Watch(logging.Handler):
    """Records the resources of the process and the sizes of the run's files after each epoch."""

    def emit(self, record):
        if record.getMessage().startswith("epoch "):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            sizes = {file.name: file.stat().st_size for file in Path("outputs/cls/mine/run").iterdir()}
            row = {"rss_kb": int(status["VmRSS"].split()[0]), "threads": int(status["Threads"]),
                   "files": len(os.listdir("/proc/self/fd")), "sizes": sizes}  # fmt: skip
            with Path("rows.jsonl").open("a") as file:
                print(json.dumps(row), file=file)


def watch() -> None:
    logging.getLogger("isonet").addHandler(Watch())


def watched(cwd, keys) -> list[dict]:
    cfg = REPO / "configs/self_ISO29.yaml"
    process = start("train.py", "--cfg", cfg, "--output", "run", *keys, cwd=cwd, first=watch).wait(500)
    assert process.returncode == 0, process.output
    return [json.loads(line) for line in (cwd / "rows.jsonl").read_text().splitlines()]


def images(cwd, size, n=16) -> list[object]:
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = cwd / "data/mine" / split / name
            folder.mkdir(parents=True)
            for i in range(n // 2):
                Image.effect_noise((size, size), 50).convert("RGB").save(folder / f"{i}.png")
    return ["DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 2, "DATASET.IMAGE_SIZE", size, "ISON.DEPTH", 11,
            "SOLVER.TRAIN_BATCH_SIZE", 4, "SOLVER.BASE_LR", 0.005]  # fmt: skip


def assert_flat(rows, first, leak_kb):
    before, after = rows[first], rows[-1]
    assert after["threads"] <= before["threads"]
    assert after["files"] <= before["files"]
    epochs = len(rows) - first
    assert after["rss_kb"] - before["rss_kb"] < leak_kb * epochs, (before["rss_kb"], after["rss_kb"])


@pytest.mark.torture
def test_200_short_epochs_stay_flat(tmp_path, tally, capsys):
    rows = watched(tmp_path, [*images(tmp_path, 8), "SOLVER.MAX_EPOCHS", 200, "RUNTIME.SAVE_EVERY", 2])
    assert len(rows) == 200
    assert_flat(rows, first=50, leak_kb=20)  # one state of this network takes at least ten times as much
    before, after = rows[50]["sizes"], rows[-1]["sizes"]
    assert len(after) == len(before)  # the same number of checkpoints
    per_epoch = {
        name: (after[name] - before[name]) / 149 for name in ("metrics.jsonl", "timing.jsonl", "latest.pt", "log.txt")
    }
    assert per_epoch["metrics.jsonl"] < 300  # bytes
    assert per_epoch["latest.pt"] < 600  # latest.pt contains the rows of both files
    assert per_epoch["log.txt"] < 300
    memory = [rows[i]["rss_kb"] >> 10 for i in (50, -1)]
    growth = ", ".join(f"{name} {value:.0f}" for name, value in per_epoch.items())
    with capsys.disabled():
        print(f"\n200 epochs: {memory[0]} MiB after 51 and {memory[1]} MiB after 200, {rows[-1]['threads']} threads, "
              f"{rows[-1]['files']} open files; bytes an epoch: {growth}")  # fmt: skip
    tally("survived")


def test_epochs_with_worker_processes_stay_flat(tmp_path, tally, torture):
    epochs = 200 if torture else 25
    keys = [*images(tmp_path, 16), "RUNTIME.INPUT", "workers", "DATASET.NUM_WORKERS", 2, "SOLVER.MAX_EPOCHS", epochs]
    rows = watched(tmp_path, keys)
    assert len(rows) == epochs
    assert_flat(rows, first=epochs // 4, leak_kb=100)
    tally("survived")
