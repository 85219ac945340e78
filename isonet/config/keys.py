"""Every key of the config tree with its default.

The keys of the published implementation keep their names, places and defaults, so that its YAML files load unchanged.
"""

from __future__ import annotations

from yacs.config import CfgNode

# What runs did before a key existed, if it is not the default. The configs that they wrote lack the key, and are read
# with these values
BEFORE_THE_KEY = {"SOLVER.DROP_LAST": False}


def default_cfg() -> CfgNode:
    """A fresh tree of the defaults; no two callers share one."""
    cfg = CfgNode()
    for add_keys in (_dataset, _solver, _ison, _model, _runtime):
        add_keys(cfg)
    cfg.OUTPUT_DIR = "./outputs/cls"  # runs lie in OUTPUT_DIR/DATASET.NAME/<--output>/
    return cfg


def _dataset(cfg: CfgNode) -> None:
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
    cfg.DATASET.SHUFFLE_BUFFER = 10_000  # shards are shuffled some at a time: at least so many images; not in memory
    cfg.DATASET.ON_ERROR = "stop"  # at an image that cannot be read; skip: leave it out, count it, list it at the end


def _solver(cfg: CfgNode) -> None:
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
    cfg.SOLVER.DROP_LAST = True  # leave out the last, incomplete training batch, as published; not the only one
    cfg.SOLVER.MAX_EPOCHS = 100
    cfg.SOLVER.WARMUP = False  # a linear ramp of the rate at the start; with steps, full rate * epoch / WARMUP_EPOCH
    cfg.SOLVER.WARMUP_EPOCH = 5  # the first epoch at the full rate
    cfg.SOLVER.WARMUP_FACTOR = 0.2  # share of the full rate at the start, with linear and cosine; steps ignores it


def _ison(cfg: CfgNode) -> None:
    cfg.ISON = CfgNode()
    cfg.ISON.DEPTH = 34  # 18, 34, 50, 101, 152; up to 64 px: 6n+2 (basic) or 9n+2 (bottleneck)
    cfg.ISON.ORTHO_COEFF = 1e-4  # loss = cross entropy + ORTHO_COEFF * penalty; 0: no penalty
    cfg.ISON.ORTHO_STRIDED = "published"  # operator: the penalty of strided convs is that of the map they compute
    cfg.ISON.HAS_BN = False  # batch norm after every conv
    cfg.ISON.HAS_ST = False  # shortcuts
    cfg.ISON.SReLU = True  # False: ReLU
    cfg.ISON.DIRAC_INIT = True  # delta initialisation; False: normal, fan-out
    cfg.ISON.DELTA_ORTHOGONAL = False  # with DIRAC_INIT: a random orthogonal centre tap, not the identity
    cfg.ISON.ORTHOGONAL_CONV = False  # with DIRAC_INIT: a random orthogonal conv of all taps; not for 100s of layers
    cfg.ISON.STEM_GAIN = 1.0  # factor on the stem's initial weights; sqrt(16 / 3): 16 channels as strong as the 3
    cfg.ISON.HAS_RES_MULTIPLIER = False  # a learned scalar on each residual branch
    cfg.ISON.RES_MULTIPLIER = 1.0  # that scalar's start
    cfg.ISON.DROPOUT = False  # before the linear layer
    cfg.ISON.DROPOUT_RATE = 0.0
    cfg.ISON.TRANS_FUN = "basic_transform"  # or bottleneck_transform


def _model(cfg: CfgNode) -> None:
    cfg.MODEL = CfgNode()
    cfg.MODEL.INIT_FROM = ""  # start with the weights of a checkpoint, a run folder, a run of this config, or zoo:NAME
    cfg.MODEL.FREEZE = []  # parts whose weights stay as they are, such as [stem, s1], or stem,s1 on a command line


def _runtime(cfg: CfgNode) -> None:
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
