"""The config tree: every key with its default, merged from a YAML file and from ``KEY VALUE`` pairs.

The keys of the published implementation keep their names, places and defaults, so that its YAML
files load unchanged. Only builders read the tree; layers and loops take plain arguments.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # comes with yacs
from yacs.config import CfgNode

from isonet.errors import ConfigError

# Side of a square image in pixels, where DATASET.IMAGE_SIZE does not give it.
_OWN_IMAGE_SIZE = {"CIFAR10": 32, "CIFAR100": 32, "digits": 8}
_FOLDER_IMAGE_SIZE = 224
_ITEM_TYPE = {"SOLVER.LR_MILESTONES": int, "DATASET.MEAN": float, "DATASET.STD": float}


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
    cfg.DATASET.MEAN = []  # per channel, in [0, 1]; empty: the set's own (folders: ImageNet's, up to 64 px CIFAR's)
    cfg.DATASET.STD = []  # likewise

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.BASE_LR = 0.05  # per GPU: grows with the number of GPUs
    cfg.SOLVER.LR_MILESTONES = [30, 60, 90]  # the rate falls after each of these epochs
    cfg.SOLVER.LR_GAMMA = 0.1  # by this factor
    cfg.SOLVER.WEIGHT_DECAY = 1e-4  # on all but the SReLU shifts
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.DAMPENING = False  # True: dampening 1 in torch's SGD
    cfg.SOLVER.NESTEROV = False
    cfg.SOLVER.TRAIN_BATCH_SIZE = 128  # images per GPU
    cfg.SOLVER.TEST_BATCH_SIZE = 200  # images per GPU
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
    cfg.ISON.HAS_RES_MULTIPLIER = False  # a learned scalar on each residual branch
    cfg.ISON.RES_MULTIPLIER = 1.0  # that scalar's start
    cfg.ISON.DROPOUT = False  # before the linear layer
    cfg.ISON.DROPOUT_RATE = 0.0
    cfg.ISON.TRANS_FUN = "basic_transform"  # or bottleneck_transform

    cfg.RUNTIME = CfgNode()
    cfg.RUNTIME.SEED = 0  # of initialisation, order, augmentation and dropout
    cfg.RUNTIME.DETERMINISTIC = False  # refuse GPU kernels whose result varies from run to run
    cfg.RUNTIME.TF32 = False  # GPU convolutions with 10 bits of mantissa: faster, not the published float32
    cfg.RUNTIME.AMP = "off"  # bf16: autocast; fp16: autocast with gradient scaling; the penalty stays float32
    cfg.RUNTIME.CHANNELS_LAST = False  # images and weights in NHWC order in memory; sums in another order
    cfg.RUNTIME.COMPILE = False  # torch.compile the network: minutes at the start, faster steps; one GPU, or the CPU
    cfg.RUNTIME.INPUT = "auto"  # memory: images of up to 64 px held on the device; workers: read by processes
    cfg.RUNTIME.DECODER = "pil"  # torch: workers read JPEG with torchvision, faster; pixels differ by some 0.1 of 255
    cfg.RUNTIME.PROFILE = 0  # steps of the first epoch whose operators are timed, into profile.txt; 0: none
    cfg.RUNTIME.LOG_EVERY = 50  # steps between two looks at the loss, each of which waits for the device

    cfg.OUTPUT_DIR = "./outputs/cls"  # runs lie in OUTPUT_DIR/DATASET.NAME/<--output>/
    return cfg


def load_cfg(path: str | Path | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """The frozen config of a YAML file (or none) with ``KEY VALUE`` pairs merged on top.

    ``opts`` alternates dotted keys and values, e.g. ``["ISON.DEPTH", 20]``; values may be text as on
    a command line. Raises ``ConfigError`` for a file that cannot be read, an unknown key, a value of
    the wrong type or out of range, and keys that contradict each other.
    """
    cfg = default_cfg()
    if path is not None:
        _merge(cfg, _flatten(_read_yaml(Path(path))), source=str(path))
    return _checked(_override(cfg, opts))


def parse_cfg(text: str, source: str, opts: Sequence[Any] = ()) -> CfgNode:
    """The frozen config of YAML text, such as a checkpoint carries, with ``opts`` merged on top."""
    cfg = default_cfg()
    _merge(cfg, _flatten(_parse_yaml(text, source)), source)
    return _checked(_override(cfg, opts))


def image_size(cfg: CfgNode) -> int:
    """Side in pixels of the square images that the network is fed."""
    return cfg.DATASET.IMAGE_SIZE or _OWN_IMAGE_SIZE.get(cfg.DATASET.NAME, _FOLDER_IMAGE_SIZE)


def uses_small_images(cfg: CfgNode) -> bool:
    """Whether images are at most 64 pixels: CIFAR networks, CIFAR augmentation, kept in memory."""
    return image_size(cfg) <= 64


def flat(cfg: CfgNode) -> dict[str, Any]:
    """Every key of the tree, dotted, with its value."""
    return dict(_flatten(cfg))


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: a config is a .yaml file; {path.suffix or 'this'} is never executed or guessed")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    return _parse_yaml(text, str(path))


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected KEY: VALUE lines, found {type(tree).__name__}")
    return tree


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _override(cfg: CfgNode, opts: Sequence[Any]) -> CfgNode:
    if len(opts) % 2:
        raise ConfigError(f"overrides come as KEY VALUE pairs, but {opts[-1]!r} has no value")
    _merge(cfg, zip(opts[::2], opts[1::2], strict=True), source="the command line")
    return cfg


def _merge(cfg: CfgNode, pairs: Any, source: str) -> None:
    known = flat(cfg)
    for key, value in pairs:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the nodes are {', '.join(cfg)}"
            raise ConfigError(f"{source}: unknown key {key}; {hint}")
        node_path, _, leaf = key.rpartition(".")
        node = cfg
        for part in filter(None, node_path.split(".")):
            node = node[part]
        node[leaf] = _coerce(key, value, known[key], source)


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """``value`` in the type of ``default``; text is read as on a command line, so ``1e-4`` is a float."""
    wanted = type(default)
    if wanted is str and value is False and key in _CHOICES:
        value = "off"  # which YAML reads as a boolean
    try:
        if isinstance(value, str) and wanted is not str:
            value = {"true": True, "false": False}.get(value.lower(), value) if wanted is bool else _literal(value)
        if wanted is list and isinstance(value, list | tuple):
            return [_number(item, _ITEM_TYPE[key]) for item in value]
        if wanted in (int, float):
            return _number(value, wanted)
        if type(value) is wanted:
            return value
    except (ValueError, TypeError):
        pass
    raise ConfigError(f"{source}: {key} takes {_type_name(key, wanted)}, got {value!r}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except SyntaxError:
        raise ValueError(text) from None


def _number(value: Any, wanted: type) -> Any:
    if type(value) is wanted:
        return value
    if wanted is float and type(value) in (int, str):
        return float(value)
    raise TypeError(value)


def _type_name(key: str, wanted: type) -> str:
    if wanted is list:
        return f"a list of {_ITEM_TYPE[key].__name__} values such as [1, 2, 3]"
    return {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[wanted]


_CHOICES = {
    "RUNTIME.AMP": ("off", "bf16", "fp16"),
    "RUNTIME.INPUT": ("auto", "workers", "memory"),
    "RUNTIME.DECODER": ("pil", "torch"),
}


def _checked(cfg: CfgNode) -> CfgNode:
    """Freeze ``cfg`` after checking each key's range and the relations between keys."""
    values = flat(cfg)
    for key, (low, high) in _RANGES.items():
        if not low <= values[key] <= high:
            limits = f"at least {low}" if high == _INF else f"between {low} and {high}"
            raise ConfigError(f"{key} must be {limits}, got {values[key]}")
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise ConfigError(f"{key} must be one of {', '.join(choices)}, got {values[key]!r}")
    for wrong, message in _contradictions(cfg):
        if wrong:
            raise ConfigError(message)
    cfg.freeze()
    return cfg


_INF = float("inf")
_ALMOST_ONE = 1 - 1e-6
_RANGES: dict[str, tuple[float, float]] = {
    "DATASET.NUM_CLASSES": (1, _INF),
    "DATASET.NUM_WORKERS": (0, _INF),
    "DATASET.IMAGE_SIZE": (0, 8192),
    "SOLVER.BASE_LR": (0, 1e6),
    "SOLVER.LR_GAMMA": (0, 1e6),
    "SOLVER.WEIGHT_DECAY": (0, 1e6),
    "SOLVER.MOMENTUM": (0, _ALMOST_ONE),
    "SOLVER.TRAIN_BATCH_SIZE": (1, _INF),
    "SOLVER.TEST_BATCH_SIZE": (1, _INF),
    "SOLVER.MAX_EPOCHS": (1, _INF),
    "SOLVER.WARMUP_EPOCH": (1, _INF),
    "SOLVER.WARMUP_FACTOR": (0, 1),
    "ISON.DEPTH": (1, 100_000),
    "ISON.ORTHO_COEFF": (0, 1e6),
    "ISON.RES_MULTIPLIER": (-1e6, 1e6),
    "ISON.DROPOUT_RATE": (0, _ALMOST_ONE),
    "RUNTIME.SEED": (0, 2**63 - 1),
    "RUNTIME.PROFILE": (0, 1000),
    "RUNTIME.LOG_EVERY": (1, _INF),
}


def _contradictions(cfg: CfgNode) -> Iterator[tuple[bool, str]]:
    data, solver, ison = cfg.DATASET, cfg.SOLVER, cfg.ISON
    milestones = list(solver.LR_MILESTONES)
    yield (
        milestones != sorted(set(milestones)) or any(m < 0 for m in milestones),
        f"SOLVER.LR_MILESTONES must be epochs in rising order, got {milestones}",
    )
    yield (
        solver.NESTEROV and (solver.MOMENTUM == 0 or solver.DAMPENING),
        "SOLVER.NESTEROV needs SOLVER.MOMENTUM above 0 and SOLVER.DAMPENING False",
    )
    yield (
        ison.DELTA_ORTHOGONAL and not ison.DIRAC_INIT,
        "ISON.DELTA_ORTHOGONAL is a kind of delta initialisation: set ISON.DIRAC_INIT True with it",
    )
    yield (
        ison.HAS_RES_MULTIPLIER and not ison.HAS_ST and ison.RES_MULTIPLIER == 0,
        "ISON.RES_MULTIPLIER 0 without shortcuts (ISON.HAS_ST) is a network of constant output",
    )
    for key, values in (("MEAN", data.MEAN), ("STD", data.STD)):
        yield len(values) not in (0, 3), f"DATASET.{key} takes three values, one per channel, got {list(values)}"
    yield any(not v > 0 for v in data.STD), f"DATASET.STD must be above 0, got {list(data.STD)}"
    yield (
        data.NAME in ("", ".", "..") or "/" in data.NAME or "\\" in data.NAME,
        f"DATASET.NAME is the name of one folder under DATASET.ROOT, got {data.NAME!r}",
    )
    yield (
        cfg.RUNTIME.INPUT == "memory" and not uses_small_images(cfg),
        f"RUNTIME.INPUT memory holds images of up to 64 pixels, and these have {image_size(cfg)}: use auto or workers",
    )
