"""Reading and writing checkpoints: every accepted form, every refusal, and a process that is killed during a write."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from conftest import REPO
from isonet import build_model, load_cfg, load_weights
from isonet.errors import CheckpointError
from isonet.files.checkpoint import Checkpoint, read_checkpoint, save_checkpoint


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def prefixed(prefix):
    return {prefix + name: value for name, value in network().state_dict().items()}


@pytest.mark.parametrize(
    "content",
    [
        network().state_dict(),
        prefixed("module."),
        prefixed("module._orig_mod."),
        {"net": prefixed("module."), "epoch": 3, "test_accuracy": [1.0]},
        {"model": network().state_dict(), "config": "ISON: {}"},
        {"state_dict": network().state_dict()},
    ],
    ids=["bare", "DataParallel", "compiled", "published", "ours", "state_dict"],
)
def test_accepted_forms(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    target = network(seed=1)
    assert load_weights(target, tmp_path / "c.pt") is target
    assert same(target, network())


def test_another_network_is_explained_and_changes_nothing(tmp_path):
    weights = network(width=5).state_dict()
    weights["extra"] = weights.pop("1.bias")
    torch.save(weights, tmp_path / "c.pt")
    target = network(seed=1)
    with pytest.raises(CheckpointError) as error:
        load_weights(target, tmp_path / "c.pt")
    assert "1 missing: 1.bias" in str(error.value)
    assert "1 unexpected: extra" in str(error.value)
    assert "0.weight (5, 3, 3, 3) for (4, 3, 3, 3)" in str(error.value)
    assert same(target, network(seed=1))


def test_another_config_than_the_checkpoints_is_named_by_its_keys(tmp_path):
    opts = ["DATASET.NAME", "digits", "DATASET.NUM_CLASSES", 10, "ISON.DEPTH"]
    cfg, other = load_cfg(None, [*opts, 8]), load_cfg(None, [*opts, 14, "ISON.HAS_ST", True])
    save_checkpoint(tmp_path / "c.pt", {"model": build_model(cfg).state_dict(), "config": cfg.dump()})
    with pytest.raises(CheckpointError) as error:
        Checkpoint.read(tmp_path / "c.pt").load_into(build_model(other))
    assert "ISON.DEPTH 8 in the file and 14 in the config, ISON.HAS_ST False in" in str(error.value)
    assert "leave out --cfg" in str(error.value)


def test_only_the_first_few_names_are_listed(tmp_path):
    torch.save({f"layer{i}": torch.zeros(1) for i in range(99)}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"99 unexpected: layer0, layer1, layer2, layer3, layer4, \.\.\."):
        load_weights(network(), tmp_path / "c.pt")


class MakesFolder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, save):
    save({"net": MakesFolder(tmp_path / "ran")}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"is refused: it (would call|has more than plain weights)"):
        load_weights(network(), tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not really a zip"])
def test_a_file_that_is_not_a_checkpoint(tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a checkpoint|its end is missing"):
        read_checkpoint(tmp_path / "c.pt")


def test_a_missing_file_a_file_without_a_dictionary_and_one_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "c.pt")
    torch.save({"epoch": 3}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"no state dictionary \(found epoch\)"):
        load_weights(network(), tmp_path / "c.pt")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other_files(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"model": network().state_dict()})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"model": lambda: None})
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]
    assert same(load_weights(network(seed=1), path), network())


def test_kill_9_while_writing_leaves_a_complete_file(tmp_path):
    """Kill a process that rewrites one checkpoint without pause. The file that remains still loads."""
    code = (
        "import itertools, pathlib, sys, torch\n"
        "from isonet.files.checkpoint import save_checkpoint\n"
        "for i in itertools.count():\n"
        "    save_checkpoint(pathlib.Path(sys.argv[1]), {'model': {'w': torch.full((2_000_000,), float(i))}})\n"
    )
    path = tmp_path / "c.pt"
    for pause in (0.05, 0.21, 0.37):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=REPO)
        while not path.exists() and writer.poll() is None:
            time.sleep(0.01)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        weights = read_checkpoint(path)["model"]["w"]
        assert weights.unique().numel() == 1
