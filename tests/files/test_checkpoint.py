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

import isonet
from conftest import REPO
from isonet import build_model, load_cfg, load_weights
from isonet.errors import CheckpointError, ConfigError
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


@pytest.mark.parametrize(
    "before",
    ["net.", "module.net.", "net.module.", "net._orig_mod."],
    ids=["Lightning", "DataParallel around", "DataParallel inside", "compiled"],
)
@pytest.mark.parametrize("prefix", ["net.", "net"])
def test_a_prefix_selects_the_weights_of_the_network(tmp_path, before, prefix):
    torch.save({"state_dict": {**prefixed(before), "loss.weight": torch.ones(3)}, "epoch": 3}, tmp_path / "c.ckpt")
    assert same(load_weights(network(seed=1), tmp_path / "c.ckpt", prefix=prefix), network())


def test_a_missing_or_a_wrong_prefix_is_explained(tmp_path):
    torch.save({"state_dict": {**prefixed("net."), "loss.weight": torch.ones(3)}}, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match=r'another network .*prefix="net\.'):
        load_weights(network(), tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match=r"begins with model\..*net\., loss\."):
        load_weights(network(), tmp_path / "c.ckpt", prefix="model.")
    torch.save({**prefixed("net."), **prefixed("net.module.")}, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match="twice"):
        load_weights(network(), tmp_path / "c.ckpt", prefix="net.")


def test_other_weights_in_the_file_are_named(tmp_path, caplog):
    averaged = {name: value + 1 for name, value in network().state_dict().items()}
    torch.save({"state_dict": network().state_dict(), "state_dict_ema": averaged}, tmp_path / "c.pt")
    assert same(load_weights(network(seed=1), tmp_path / "c.pt"), network())
    (record,) = caplog.records
    assert "state_dict_ema" in record.getMessage()


@pytest.mark.parametrize("name", ["c.safetensors", "c.pt"])
def test_safetensors_of_other_programs(tmp_path, name):
    """The content determines the format of the file, and not its name."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    for weights in (network().state_dict(), prefixed("module.")):
        save_file(weights, tmp_path / name, metadata={"format": "pt"})
        assert same(load_weights(network(seed=1), tmp_path / name), network())
        assert Checkpoint.read(tmp_path / name).cfg is None
    half = network().half().state_dict()
    save_file(half, tmp_path / name)
    loaded = load_weights(network(seed=1), tmp_path / name)
    torch.testing.assert_close(loaded[0].weight, network()[0].weight, atol=1e-3, rtol=1e-3)
    assert loaded[0].weight.dtype == torch.float32


def test_damaged_safetensors_and_a_missing_package(tmp_path, monkeypatch):
    content = pytest.importorskip("safetensors.torch").save(network().state_dict())
    for data in (content[:-10], content + b"x", content[:100], b"\xff" + content[1:]):
        (tmp_path / "c.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"c\.safetensors: is damaged"):
            read_checkpoint(tmp_path / "c.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)  # cannot be imported
    with pytest.raises(CheckpointError, match=r"c\.safetensors: .*pip install safetensors"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_a_checkpoint_of_a_newer_version_says_so(tmp_path, caplog):
    content = {"model": network().state_dict(), "isonet": "99.0.0", "config": "ISON: {DEPTH: 8, WINGS: 2}"}
    torch.save(content, tmp_path / "c.pt")
    checkpoint = Checkpoint.read(tmp_path / "c.pt")
    load_weights(network(), tmp_path / "c.pt")
    assert ["99.0.0" in record.getMessage() for record in caplog.records] == [True, True]
    with pytest.raises(ConfigError, match=r"c\.pt.*ISON\.WINGS.*newer"):
        checkpoint.config()
    for version in (isonet.__version__, "0.0.9", "unknown", None):
        torch.save({**content, "isonet": version}, tmp_path / "c.pt")
        Checkpoint.read(tmp_path / "c.pt")
    assert len(caplog.records) == 2


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
    with pytest.raises(CheckpointError, match=r"is refused: .*torch\.save"):
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
