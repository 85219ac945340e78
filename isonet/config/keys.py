"""The keys of a config, one row each.

A row has the key, default, kind of values, and meaning. The keys of the published implementation keep their
names, places and defaults, so that its YAML files load unchanged. Relations between keys are in ``checks.py``.
"""

import copy
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from isonet.config.kinds import AUTO, Bool, BoolOrAuto, FilePath, Float, Int, Kind, ListOf, OneOf, Text

SMALL_IMAGE = 64  # pixels; images of up to this side are for CIFAR networks
_BELOW_ONE = 1 - 1e-6
_MANY = 1_000_000  # a larger number is a typo, or overflows somewhere


@dataclass(frozen=True)
class Key:
    """A row of the table.

    may_differ: whether a resumed run may have another value than the run that it resumes.
    per_rank: whether the ranks of a run may have different values.
    before: the value that describes runs from before the key existed, if it is not the default.
    """

    name: str
    default: Any
    kind: Kind
    meaning: str
    may_differ: bool = False
    per_rank: bool = False
    before: Any = None


_ROWS = (
    # The images
    Key("DATASET.ROOT", "./data/", FilePath(), "the folder that contains the data sets",
        may_differ=True, per_rank=True),
    Key("DATASET.NAME", "ILSVRC2012", Text(),
        "CIFAR10, CIFAR100, digits (in the package), or any folder ROOT/NAME/{train,val}/<class>/"),
    Key("DATASET.NUM_CLASSES", 1000, Int(1, _MANY), "the width of the last layer"),
    Key("DATASET.NUM_WORKERS", 8, Int(0, 4096),
        "the number of processes that decode images that are not kept in memory; 0: none",
        may_differ=True, per_rank=True),
    Key("DATASET.DOWNLOAD", False, Bool(), "download CIFAR to ROOT if it is not there", may_differ=True),
    Key("DATASET.CHECKSUM", True, Bool(),
        "refuse CIFAR files that are not the published ones; False: use such files, e.g. a subset", may_differ=True),
    Key("DATASET.IMAGE_SIZE", 0, Int(0, 8192),
        "pixels a side, up to 64 for CIFAR networks; 0: the data set's own (CIFAR 32, digits 8, folders 224)"),
    Key("DATASET.PADDING", -1, Int(-1, SMALL_IMAGE),
        "pixels added around small images before a random crop; -1: an eighth of the side"),
    Key("DATASET.MEAN", [], ListOf(Float(0, 1)),
        "the mean per channel to subtract; empty: the data set's own (folders: ImageNet's, up to 64 pixels CIFAR's)"),
    Key("DATASET.STD", [], ListOf(Float(1e-4, 1e4)), "the deviation per channel to divide by; empty: as for MEAN"),
    Key("DATASET.SHUFFLE_BUFFER", 10_000, Int(1, _MANY),
        "with shards: the number of images that are mixed at a time, rounded up to whole shards"),
    Key("DATASET.ON_ERROR", "stop", OneOf("stop", "skip"),
        "the reaction to an unreadable image; skip: train on the next readable image, leave it out in evaluation",
        may_differ=True),

    # How the network is trained
    Key("SOLVER.BASE_LR", 0.05, Float(0, 1e6), "learning rate per GPU; the number of GPUs and ACCUMULATE multiply it"),
    Key("SOLVER.SCHEDULE", "steps", OneOf("steps", "linear", "cosine"),
        "steps: the rate falls at milestones; linear, cosine: it falls with every step, to 0 at the end"),
    Key("SOLVER.LR_MILESTONES", [30, 60, 90], ListOf(Int(0, _MANY)), "the rate falls after each of these epochs"),
    Key("SOLVER.LR_GAMMA", 0.1, Float(0, 1e6), "the factor that multiplies the rate at a milestone"),
    Key("SOLVER.WEIGHT_DECAY", 1e-4, Float(0, 1e6), "weight decay of all parameters except the SReLU shifts"),
    Key("SOLVER.MOMENTUM", 0.9, Float(0, _BELOW_ONE), "momentum of torch's SGD"),
    Key("SOLVER.DAMPENING", False, Bool(), "dampening of torch's SGD; True: dampening 1"),
    Key("SOLVER.NESTEROV", False, Bool(), "Nesterov momentum in torch's SGD"),
    Key("SOLVER.TRAIN_BATCH_SIZE", 128, Int(1, _MANY), "training images per GPU and batch"),
    Key("SOLVER.TEST_BATCH_SIZE", 200, Int(1, _MANY), "validation images per GPU and batch"),
    Key("SOLVER.ACCUMULATE", 1, Int(1, 10_000), "the batches whose gradients are added for one optimizer step"),
    Key("SOLVER.DROP_LAST", True, Bool(),
        "leave out the last, incomplete training batch of an epoch, unless it is the only one", before=False),
    Key("SOLVER.MAX_EPOCHS", 100, Int(1, _MANY), "epochs to train", may_differ=True),
    Key("SOLVER.WARMUP", False, Bool(), "raise the rate linearly at the start"),
    Key("SOLVER.WARMUP_EPOCH", 5, Int(1, _MANY), "the first epoch at the full rate"),
    Key("SOLVER.WARMUP_FACTOR", 0.2, Float(0, 1),
        "with linear and cosine: the initial rate divided by the full rate; ignored with steps, as published"),

    # The network and its loss
    Key("ISON.DEPTH", 34, Int(1, 10_000),
        "ImageNet: 18, 34 (basic), 50, 101, 152 (bottleneck); up to 64 pixels: 6n+2 (basic), 9n+2 (bottleneck)"),
    Key("ISON.ORTHO_COEFF", 1e-4, Float(0, 1e6), "loss = cross entropy + ORTHO_COEFF * penalty; 0: no penalty"),
    Key("ISON.ORTHO_EVERY", 1, Int(1, _MANY),
        "k: the penalty counts only at every k-th step of the run, and k times as much"),
    Key("ISON.ORTHO_STRIDED", "published", OneOf("published", "operator"),
        "the penalty of strided convolutions: as published, or of the operator that they compute"),
    Key("ISON.HAS_BN", False, Bool(), "batch norm after every convolution"),
    Key("ISON.HAS_ST", False, Bool(), "shortcuts: the input of a block is added to its output"),
    Key("ISON.SReLU", True, Bool(), "shifted ReLU, max(x, b) with a learned b per channel; False: ReLU"),
    Key("ISON.DIRAC_INIT", True, Bool(), "delta initialisation; False: normal, fan-out"),
    Key("ISON.DELTA_ORTHOGONAL", False, Bool(),
        "with DIRAC_INIT: the centre tap is a random orthogonal matrix instead of the identity"),
    Key("ISON.ORTHOGONAL_CONV", False, Bool(),
        "with DIRAC_INIT: a random orthogonal convolution of all taps; not for hundreds of layers"),
    Key("ISON.STEM_GAIN", 1.0, Float(1e-6, 1e6),
        "the factor on the stem's initial weights; sqrt(16 / 3) keeps the mean energy per channel, from 3 to 16"),
    Key("ISON.HAS_RES_MULTIPLIER", False, Bool(), "a learned scalar on each residual branch"),
    Key("ISON.RES_MULTIPLIER", 1.0, Float(-1e6, 1e6), "the initial value of that scalar"),
    Key("ISON.DROPOUT", False, Bool(), "dropout before the last layer"),
    Key("ISON.DROPOUT_RATE", 0.0, Float(0, _BELOW_ONE), "the probability of dropout"),
    Key("ISON.TRANS_FUN", "basic_transform", OneOf("basic_transform", "bottleneck_transform"),
        "the residual branch: two 3x3 convolutions, or 1x1, 3x3 and 1x1"),

    # Fine-tuning
    Key("MODEL.INIT_FROM", "", FilePath(),
        "start from these weights: a checkpoint, a run folder, the name of a run of this config, or zoo:NAME"),
    Key("MODEL.FREEZE", [], ListOf(OneOf("stem", "s1", "s2", "s3", "s4", "head")),  # CIFAR networks have no s4
        "parts that are not trained: [stem, s1] in a file, stem,s1 on the command line"),

    # How it is computed
    Key("RUNTIME.SEED", 0, Int(0, 2**63 - 1), "the seed of initialisation, order of images, augmentation and dropout"),
    Key("RUNTIME.DETERMINISTIC", False, Bool(), "refuse GPU kernels whose results vary from run to run"),
    Key("RUNTIME.TF32", False, Bool(),
        "GPU convolutions with 10 bits of mantissa: faster, but not the published float32"),
    Key("RUNTIME.AMP", "off", OneOf("off", "bf16", "fp16"),
        "autocast to 16 bits, for fp16 with gradient scaling; the penalty stays in float32"),
    Key("RUNTIME.CHANNELS_LAST", AUTO, BoolOrAuto(),
        "NHWC memory order, which rounds sums differently; auto: on CPUs, and on GPUs with AMP or TF32", before=False),
    Key("RUNTIME.COMPILE", False, Bool(),
        "torch.compile the network: faster steps after minutes at the start; on the CPU or one GPU per process"),
    Key("RUNTIME.CHECKPOINT_ACTIVATIONS", False, Bool(),
        "keep sqrt(n) activations of n blocks and recompute the others: less memory, steps take a third longer",
        may_differ=True),
    Key("RUNTIME.INPUT", "auto", OneOf("auto", "workers", "memory", "shards"),
        "workers: processes read files; memory: all images, up to 64 pixels, on the device; shards: tar files"),
    Key("RUNTIME.DECODER", "pil", OneOf("pil", "torch"),
        "torch: workers decode JPEG with torchvision, which is faster; pixels differ by about 0.1 of 255"),
    Key("RUNTIME.PROFILE", 0, Int(0, 1000),
        "the number of steps of the first epoch to profile, into profile.txt; 0: none", may_differ=True, per_rank=True),
    Key("RUNTIME.LOG_EVERY", 50, Int(1, 10**9),
        "the number of steps between two reads of the loss; each read waits for the device", may_differ=True),
    Key("RUNTIME.LOG_SPECTRUM", 0, Int(0, _MANY),
        "the epochs between two measurements of the convolutions' extreme singular values; 0: never",
        may_differ=True, per_rank=True),
    Key("RUNTIME.SAVE_EVERY", 0, Int(0, 10**9),
        "the number of steps between two checkpoints within an epoch; 0: only after each epoch", may_differ=True),
    Key("RUNTIME.TENSORBOARD", False, Bool(), "also write the metrics as TensorBoard events",
        may_differ=True, per_rank=True),
    Key("RUNTIME.KEEP", 2, Int(1, 10_000), "checkpoints to keep for --resume, with the newest",
        may_differ=True, per_rank=True),

    # Where runs are
    Key("OUTPUT_DIR", "./outputs/cls", FilePath(), "runs are in OUTPUT_DIR/DATASET.NAME/<--output>/",
        may_differ=True, per_rank=True),
)  # fmt: skip

KEYS = {row.name: row for row in _ROWS}
MAY_DIFFER = frozenset(row.name for row in _ROWS if row.may_differ)
BEFORE_THE_KEY = {row.name: row.before for row in _ROWS if row.before is not None}


def default_cfg() -> CfgNode:
    """Return a new config with the defaults, which the caller may change."""
    cfg = CfgNode()
    for row in _ROWS:
        node, _, leaf = row.name.rpartition(".")
        (cfg.setdefault(node, CfgNode()) if node else cfg)[leaf] = copy.copy(row.default)
    return cfg
