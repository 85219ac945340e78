"""The config tree: every key with its default, merged from a YAML file and from ``KEY VALUE`` pairs.

The keys of the published implementation keep their names, places and defaults, so that its YAML
files load unchanged. Only builders read the tree; layers and loops take plain arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from isonet.config_checks import CHOICES, SMALL_IMAGE, faults
from isonet.config_file import flatten, parse_pairs, read_pairs, shown, where
from isonet.errors import ConfigError

# Side of a square image in pixels, where DATASET.IMAGE_SIZE does not give it.
_OWN_IMAGE_SIZE = {"CIFAR10": 32, "CIFAR100": 32, "digits": 8}
_FOLDER_IMAGE_SIZE = 224
_ITEM_TYPE = {"SOLVER.LR_MILESTONES": int, "DATASET.MEAN": float, "DATASET.STD": float, "MODEL.FREEZE": str}


def default_cfg() -> CfgNode:
    """A fresh tree of the defaults; no two callers share one."""
    cfg = CfgNode()

    cfg.DATASET = CfgNode()
    cfg.DATASET.ROOT = "./data/"  # folder that holds the data sets
    cfg.DATASET.NAME = "ILSVRC2012"  # CIFAR10, CIFAR100, digits; else a folder ROOT/NAME/{train,val}/<class>/
    cfg.DATASET.NUM_CLASSES = 1000  # width of the linear layer
    cfg.DATASET.NUM_WORKERS = 8  # processes that decode images not held in memory; 0: none
    cfg.DATASET.DOWNLOAD = False  # fetch CIFAR into ROOT where it is missing
    cfg.DATASET.IMAGE_SIZE = 0  # pixels; 0: the set's own (CIFAR 32, digits 8, else 224); up to 64: CIFAR networks
    cfg.DATASET.PADDING = -1  # pixels around small images out of which crops are drawn; -1: an eighth of the side
    cfg.DATASET.MEAN = []  # per channel, in [0, 1]; empty: the set's own (folders: ImageNet's, up to 64 px CIFAR's)
    cfg.DATASET.STD = []  # likewise
    cfg.DATASET.SHUFFLE_BUFFER = 1000  # images of shards out of which each worker draws the next; held as JPEG
    cfg.DATASET.ON_ERROR = "stop"  # at an image that cannot be read; skip: leave it out, count it, list it at the end

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.BASE_LR = 0.05  # per GPU: grows with the number of GPUs, and with ACCUMULATE
    cfg.SOLVER.SCHEDULE = "steps"  # linear, cosine: falls with every step, to 0 at the end; milestones do nothing
    cfg.SOLVER.LR_MILESTONES = [30, 60, 90]  # the rate falls after each of these epochs
    cfg.SOLVER.LR_GAMMA = 0.1  # by this factor
    cfg.SOLVER.WEIGHT_DECAY = 1e-4  # on all but the SReLU shifts
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.DAMPENING = False  # True: dampening 1 in torch's SGD
    cfg.SOLVER.NESTEROV = False
    cfg.SOLVER.TRAIN_BATCH_SIZE = 128  # images per GPU
    cfg.SOLVER.TEST_BATCH_SIZE = 200  # images per GPU
    cfg.SOLVER.ACCUMULATE = 1  # batches whose gradients add up to a step's: each GPU does the work of so many
    cfg.SOLVER.MAX_EPOCHS = 100
    cfg.SOLVER.WARMUP = False  # a linear ramp of the rate at the start
    cfg.SOLVER.WARMUP_EPOCH = 5  # the first epoch at the full rate
    cfg.SOLVER.WARMUP_FACTOR = 0.2  # share of the full rate in the first epoch

    cfg.ISON = CfgNode()
    cfg.ISON.DEPTH = 34  # 18, 34, 50, 101, 152; up to 64 px: 6n+2 (basic) or 9n+2 (bottleneck)
    cfg.ISON.ORTHO_COEFF = 1e-4  # loss = cross entropy + ORTHO_COEFF * penalty; 0: no penalty
    cfg.ISON.HAS_BN = False  # batch norm after every conv
    cfg.ISON.HAS_ST = False  # shortcuts
    cfg.ISON.SReLU = True  # False: ReLU
    cfg.ISON.DIRAC_INIT = True  # delta initialisation; False: normal, fan-out
    cfg.ISON.DELTA_ORTHOGONAL = False  # with DIRAC_INIT: a random orthogonal centre tap, not the identity
    cfg.ISON.ORTHOGONAL_CONV = False  # with DIRAC_INIT: a random orthogonal convolution of all taps, not the identity
    cfg.ISON.STEM_GAIN = 1.0  # factor on the stem's initial weights; sqrt(16 / 3): 16 channels as strong as the 3
    cfg.ISON.HAS_RES_MULTIPLIER = False  # a learned scalar on each residual branch
    cfg.ISON.RES_MULTIPLIER = 1.0  # that scalar's start
    cfg.ISON.DROPOUT = False  # before the linear layer
    cfg.ISON.DROPOUT_RATE = 0.0
    cfg.ISON.TRANS_FUN = "basic_transform"  # or bottleneck_transform

    cfg.MODEL = CfgNode()
    cfg.MODEL.INIT_FROM = ""  # start with the weights of a checkpoint, a run folder, a run of this config, or zoo:NAME
    cfg.MODEL.FREEZE = []  # parts whose weights stay as they are, such as [stem, s1], or stem,s1 on a command line

    cfg.RUNTIME = CfgNode()
    cfg.RUNTIME.SEED = 0  # of initialisation, order, augmentation and dropout
    cfg.RUNTIME.DETERMINISTIC = False  # refuse GPU kernels whose result varies from run to run
    cfg.RUNTIME.TF32 = False  # GPU convolutions with 10 bits of mantissa: faster, not the published float32
    cfg.RUNTIME.AMP = "off"  # bf16: autocast; fp16: autocast with gradient scaling; the penalty stays float32
    cfg.RUNTIME.CHANNELS_LAST = False  # images and weights in NHWC order in memory; sums in another order
    cfg.RUNTIME.COMPILE = False  # torch.compile the network: minutes at the start, faster steps; one GPU, or the CPU
    cfg.RUNTIME.CHECKPOINT_ACTIVATIONS = False  # keep the square root of them, compute the rest again: a third slower
    cfg.RUNTIME.INPUT = "auto"  # memory: up to 64 px, held on the device; workers: files, read by processes; shards
    cfg.RUNTIME.DECODER = "pil"  # torch: workers read JPEG with torchvision, faster; pixels differ by some 0.1 of 255
    cfg.RUNTIME.PROFILE = 0  # steps of the first epoch whose operators are timed, into profile.txt; 0: none
    cfg.RUNTIME.LOG_EVERY = 50  # steps between two looks at the loss, each of which waits for the device
    cfg.RUNTIME.LOG_SPECTRUM = 0  # epochs between two looks at the convs' extreme singular values; 0: none
    cfg.RUNTIME.SAVE_EVERY = 0  # steps between two checkpoints within an epoch; 0: one after each epoch only
    cfg.RUNTIME.TENSORBOARD = False  # the metrics as events for TensorBoard, too, in the run's folder
    cfg.RUNTIME.KEEP = 2  # checkpoints to resume from that are kept: latest.pt and the ones before it

    cfg.OUTPUT_DIR = "./outputs/cls"  # runs lie in OUTPUT_DIR/DATASET.NAME/<--output>/
    return cfg


def load_cfg(path: str | Path | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """The frozen config of a YAML file (or none) with ``KEY VALUE`` pairs merged on top.

    ``opts`` alternates dotted keys and values, e.g. ``["ISON.DEPTH", 20]``; values may be text as on
    a command line. Raises ``ConfigError`` for a file that cannot be read, an unknown key, a value of
    the wrong type or out of range, and keys that contradict each other.
    """
    draft = _Draft()
    if path is not None:
        draft.merge(read_pairs(Path(path)), where(path))
    return draft.finish(opts)


def parse_cfg(text: str, source: str, opts: Sequence[Any] = ()) -> CfgNode:
    """The frozen config of YAML text, such as a checkpoint carries, with ``opts`` merged on top."""
    draft = _Draft()
    draft.merge(parse_pairs(text, source), where(source))
    return draft.finish(opts)


def image_size(cfg: CfgNode) -> int:
    """Side in pixels of the square images that the network is fed."""
    return cfg.DATASET.IMAGE_SIZE or _OWN_IMAGE_SIZE.get(cfg.DATASET.NAME, _FOLDER_IMAGE_SIZE)


def uses_small_images(cfg: CfgNode) -> bool:
    """Whether images are at most 64 pixels: CIFAR networks, CIFAR augmentation, kept in memory."""
    return image_size(cfg) <= SMALL_IMAGE


def global_batch(cfg: CfgNode, num_gpus: int = 1) -> int:
    """Images of a training step on ``num_gpus`` GPUs, whether they are of one process or of several."""
    return cfg.SOLVER.TRAIN_BATCH_SIZE * cfg.SOLVER.ACCUMULATE * num_gpus


def flat(cfg: CfgNode) -> dict[str, Any]:
    """Every key of the tree, dotted, with its value."""
    return dict(flatten(cfg))


class _Draft:
    """A config in the making: the tree, and for messages who gave each value."""

    def __init__(self) -> None:
        self.cfg = default_cfg()
        self.defaults = flat(self.cfg)
        self.given_by: dict[str, str] = {}  # dotted key -> file or command line

    def merge(self, pairs: Iterable[tuple[Any, Any]], source: str) -> None:
        for key, value in pairs:
            if isinstance(key, str) and isinstance(self.cfg.get(key), CfgNode):
                self._refuse_value_of_node(key, value, source)
                continue
            if not isinstance(key, str) or key not in self.defaults:
                raise ConfigError(f"{source}: {self._unknown(key)}")
            node_path, _, leaf = key.rpartition(".")
            node = self.cfg[node_path] if node_path else self.cfg
            node[leaf] = _coerce(key, value, self.defaults[key], source)
            self.given_by[key] = source

    def finish(self, opts: Sequence[Any]) -> CfgNode:
        """The frozen tree after ``KEY VALUE`` pairs and all checks."""
        if len(opts) % 2:
            raise ConfigError(
                f"overrides come as KEY VALUE pairs, but {shown(opts[-1])} has no value "
                "(write ISON.DEPTH 20, without =, and quote a value that has spaces)"
            )
        self.merge(zip(opts[::2], opts[1::2], strict=True), source="the command line")
        for key, message in faults(self.cfg, image_size(self.cfg)):
            source = self.given_by.get(key)
            raise ConfigError(f"{source}: {key} {message}" if source else f"{key} {message}")
        self.cfg.freeze()
        return self.cfg

    def _refuse_value_of_node(self, key: str, value: Any, source: str) -> None:
        if value is None or value == {}:  # what is left of a node when all its keys are commented out
            return
        keys = " and ".join(f"{key}.{leaf}" for leaf in list(self.cfg[key])[:2])
        raise ConfigError(f"{source}: {key} holds keys, such as {keys}, and takes no value, got {shown(value)}")

    def _unknown(self, key: Any) -> str:
        if not isinstance(key, str):
            return f"a key is text such as ISON.DEPTH, got {shown(key)}"
        for known in self.defaults:
            if key.startswith(f"{known}."):
                return f"{known} takes one value, and no keys such as {shown(key[len(known) + 1 :])} below it"
        any_case = {known.upper(): known for known in self.defaults}
        near = difflib.get_close_matches(key[:100].upper(), any_case, n=1, cutoff=0.5)
        hint = f"did you mean {any_case[near[0]]}?" if near else f"at the top are {', '.join(self.cfg)}"
        return f"unknown key {key if len(key) <= 60 else shown(key)}; {hint}"


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """``value`` in the type of ``default``; text is read as on a command line, so ``1e-4`` is a float."""
    wanted = type(default)
    if wanted is str and value is False and key in CHOICES:
        value = "off"  # which YAML reads as a boolean
    try:
        if wanted is list:
            return [_item(item, _ITEM_TYPE[key]) for item in _items(value, single=_ITEM_TYPE[key] is str)]
        if wanted in (int, float):
            return _number(value, wanted)
        if wanted is bool and isinstance(value, str):
            value = {"true": True, "false": False}[value.strip().lower()]
        if type(value) is wanted:
            return value
    except (ValueError, TypeError, KeyError, OverflowError):  # OverflowError: no float is as large
        pass
    raise ConfigError(f"{source}: {key} takes {_type_name(key, wanted)}, got {shown(value)}")


def _items(value: Any, single: bool) -> Sequence[Any]:
    """The items of a list, or of text such as [1, 2], or ``single`` alone; no Python is evaluated for it."""
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str):
        raise TypeError(value)
    text = value.strip()
    if text[:1] + text[-1:] in ("[]", "()"):
        text = text[1:-1].strip()
    elif "," not in text and not single:
        raise ValueError(value)
    return text.removesuffix(",").split(",") if text else []


def _item(value: Any, wanted: type) -> Any:
    if wanted is not str:
        return _number(value, wanted)
    if not isinstance(value, str):
        raise TypeError(value)
    text = value.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _number(value: Any, wanted: type) -> Any:
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
        return int(value, 0) if wanted is int else float(value)
    if type(value) is wanted:
        return value
    if wanted is float and type(value) is int:
        return float(value)
    raise TypeError(value)


_LONGEST_NUMBER = 400  # characters; the largest float has 309 digits


def _type_name(key: str, wanted: type) -> str:
    if wanted is list:
        items = _ITEM_TYPE[key]
        return f"a list of {items.__name__} values such as [1, 2, 3]" if items is not str else "names such as [a, b]"
    return {bool: "True or False", int: "a whole number", float: "a number", str: "text (a number in quotes)"}[wanted]
