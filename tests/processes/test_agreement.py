"""If ranks differ or one rank fails before the first step, all ranks end and name the rank and the reason."""

from __future__ import annotations

import importlib.metadata
import socket

import pytest
import torch
from PIL import Image

import isonet
from conftest import REPO, TINY
from isonet import build_model, load_cfg
from isonet.agreement import SAME_CONFIG, config_facts
from isonet.config.keys import KEYS
from isonet.data.folders import image_folder
from isonet.errors import ConfigError, RankError, UserError
from isonet.files.checkpoint import save_checkpoint
from isonet.files.run_folder import run_folder
from isonet.tools import shards
from isonet.tools.trained import evaluate_on_ranks
from isonet.training.failure import ranks
from isonet.training.run import build_run
from launch import environment, forked, start

pytestmark = pytest.mark.usefixtures("no_pictures")

HOST = socket.gethostname()
CONFIG = REPO / "configs" / "digits_ISO20.yaml"
OWN_KEYS = {"DATASET.ROOT", "DATASET.NUM_WORKERS", "OUTPUT_DIR", "RUNTIME.KEEP", "RUNTIME.LOG_SPECTRUM",
            "RUNTIME.PROFILE", "RUNTIME.TENSORBOARD"}  # fmt: skip


def message_of(block):
    """Return the message of the ``UserError`` that the call raises, or "" if it raises none."""
    try:
        block()
    except UserError as error:
        return str(error)
    return ""


def compare_every_key(rank):
    def compare(world, key):
        cfg = load_cfg(None, TINY).clone()
        cfg.defrost()
        node, _, leaf = key.rpartition(".")
        if rank == 1:
            (cfg[node] if node else cfg)[leaf] = "another"
        with world.agreed(SAME_CONFIG) as facts:
            facts.update(config_facts(cfg))

    with ranks(None) as (world, _):
        return {key: message_of(lambda key=key: compare(world, key)) for key in KEYS}


def test_a_key_that_differs_is_named_on_all_ranks_with_both_values_and_the_rank(tmp_path):
    messages, others = forked(2, compare_every_key, tmp_path)
    assert messages == others
    assert {key for key, message in messages.items() if not message} == OWN_KEYS
    for key in KEYS.keys() - OWN_KEYS:
        assert messages[key].startswith(f"{key} is 'another' on rank 1 on {HOST}, and "), messages[key]
        assert f" on rank 0 on {HOST}; " in messages[key]
    assert "another' on rank 1 on" in messages["RUNTIME.SEED"]
    assert " 0 on rank 0 on" in messages["RUNTIME.SEED"]


def fail_in_turn(rank):
    def fail(world, failing, error):
        with world.agreed():
            if rank in failing:
                raise error
        return "no error"

    def outcome(world, failing, error):
        try:
            return fail(world, failing, error)
        except Exception as caught:
            return type(caught).__name__, str(caught)

    with ranks(None) as (world, _):
        found = [outcome(world, failing, ConfigError("wrong")) for failing in ((), (0,), (1,), (0, 1))]
        found.append(outcome(world, (1,), KeyError("a bug")))
        rank_0_alone = message_of(lambda: world.from_main(lambda: 1 / 0 if rank else load_cfg("missing.yaml")))
        return found, rank_0_alone, world.gather(rank)


def test_an_error_of_one_rank_reaches_all_of_them_and_they_can_still_communicate(tmp_path):
    (found, alone, everyone), (others, alone_there, everyone_there) = forked(2, fail_in_turn, tmp_path)
    here = f"rank 1 on {HOST}"
    own, of_rank_0 = ("ConfigError", "wrong"), ("RankError", f"rank 0 on {HOST}: wrong")
    of_rank_1, bug = ("RankError", f"{here}: wrong"), ("RankError", f"{here} failed: KeyError: 'a bug'")
    assert found == ["no error", own, of_rank_1, own, bug]
    assert others == ["no error", of_rank_0, of_rank_1, of_rank_0, ("KeyError", "'a bug'")]
    assert "missing.yaml" in alone
    assert alone_there == f"rank 0 on {HOST}: {alone}"
    assert everyone == everyone_there == [0, 1]


def make_images(root, classes=("a", "b"), train=4, val=2, name="{}.png"):
    for split, count in (("train", train), ("val", val)):
        for color, of_class in enumerate(classes):
            folder = root / "mine" / split / of_class
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, color, i)).save(folder / name.format(i))


MINE = [*TINY, "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 2, "DATASET.IMAGE_SIZE", 8]
DIFFERENCES = {  # a folder of images on rank 1, and the words of the message for both ranks
    "same": None,
    "renamed class": ("class 1 of train is 'c'", "'b'"),
    "fewer to train": ("the number of train images is 6", "8"),
    "fewer to validate": ("the number of val images is 2", "4"),
    "renamed images": ("file names of the train images", ""),
    "moved": ("file names of the train images", ""),
    "none": ("cannot be listed", ""),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_images(root / "base")
    make_images(root / "same")
    make_images(root / "renamed class", ("a", "c"))
    make_images(root / "fewer to train", train=3)
    make_images(root / "fewer to validate", val=1)
    make_images(root / "renamed images", name="x{}.png")
    make_images(root / "moved")
    (root / "moved" / "mine" / "train" / "a" / "3.png").rename(root / "moved" / "mine" / "train" / "b" / "4.png")
    for name in ("base", "same", "renamed images", "fewer to train"):
        shards.main(shards.parse_args(["write", str(root / name / "mine")]))
    model = build_model(cfg := load_cfg(None, [*MINE, "DATASET.ROOT", str(root / "base")]))
    state = {"model": model.state_dict(), "config": cfg.dump(), "classes": ["a", "b"]}
    save_checkpoint(root / "trained.pt", state)
    return root


def start_on_folders(rank, root):
    """Return the messages for each difference in training, in training on shards, and in evaluation."""

    def train(world, devices, name, *opts):
        cfg = load_cfg(None, [*MINE, "DATASET.ROOT", str(root / (name if rank == 1 else "base")), *opts])
        build_run(cfg, run_folder(cfg, "run"), world, devices, None)

    def evaluate(world, devices, name, ckpt="trained.pt", *opts):
        opts = ["DATASET.ROOT", str(root / (name if rank == 1 else "base")), *opts]
        evaluate_on_ranks(str(root / ckpt), None, world, devices, opts)

    with ranks(None) as (world, devices):
        torch.set_num_threads(1)
        return [
            {name: message_of(lambda name=name: train(world, devices, name)) for name in DIFFERENCES},
            {name: message_of(lambda name=name: train(world, devices, name, "RUNTIME.INPUT", "shards"))
             for name in ("same", "renamed images", "fewer to train", "moved")},
            {name: message_of(lambda name=name: evaluate(world, devices, name)) for name in DIFFERENCES},
            message_of(lambda: evaluate(world, devices, "same", f"{rank}.pt")),
            message_of(lambda: evaluate(world, devices, "same", "trained.pt", "ISON.DEPTH", 8 + 6 * rank)),
        ]  # fmt: skip


def test_other_images_on_a_rank_are_found_before_the_first_step(images, tmp_path):
    messages, others = forked(2, start_on_folders, tmp_path, images)
    assert messages == others
    training, sharded, evaluated, other_file, other_depth = messages
    for name, words in DIFFERENCES.items():
        if words is None:
            assert training[name] == ""
        else:
            assert words[0] in training[name]
            assert f" on rank 1 on {HOST}" in training[name] or training[name].startswith(f"rank 1 on {HOST}: ")
            assert not words[1] or f", and {words[1]} on rank 0 on {HOST}; " in training[name]
    assert sharded["same"] == ""
    assert "the train images" in sharded["renamed images"]
    assert "number of train images is 6 on rank 1" in sharded["fewer to train"]
    assert "no shards" in sharded["moved"]
    seen = {name for name, message in evaluated.items() if f"rank 1 on {HOST}" in message}
    assert seen == DIFFERENCES.keys() - {"same", "fewer to train", "moved"}  # their validation images are equal
    assert "1.pt' on rank 1" in other_file
    assert "ISON.DEPTH is 14 on rank 1" in other_depth


def test_the_digest_depends_on_names_labels_and_their_order_only(images):
    def digest(name):
        return list(image_folder(images / name / "mine", "train").facts("train").values())[-1]

    assert digest("base") == digest("same")
    assert len({digest(name) for name in ("base", "renamed images", "moved", "fewer to train")}) == 4


def connect(rank):
    try:
        with ranks("none" if rank == 1 else None):
            return "connected"
    except RankError as error:
        return str(error)
    except SystemExit as silent:
        return silent.code


def test_a_rank_without_its_device_ends_all_of_them(tmp_path):
    message, code = forked(2, connect, tmp_path)
    assert message.startswith(f"rank 1 on {HOST}: ")
    assert "--gpus" in message
    assert code == 2


def connect_with_a_former_pillow(rank):
    version = importlib.metadata.version
    if rank == 1:
        importlib.metadata.version = lambda name: "0.1" if name == "pillow" else version(name)
    return connect(0)


def test_other_versions_of_the_decoders_end_all_ranks(tmp_path):
    message, code = forked(2, connect_with_a_former_pillow, tmp_path)
    assert f"version of pillow is '0.1' on rank 1 on {HOST}, and " in message
    assert code == 2


def other_version():
    isonet.__version__ = "0.0.0"


@pytest.mark.parametrize(
    ("first", "extra", "words"),
    [
        (None, ["RUNTIME.SEED", 7], ["RUNTIME.SEED is 7 on rank 1", "0 on rank 0"]),
        (None, ["--outptu", "x"], ["rank 1 on", "did you mean --output?"]),
        (other_version, [], ["version of isonet is '0.0.0' on rank 1"]),
    ],
)
def test_the_script_ends_with_code_2_on_all_ranks_and_one_line(tmp_path, first, extra, words):
    command = ["--cfg", CONFIG, "--output", "run", *TINY, "OUTPUT_DIR", tmp_path / "out"]
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
    started = [
        start("train.py", *command, *(extra if rank else []), cwd=tmp_path, first=first if rank else None,
              **env, **environment(rank, 2, store.port))
        for rank in range(2)
    ]  # fmt: skip
    main, other = (script.wait() for script in started)
    assert (main.returncode, other.returncode) == (2, 2), main.output + other.output
    (line,) = main.stderr.splitlines()
    assert all(word in line for word in ("error: ", HOST, *words)), line
    assert other.output == ""
    assert not (tmp_path / "out").exists()
