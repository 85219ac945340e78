"""Whole runs: the tests, a rank under torchrun, DataParallel, resume to the bit, and epochs of CIFAR-10."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import statistics
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Row
from benchmarks.gpu.equality import missing_compiler
from benchmarks.gpu.jobs import NOT_RUN, Job, difference, remark
from benchmarks.gpu.processes import REPO, Script, start
from benchmarks.gpu.reference import reference_batch, reference_model
from isonet.training import TrainStep
from isonet.training.devices import place as placed
from isonet.training.devices import set_precision

DIGITS = ["--cfg", REPO / "configs" / "digits_ISO20.yaml", "--gpus", "0"]
SMALL = ["ISON.DEPTH", 8, "SOLVER.TRAIN_BATCH_SIZE", 128, "RUNTIME.DETERMINISTIC", True]
IMAGES = "cifar10-jpg"
RECIPES = {"RISO": "RISO20-recipe10", "RES": "RES20-recipe10"}
TINY = ["RUNTIME.AMP", "off", "SOLVER.MAX_EPOCHS", 1, "SOLVER.WARMUP", False]
WORTH_COMPILING = 150.0  # seconds; compiling takes half of them


@dataclass(frozen=True)
class Place:
    """Where the runs are: their device, the folder of their logs and checkpoints, and the folder of the images.

    images: the folder that contains the images or their archive, or None for the usual ones.
    """

    device: torch.device
    toy: bool
    folder: Path
    images: Path | None

    @property
    def unpacked(self) -> Path:
        """The folder in which an archive is unpacked."""
        return self.folder if self.toy else REPO / "data"


def tests(place: Place, until: float) -> Iterator[Row]:
    """Run tests/training/test_gpu.py, if pytest is installed. On a GPU, one of them must pass."""
    work = "tests/training/test_gpu.py"
    if not importlib.util.find_spec("pytest"):
        yield remark(work, f"{NOT_RUN} no pytest")
        return
    options = ["-v", "-p", "no:cacheprovider", "--tb=short", "--durations=0"]
    script = start("pytest", [*options, REPO / work], place.folder / "tests.txt")
    try:
        code = script.wait(until - 1)
    finally:
        script.stop()
    text = script.text()
    counts = {
        word: len(re.findall(rf"::\S+(?: \S+)*? {word.upper()}", text)) for word in ("passed", "failed", "skipped")
    }
    note = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    if code is None:
        note += "; cut off: no time left"
    if counts["failed"] or code not in (None, 0) or (place.device.type == "cuda" and not counts["passed"]):
        note = f"fail: {note or f'pytest ended with {code}'}; see {script.log.name}"
    yield Row(work, None, float(counts["passed"]), None, None, "passed", note)


def digits(
    name: str, folder: Path, epochs: int, *args: object, under: list[object] | None = None, **env: str
) -> Script:
    """Start a run of ISONet-8 on the digits, with deterministic kernels. under: a launcher's options."""
    base = [*DIGITS, "--output", name, *args, *SMALL, "SOLVER.MAX_EPOCHS", epochs, "OUTPUT_DIR", folder / "runs"]
    if under is None:
        return start("train.py", base, folder / f"{name}-{epochs}.txt", **env)
    return start("torch.distributed.run", [*under, REPO / "train.py", *base], folder / f"{name}-{epochs}.txt", **env)


def metrics(folder: Path, name: str) -> list[dict[str, float]]:
    """Return the epochs of a run on the digits."""
    return lines(folder / "runs" / "digits" / name / "metrics.jsonl")


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's file, or none if it does not exist yet."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def launched(device: torch.device, folder: Path, until: float) -> Iterator[Row]:
    """Compare ``train.py --gpus 0`` with one rank under torchrun, whose gradients NCCL (or gloo) reduces."""
    # This machine may have no name that its own network resolves
    one = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", 1]
    alone = digits("alone", folder, 1, "--overwrite")
    rank = digits("rank", folder, 1, "--overwrite", under=one, NCCL_DEBUG="VERSION")
    try:
        alone.check(until)
        rank.check(until)
    finally:
        alone.stop()
        rank.stop()
    log = alone.text()
    used = re.search(r"on (cuda:0 \(.*?\)|CPU, \d+ threads)\n", log)
    if not used or used[1].startswith("cuda") != (device.type == "cuda"):
        raise RuntimeError(f"--gpus 0 did not use {device}: see {alone.log.name}")
    yield remark("train.py --gpus 0", f"trained on {used[1]}")
    rows = [metrics(folder, name)[0] for name in ("alone", "rank")]
    version = re.search(r"NCCL version \S+", rank.text())
    if device.type == "cuda" and not version:
        raise RuntimeError(f"torchrun's rank did not use NCCL: see {rank.log.name}")
    worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in ((rows[0][key], rows[1][key]) for key in rows[0]))
    note = f"{version[0] if version else 'gloo'}; {', '.join(rows[0])}"
    yield difference("one rank under torchrun equals train.py: metrics of an epoch", worst, 1e-5, note)


def data_parallel(device: torch.device, _until: float) -> Iterator[Row]:
    """Compare three steps of ``nn.DataParallel`` on one device with those of the bare network."""
    set_precision(deterministic=False, tf32=False)
    name, losses = "cifar10_RISO20", []
    for parallel in (False, True):
        model = placed(reference_model(name).train(), [device])
        forward = nn.DataParallel(model, [device.index or 0]) if parallel else model
        step = TrainStep(forward, model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True), 1e-4)
        images, labels = (tensor.to(device) for tensor in reference_batch(name))
        losses.append(torch.stack([step(images, labels).cross_entropy for _ in range(3)]).double())
    worst = ((losses[0] - losses[1]).abs() / losses[0].abs()).max().item()
    yield difference(f"DataParallel on one device equals the bare network: {name}, three losses", worst, 1e-5)


def resumed(folder: Path, until: float) -> Iterator[Row]:
    """Compare two epochs with one epoch that is resumed, to the bit: weights, momenta and metrics."""
    straight = digits("straight", folder, 2, "--overwrite")
    resumed = digits("resumed", folder, 1, "--overwrite")
    try:
        resumed.check(until)
        resumed = digits("resumed", folder, 2, "--resume")
        resumed.check(until)
        straight.check(until)
    finally:
        resumed.stop()
        straight.stop()
    files = [folder / "runs" / "digits" / name / "latest.pt" for name in ("straight", "resumed")]
    states = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
    pairs = [list(tensors([state["model"], state["optimizer"]])) for state in states]
    if not pairs[0] or [t.shape for t in pairs[0]] != [t.shape for t in pairs[1]]:
        raise RuntimeError("the checkpoints have other tensors")
    differing = sum(int((a != b).sum()) for a, b in zip(*pairs, strict=True))
    differing += metrics(folder, "straight") != metrics(folder, "resumed")
    count = sum(tensor.numel() for tensor in pairs[0])
    work = "resume with RUNTIME.DETERMINISTIC: differing numbers"
    yield difference(work, float(differing), 0.0, f"of {count:,} weights and momenta, and the metrics", "numbers")


def tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers, in their order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for item in state.values() if isinstance(state, dict) else state:
            yield from tensors(item)


def epochs(kind: str, share: float, place: Place, until: float) -> Iterator[Row]:
    """Train a network with the study's better recipe until ``share`` of the time that is left is over."""
    depth = 8 if place.toy else 56
    name = f"{kind}{depth}"
    work = f"{name}, {IMAGES}"
    root = find_images(place)
    if root is None:
        yield remark(work, f"{NOT_RUN} no images")
        return
    left = share * (until - time.monotonic())
    compiled = not place.toy and left > WORTH_COMPILING and not missing_compiler(place.device)
    # A last batch of another size would be compiled, too
    keys = ["ISON.DEPTH", depth, "SOLVER.DROP_LAST", True, "RUNTIME.COMPILE", compiled, *(TINY if place.toy else [])]
    recipe = REPO / "configs" / "study" / f"{RECIPES[kind]}.yaml"
    args = ["--cfg", recipe, "--output", name, "--overwrite", "--gpus", "0", *keys]
    runs = place.folder / "runs"
    script = start("train.py", [*args, "DATASET.ROOT", root, "OUTPUT_DIR", runs], place.folder / f"{name}.txt")
    try:
        cut = script.wait(time.monotonic() + left - 3) is None
    finally:
        script.stop(seconds=2)
    if not cut:
        script.check(until)
    done, timing = (lines(runs / IMAGES / name / f"{file}.jsonl") for file in ("metrics", "timing"))
    if not done:
        yield remark(work, f"{NOT_RUN} no epoch finished within {left:.0f} s")
        return
    rate, seconds = (statistics.median(row[key] for row in timing) for key in ("images_per_second", "seconds"))
    top1 = ", ".join(f"{row['top1']:.2f}" for row in done)
    note = f"{seconds:.1f} s an epoch{', compiled' if compiled else ''}; top-1 by epoch: {top1}"
    yield Row(work, None, rate, None, None, "images/s", f"{note}{' (cut off)' if cut else ''}")


def find_images(place: Place) -> Path | None:
    """Return the folder that has the images of the study, unpacked if only their archive exists, or None."""
    roots = (
        [place.images] if place.images else [REPO / "data", REPO / "shared" / "data", REPO.parent / "shared" / "data"]
    )
    for root in [place.unpacked, *roots]:
        if (root / IMAGES / "train").is_dir():
            return root
    archive = next((file for root in roots if (file := root / f"{IMAGES}.tar.xz").is_file()), None)
    if archive is None:
        return None
    part = place.unpacked / f"{IMAGES}.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(part, filter="data")
    (part / IMAGES).rename(place.unpacked / IMAGES)
    part.rmdir()
    return place.unpacked


def test_jobs(place: Place) -> list[Job]:
    return [Job("tests/training/test_gpu.py", functools.partial(tests, place), 20)]


def launch_jobs(place: Place) -> list[Job]:
    """Return the comparisons of one rank, and of one replica, with the process alone."""
    return [
        Job("one rank under torchrun", functools.partial(launched, place.device, place.folder), 30),
        Job("DataParallel on one device", functools.partial(data_parallel, place.device), 3),
    ]


def resume_jobs(place: Place) -> list[Job]:
    return [Job("resume with RUNTIME.DETERMINISTIC", functools.partial(resumed, place.folder), 30)]


def epoch_jobs(place: Place) -> list[Job]:
    """Return the runs of CIFAR-10, which have half of the time that is left each."""
    shares = zip(RECIPES, (0.5, 1.0), strict=True)
    return [Job(f"{kind} on {IMAGES}", functools.partial(epochs, kind, share, place), 15) for kind, share in shares]
