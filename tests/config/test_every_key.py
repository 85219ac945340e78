"""Every config key has an effect: a probe distinguishes two of its values."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import isonet.training.log
from conftest import REFERENCE, TINY
from isonet import SReLU, build_model, load_cfg
from isonet.config import default_cfg, flat
from isonet.data import build_loader
from isonet.errors import DataError, UserError
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import RunFolder, run_folder
from isonet.models import ResMultiplier
from isonet.tools import shards
from isonet.training import build_optimizer, learning_rate_at
from isonet.training.devices import place
from isonet.training.run import run_training

pytestmark = pytest.mark.usefixtures("no_pictures")

CIFAR = ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10, "ISON.DEPTH", 20]
RES = ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True]


def make_folder(root, color):
    for split in ("train", "val"):
        (root / "mine" / split / "a").mkdir(parents=True)
        Image.new("RGB", (80, 80), color).save(root / "mine" / split / "a" / "1.png")


def optimiser_group(key: str) -> Callable:
    def probe(cfg, _tmp):
        return build_optimizer(build_model(cfg), cfg).param_groups[1][key]

    return probe


def rates(cfg, _tmp):
    return [learning_rate_at(cfg, epoch) for epoch in range(1, 8)]


def modules(kind: type[nn.Module]) -> Callable:
    def probe(cfg, _tmp):
        return sum(isinstance(m, kind) for m in build_model(cfg).modules())

    return probe


def stem_and_body(cfg, _tmp):
    torch.manual_seed(0)
    model = build_model(cfg)
    return model.s1.b1.f.a.weight.detach().flatten().tolist()


def multiplier(cfg, _tmp):
    return build_model(cfg).s1.b1.f.shared_scalar.scale.item()


def dropout_rate(cfg, _tmp):
    return getattr(build_model(cfg).head.dropout, "p", None)


def batch(split: str) -> Callable:
    def probe(cfg, _tmp):
        images, _ = next(iter(build_loader(cfg, split)))
        return images.shape, images.sum().item()

    return probe


def pixels_of_folder(cfg, tmp):
    for name, color in (("one", 10), ("two", 200)):
        make_folder(tmp / name, (color, 0, 0))
    cfg = load_cfg(None, ["DATASET.ROOT", str(tmp / cfg.DATASET.ROOT), "DATASET.NAME", "mine", *TINY[2:]])
    return np.asarray(next(iter(build_loader(cfg, "val")))[0]).mean()


def classes_found(cfg, tmp):
    for name, kind in (("pets", "cat"), ("birds", "owl")):
        (tmp / name / "val" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp / name / "val" / kind / "1.png")
    opts = ["DATASET.ROOT", str(tmp), "DATASET.NAME", cfg.DATASET.NAME, "DATASET.IMAGE_SIZE", 8]
    return build_loader(load_cfg(None, opts), "val").classes


def workers(cfg, tmp):
    make_folder(tmp, 10)
    opts = ["DATASET.ROOT", str(tmp), "DATASET.NAME", "mine", "DATASET.NUM_WORKERS", cfg.DATASET.NUM_WORKERS]
    before = len(multiprocessing.active_children())
    batches = iter(build_loader(load_cfg(None, opts), "val"))
    next(batches)
    return len(multiprocessing.active_children()) - before


def download(cfg, tmp):
    """Give torchvision's class an address without a server: the error shows whether it tried to download."""
    import torchvision.datasets as tv

    before, tv.CIFAR10.url = tv.CIFAR10.url, "http://127.0.0.1:9/nothing.tar.gz"
    try:
        opts = ["DATASET.ROOT", str(tmp), "DATASET.DOWNLOAD", cfg.DATASET.DOWNLOAD]
        with pytest.raises(UserError) as error:
            build_loader(load_cfg(None, [*CIFAR, *opts]), "val")
        return "there is no" not in str(error.value)
    finally:
        tv.CIFAR10.url = before


def own_batches(cfg, tmp):
    import torchvision.datasets as tv

    (tmp / tv.CIFAR10.base_folder).mkdir()
    for name, content in (
        ("test_batch", {"data": np.zeros((1, 3072), np.uint8), "labels": [7]}),
        ("batches.meta", {"label_names": list("abcdefghij")}),
    ):
        (tmp / tv.CIFAR10.base_folder / name).write_bytes(pickle.dumps(content))
    opts = ["DATASET.ROOT", str(tmp), "DATASET.CHECKSUM", cfg.DATASET.CHECKSUM]
    try:
        return [labels.tolist() for _, labels in build_loader(load_cfg(None, [*CIFAR, *opts]), "val")]
    except DataError:
        return "refused"


@dataclass
class Run:
    """A run's folder, and torch's settings after the run."""

    folder: RunFolder
    tf32: bool
    deterministic: bool


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """``runs(cfg)`` trains the network of a config. Most probes share one of their two runs with other probes."""
    done: dict[str, Run] = {}

    def run(cfg):
        name = cfg.dump()
        if name not in done:
            out = ["OUTPUT_DIR", str(tmp_path_factory.mktemp("run"))]
            folder = run_training(load_cfg(None, [item for pair in flat(cfg).items() for item in pair] + out), "probe")
            done[name] = Run(folder, torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled())
        return done[name]

    return run


def a_run(read: Callable[[Run], object]) -> Callable:
    def probe(cfg, runs):
        return read(runs(cfg))

    probe.needs_runs = True
    return probe


def input_loader(cfg, tmp):
    make_folder(tmp, 10)
    opts = ["DATASET.ROOT", str(tmp), "DATASET.NAME", "mine", "DATASET.IMAGE_SIZE", 32]
    return type(build_loader(load_cfg(None, [*opts, "RUNTIME.INPUT", cfg.RUNTIME.INPUT]), "val"))


def images_of_shards(cfg, tmp):
    folder = tmp / "mine" / "train" / "a"
    folder.mkdir(parents=True)
    for value in range(20):
        Image.new("RGB", (8, 8), (value, value, value)).save(folder / f"{value}.png")
    shards.main(shards.parse_args(["write", str(tmp / "mine"), "--images-per-shard", "2"]))
    opts = ["DATASET.ROOT", str(tmp), "DATASET.NAME", "mine", "RUNTIME.INPUT", "shards", "DATASET.IMAGE_SIZE", 80,
            "DATASET.NUM_WORKERS", 0, "DATASET.SHUFFLE_BUFFER", cfg.DATASET.SHUFFLE_BUFFER]  # fmt: skip
    batches = build_loader(load_cfg(None, [*opts, "SOLVER.TRAIN_BATCH_SIZE", 4]), "train")
    return [images.sum().item() for images, _ in batches]


def images_in_memory(cfg, _tmp):
    images, _ = next(iter(build_loader(cfg, "val")))
    return images.stride()


def pixels_of_jpeg(cfg, tmp):
    folder = tmp / "mine" / "val" / "a"
    folder.mkdir(parents=True)
    noise = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(folder / "1.jpg")
    opts = ["DATASET.ROOT", str(tmp), "DATASET.NAME", "mine", "DATASET.NUM_WORKERS", 0]
    images, _ = next(iter(build_loader(load_cfg(None, [*opts, "RUNTIME.DECODER", cfg.RUNTIME.DECODER]), "val")))
    return images.sum().item()


def images_read(cfg, tmp):
    make_folder(tmp, 10)
    for name in ("2", "3"):
        Image.new("RGB", (80, 80)).save(tmp / "mine" / "val" / "a" / f"{name}.png")
    (tmp / "mine" / "val" / "a" / "3.png").write_bytes(b"no image")
    opts = ["DATASET.ROOT", str(tmp), "DATASET.NAME", "mine", "DATASET.ON_ERROR", cfg.DATASET.ON_ERROR]
    try:
        return sum(len(labels) for _, labels in build_loader(load_cfg(None, opts), "val"))
    except DataError:
        return "stopped"


def compiled(cfg, _tmp):
    return type(place(build_model(cfg), [torch.device("cpu")], compiled=cfg.RUNTIME.COMPILE))


def epochs(run):
    return len(run.folder.metrics.read_text().splitlines())


def spectra(run):
    return "largest_singular_value" in run.folder.metrics.read_text()


def progress_lines(run):
    return run.folder.log.read_text().count(", step ")


def checkpoints(run):
    return [file.name for file in run.folder.numbered()]


def trained_tensors(run):
    return len(read_checkpoint(run.folder.latest)["optimizer"]["state"])


def weights(run):
    return read_checkpoint(run.folder.latest)["model"]["head.fc.weight"].tolist()


# key: (probe, one value, another value, other keys for both). If a probe needs runs, one value is the default, so that
# probes share that run
PROBES: dict[str, tuple] = {
    "DATASET.ROOT": (pixels_of_folder, "one", "two", []),
    "DATASET.NAME": (classes_found, "pets", "birds", []),
    "DATASET.NUM_CLASSES": (lambda cfg, _: build_model(cfg).head.fc.out_features, 10, 12, CIFAR),
    "DATASET.NUM_WORKERS": (workers, 0, 1, []),
    "DATASET.DOWNLOAD": (download, False, True, CIFAR),
    "DATASET.CHECKSUM": (own_batches, True, False, CIFAR),
    "DATASET.IMAGE_SIZE": (batch("val"), 8, 16, TINY),
    "DATASET.MEAN": (batch("val"), [0.1, 0.1, 0.1], [0.2, 0.1, 0.1], TINY),
    "DATASET.PADDING": (batch("train"), -1, 0, [*TINY, "DATASET.IMAGE_SIZE", 16]),
    "DATASET.ON_ERROR": (images_read, "stop", "skip", []),
    "DATASET.SHUFFLE_BUFFER": (images_of_shards, 1, 10, []),
    "DATASET.STD": (batch("val"), [0.1, 0.1, 0.1], [0.2, 0.1, 0.1], TINY),
    "SOLVER.BASE_LR": (rates, 0.1, 0.2, []),
    "SOLVER.SCHEDULE": (rates, "linear", "cosine", []),
    "SOLVER.LR_MILESTONES": (rates, [2], [3], []),
    "SOLVER.LR_GAMMA": (rates, 0.1, 0.2, ["SOLVER.LR_MILESTONES", [2]]),
    "SOLVER.WEIGHT_DECAY": (optimiser_group("weight_decay"), 0.1, 0.2, CIFAR),
    "SOLVER.MOMENTUM": (optimiser_group("momentum"), 0.8, 0.9, CIFAR),
    "SOLVER.DAMPENING": (optimiser_group("dampening"), False, True, CIFAR),
    "SOLVER.NESTEROV": (optimiser_group("nesterov"), False, True, CIFAR),
    "SOLVER.TRAIN_BATCH_SIZE": (batch("train"), 16, 32, TINY),
    "SOLVER.TEST_BATCH_SIZE": (batch("val"), 16, 32, TINY),
    "SOLVER.ACCUMULATE": (batch("train"), 1, 2, [*TINY, "SOLVER.TRAIN_BATCH_SIZE", 16]),
    "SOLVER.DROP_LAST": (lambda cfg, _: len(build_loader(cfg, "train")), True, False, TINY),
    "SOLVER.MAX_EPOCHS": (a_run(epochs), 1, 2, TINY),
    "SOLVER.WARMUP": (rates, False, True, []),
    "SOLVER.WARMUP_EPOCH": (rates, 4, 5, ["SOLVER.WARMUP", True]),
    "SOLVER.WARMUP_FACTOR": (rates, 0.2, 0.3, ["SOLVER.WARMUP", True, "SOLVER.SCHEDULE", "linear"]),
    "ISON.DEPTH": (modules(nn.Conv2d), 20, 26, CIFAR),
    "ISON.ORTHO_COEFF": (a_run(weights), 1e-4, 1e-2, TINY),
    "ISON.ORTHO_EVERY": (a_run(weights), 1, 2, [*TINY, "ISON.ORTHO_COEFF", 1e-2]),
    "ISON.ORTHO_STRIDED": (a_run(weights), "published", "operator", [*TINY, "ISON.ORTHO_COEFF", 1e-2]),
    "ISON.HAS_BN": (modules(nn.BatchNorm2d), False, True, CIFAR),
    "ISON.HAS_ST": (modules(nn.Conv2d), False, True, CIFAR),
    "ISON.SReLU": (modules(SReLU), False, True, CIFAR),
    "ISON.DIRAC_INIT": (stem_and_body, False, True, CIFAR),
    "ISON.DELTA_ORTHOGONAL": (stem_and_body, False, True, CIFAR),
    "ISON.ORTHOGONAL_CONV": (stem_and_body, False, True, CIFAR),
    "ISON.STEM_GAIN": (lambda cfg, _: build_model(cfg).stem.conv.weight.norm().item(), 1.0, 2.0, CIFAR),
    "ISON.HAS_RES_MULTIPLIER": (modules(ResMultiplier), False, True, [*CIFAR, "ISON.HAS_ST", True]),
    "ISON.RES_MULTIPLIER": (multiplier, 0.0, 1.0, [*CIFAR, *RES]),
    "ISON.DROPOUT": (dropout_rate, False, True, [*CIFAR, "ISON.DROPOUT_RATE", 0.5]),
    "ISON.DROPOUT_RATE": (dropout_rate, 0.4, 0.5, [*CIFAR, "ISON.DROPOUT", True]),
    "ISON.TRANS_FUN": (
        lambda cfg, _: build_model(cfg).head.fc.in_features,
        "basic_transform",
        "bottleneck_transform",
        CIFAR,
    ),
    "MODEL.INIT_FROM": (a_run(weights), "", str(REFERENCE / "cifar10_ISO20.pt"), [*TINY, "ISON.DEPTH", 20]),
    "MODEL.FREEZE": (a_run(trained_tensors), [], ["s1"], TINY),
    "RUNTIME.SEED": (a_run(weights), 0, 1, TINY),
    "RUNTIME.TF32": (a_run(lambda run: run.tf32), False, True, TINY),
    "RUNTIME.AMP": (a_run(weights), "off", "bf16", TINY),
    "RUNTIME.CHANNELS_LAST": (images_in_memory, False, "auto", TINY),
    "RUNTIME.CHECKPOINT_ACTIVATIONS": (lambda cfg, _: build_model(cfg).recompute, False, True, CIFAR),
    "RUNTIME.COMPILE": (compiled, False, True, CIFAR),
    "RUNTIME.INPUT": (input_loader, "memory", "workers", CIFAR),
    "RUNTIME.DECODER": (pixels_of_jpeg, "pil", "torch", []),
    "RUNTIME.PROFILE": (a_run(lambda run: run.folder.profile.exists()), 0, 2, TINY),
    "RUNTIME.DETERMINISTIC": (a_run(lambda run: run.deterministic), False, True, TINY),
    "RUNTIME.LOG_SPECTRUM": (a_run(spectra), 0, 1, TINY),
    "RUNTIME.LOG_EVERY": (a_run(progress_lines), 50, 2, TINY),
    "RUNTIME.SAVE_EVERY": (a_run(checkpoints), 0, 5, TINY),
    "RUNTIME.TENSORBOARD": (a_run(lambda run: bool(run.folder.events())), False, True, TINY),
    "RUNTIME.KEEP": (a_run(checkpoints), 2, 1, [*TINY, "RUNTIME.SAVE_EVERY", 5]),
    "OUTPUT_DIR": (lambda cfg, _: run_folder(cfg, "x").path, "here", "there", []),
}


def test_every_key_has_a_probe():
    assert set(PROBES) == set(flat(default_cfg()))


@pytest.mark.parametrize("key", list(PROBES))
def test_the_key_changes_something(key, tmp_path, runs, monkeypatch):
    monkeypatch.setattr(isonet.training.log, "PLAIN_LINE_SECONDS", 0.0)  # otherwise a short run shows no progress line
    probe, one, other, opts = PROBES[key]
    outcomes = []
    for name, value in (("one", one), ("other", other)):
        cfg = load_cfg(None, [*opts, key, value])
        if hasattr(probe, "needs_runs"):
            outcomes.append(probe(cfg, runs))
        else:
            (tmp_path / name).mkdir()
            outcomes.append(probe(cfg, tmp_path / name))
    assert outcomes[0] != outcomes[1]
