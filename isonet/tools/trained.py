"""The network of a checkpoint, with its weights, for ``predict``, ``export`` and ``isometry``, and its evaluation.

``test.py`` calls ``evaluate_on_ranks`` and ``report``.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from isonet.agreement import SAME_CONFIG, SAME_DATA, config_facts
from isonet.classes import are_numbers, check_guess, check_names, imagenet_classes, in_order, read_names, wordnet_ids
from isonet.config import image_size, load_cfg, uses_channels_last
from isonet.data import build_loader
from isonet.data.build import build_source, statistics
from isonet.data.sources import ArraySource, ImageSource
from isonet.errors import NonFiniteError
from isonet.files.checkpoint import Checkpoint
from isonet.files.storage import write_file
from isonet.files.zoo import open_checkpoint
from isonet.models import ISONet, build_model
from isonet.training.devices import describe, place, set_precision
from isonet.training.distributed import ALONE, World, lockstep
from isonet.training.failure import explained
from isonet.training.log import list_skipped
from isonet.training.metrics import Evaluation, evaluate
from isonet.training.optim import Amp
from isonet.training.run import download

log = logging.getLogger("isonet")


@dataclass(frozen=True)
class Trained:
    """A network with its weights, in evaluation mode, in float32 on the CPU. path, classes, epoch: the checkpoint's."""

    path: Path
    cfg: CfgNode
    model: ISONet
    classes: list[str] | None = None
    epoch: int | None = None


def load_trained(ckpt: str, cfg_path: str | None = None, opts: Sequence[Any] = (), world: World = ALONE) -> Trained:
    """Build the network of a checkpoint and load its weights.

    ckpt: a file, a run folder, the name of a run of the config, or ``zoo:`` and a published checkpoint.
    cfg_path: a config file; None for the config in the checkpoint.
    opts: ``KEY VALUE`` pairs, which override the config.
    world: the ranks, which all load the network; only rank 0 reads the file.

    Raises ``UserError`` if any of these is missing or wrong.
    """
    with world.agreed() as facts:
        facts.update({"--ckpt": ckpt, "the use of --cfg": bool(cfg_path)})
        cfg = load_cfg(cfg_path, opts) if cfg_path else None
    checkpoint = world.from_main(lambda: open_checkpoint(cfg, ckpt))
    with world.agreed(SAME_CONFIG) as facts:
        if cfg is None:
            cfg = checkpoint.config(opts)
        _warn_of_other_images(checkpoint, cfg)
        facts.update(config_facts(cfg))
        model = build_model(cfg)
        checkpoint.load_into(model)
    return Trained(checkpoint.path, cfg, model.eval(), checkpoint.classes, checkpoint.epoch)


def _warn_of_other_images(checkpoint: Checkpoint, cfg: CfgNode) -> None:
    """Warn if the network of ``checkpoint`` was trained on images of another size or scale than ``cfg`` describes."""
    before = checkpoint.cfg
    for name, read in (("size", image_size), ("mean and std", statistics)):
        if before is not None and read(before) != read(cfg):
            message = "%s was trained on images of %s %s, and is evaluated on %s"
            log.warning(message, checkpoint.path, name, read(before), read(cfg))


def class_names(trained: Trained, file: str | None = None) -> list[str]:
    """Return a name for each output of the network.

    file: a text file with one class name per line; None for the names in the checkpoint. A checkpoint without names
    has the WordNet ids if its data set is ImageNet, and numbers otherwise. Raises ``UserError`` if the number of names
    differs from the number of classes, or if the file has the checkpoint's names in another order.
    """
    data, names = trained.cfg.DATASET, trained.classes or []
    if file is not None:
        names = read_names(Path(file))
    elif names:  # fewer than outputs if DATASET.NUM_CLASSES was too high in training
        names = [*names, *(f"output {label}" for label in range(len(names), data.NUM_CLASSES))]
    elif data.NAME == "ILSVRC2012" and len(wordnet_ids()) == data.NUM_CLASSES:
        names = list(wordnet_ids())
    else:
        names = [str(label) for label in range(data.NUM_CLASSES)]
    check_names(names, data.NUM_CLASSES, file or trained.path, (file and trained.classes) or ())
    return names


def validation_images(trained: Trained) -> tuple[ImageSource, str]:
    """Return the validation images with labels for the outputs of the network, and the origin of the labels in words.

    The labels follow the class names in the checkpoint. Without names, they follow the WordNet ids of ImageNet, or the
    order of the classes in the data set. Raises ``DataError`` if the data set is missing or its classes do not fit.
    """
    data = trained.cfg.DATASET
    where = Path(data.ROOT) / data.NAME / "val"
    source = build_source(trained.cfg, "val", trained.classes or None)
    names = list(source.classes)
    if trained.classes:
        return source, "names"
    if isinstance(source, ArraySource):
        return source, "data set"
    if classes := imagenet_classes(names, data.NUM_CLASSES):
        return source.relabelled(classes, where), "WordNet ids"
    if are_numbers(names) and names == sorted(names):  # the order in shards of a former version
        source = source.relabelled(in_order(names, where), where)
    check_guess(source.classes, data.NUM_CLASSES, where)
    return source, "order of the folders"


def placed(trained: Trained, devices: list[torch.device]) -> tuple[nn.Module, Amp]:
    """Return the network on ``devices``, and the precision of its config."""
    runtime = trained.cfg.RUNTIME
    set_precision(runtime.DETERMINISTIC, runtime.TF32)
    forward = place(trained.model, devices, uses_channels_last(trained.cfg, devices[0].type), runtime.COMPILE)
    return forward, Amp(runtime.AMP, devices[0])


def evaluate_on_ranks(
    ckpt: str,
    cfg_path: str | None,
    world: World,
    devices: list[torch.device],
    opts: Sequence[Any] = (),
    classes: str | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate a checkpoint on the validation images of its data set. Return the figures and the checkpoint's file.

    ckpt, cfg_path, opts: see ``load_trained``. world: the connected ranks. devices: the devices of this rank. classes:
    a file with the names of the network's outputs, which replace the names in the checkpoint.

    Raises ``UserError`` if the checkpoint, the config or the data set is missing or wrong, and ``NonFiniteError`` if
    the output of the network is non-finite.
    """
    with explained(world):
        trained = load_trained(ckpt, cfg_path, opts, world)
        if classes:
            trained = replace(trained, classes=world.from_main(lambda: class_names(trained, classes)))
        download(trained.cfg, world)
        with world.agreed(SAME_DATA) as facts:
            source, how = validation_images(trained)
            if world.launch:
                facts.update(source.facts("val"))
            loader = build_loader(trained.cfg, "val", devices, world.share, source)
            forward, amp = placed(trained, devices)
        epoch = "" if trained.epoch is None else f" (epoch {trained.epoch})"
        log.info("evaluating %s%s on %s", trained.path, epoch, describe(devices, world.size))
        present = np.unique(source.labels).tolist()
        subset = present if len(present) < trained.cfg.DATASET.NUM_CLASSES else None
        result = replace(evaluate(forward, lockstep(loader, world), devices[0], amp, world, subset), labels=how)
        for skipped in world.gather(dict(loader.skipped)):
            loader.skipped.update(skipped)
    if world.is_main:
        list_skipped({"val": loader})
    if not math.isfinite(result.loss):
        raise NonFiniteError(f"{trained.path}: the output of the network is non-finite, so it has no accuracy")
    return result, trained.path


def report(result: Evaluation, path: Path, json_file: str | None = None) -> None:
    """Print the figures and, if ``json_file`` is given, write them as JSON."""
    log.info("%d images, %.0f images/s", result.images, result.images_per_second)
    if result.classes_present:
        figures = result.classes_present, result.top1_present, result.top5_present
        log.info("among the %d classes of the images: top-1 %.2f %%, top-5 %.2f %%", *figures)
    how = "" if result.labels in (None, "names") else f", labels by the {result.labels}"
    log.info("top-1 %.2f %%, top-5 %.2f %%, loss %.4f%s: %s", result.top1, result.top5, result.loss, how, path)
    if json_file:
        write_file(Path(json_file), json.dumps(result.as_dict(), indent=2) + "\n")
