"""Exported files against the network they came from, run by the programs that they are for; and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from conftest import REPO, TINY
from isonet import build_model, load_cfg
from isonet.config import parse_cfg
from isonet.data.build import build_loader
from isonet.errors import UserError, run_cli
from isonet.files.checkpoint import save_checkpoint
from isonet.tools.export import FORMATS, main, metadata, parse_args
from isonet.tools.export import export as export_file
from isonet.tools.trained import Trained, load_trained

NAMES = [f"digit {index}" for index in range(10)]
RESIDUAL = ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.5]


@pytest.fixture
def network(tmp_path):
    """A residual network of random weights, at best.pt of ``tmp_path``."""
    torch.manual_seed(0)
    cfg = load_cfg(None, [*TINY, *RESIDUAL])
    model = build_model(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {"model": model.state_dict(), "config": cfg.dump(), "classes": NAMES}
    save_checkpoint(tmp_path / "best.pt", state)
    return model.requires_grad_(False)


def export(capsys, *arguments):
    """Exit code, standard output and standard error of the tool."""
    code = run_cli(main, parse_args([str(argument) for argument in arguments]))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def assert_described(found):
    """The metadata of a file: config, classes, and how its images are made."""
    assert parse_cfg(found["config"], "it") == load_cfg(None, [*TINY, *RESIDUAL])
    assert json.loads(found["classes"]) == NAMES
    images = json.loads(found["images"])
    loader = build_loader(load_cfg(None, TINY), "val")
    black = (0 - torch.tensor(images["mean"])) / torch.tensor(images["std"])
    torch.testing.assert_close(next(iter(loader))[0][0].amin((1, 2)), black)  # a digit has black pixels
    assert (images["resize"], images["crop"]) == (8, 8)


def test_onnx_as_a_command(network, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    command = [sys.executable, "-m", "isonet.tools.export", "--ckpt", tmp_path, "--format", "onnx", "--opset", "20"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1  # the exporter's own words are not among it
    assert "largest difference" in done.stdout

    file = tmp_path / "best.onnx"
    session = onnxruntime.InferenceSession(file)
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, 8, 8])
    assert (answer.name, answer.shape[1:]) == ("logits", [10])
    for count in (1, 7):
        images = torch.randn(count, 3, 8, 8)
        (found,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(images), rtol=1e-4, atol=1e-4)
    assert_described(session.get_modelmeta().custom_metadata_map)
    import onnx

    assert [each.version for each in onnx.load(file).opset_import if not each.domain] == [20]


def test_a_file_of_another_network_fails_its_check(network, tmp_path):
    """And leaves no trace: the former file stays as it was."""
    pytest.importorskip("safetensors")
    trained, other = (load_trained(str(tmp_path / "best.pt")) for _ in range(2))
    with torch.no_grad():
        other.model.head.fc.bias[3] += 0.01
    form, output = FORMATS["safetensors"], tmp_path / "best.safetensors"
    difference, largest = export_file(trained, form, output, 18, 0)
    former = output.read_bytes()
    wrong = replace(form, encode=lambda _, opset: form.encode(other, opset))
    with pytest.raises(UserError, match=r"differ from the network's by 1\.0e-02, .* the new file has been removed"):
        export_file(trained, wrong, output, 18, 1e-4)
    assert (difference, largest > 0) == (0, True)
    assert output.read_bytes() == former
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "best.safetensors"]


def test_a_torch_program(capsys, network, tmp_path):
    output = tmp_path / "mine.pt2"
    code, out, err = export(capsys, "--ckpt", tmp_path / "best.pt", "--format", "torch", "--output", output)
    assert (code, err) == (0, "")
    assert out.startswith(f"{output}: torch, ")
    found = dict.fromkeys(["config", "classes", "images"], "")
    program = torch.export.load(output, extra_files=found).module()
    for count in (1, 7):
        images = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(program(images), network(images))
    assert_described(found)


def test_safetensors(capsys, network, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    code, out, err = export(capsys, "--ckpt", tmp_path, "--format", "safetensors", "--tolerance", 0)
    assert (code, err) == (0, "")
    assert "largest difference 0.0e+00" in out
    weights = load_file(tmp_path / "best.safetensors")
    assert set(weights) == set(network.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    with safetensors.safe_open(tmp_path / "best.safetensors", framework="pt") as file:
        assert_described(file.metadata())


def test_the_metadata_says_how_photographs_are_cut(network, tmp_path):
    cfg = load_cfg(None, ["DATASET.NAME", "pets", "DATASET.NUM_CLASSES", 2, "ISON.DEPTH", 18])
    found = metadata(Trained(tmp_path, cfg, network, ["cat", "dog"]))
    assert json.loads(found["images"]) == {
        "resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    assert json.loads(found["classes"]) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("form", "package"),
    [("onnx", "onnx"), ("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("safetensors", "safetensors")],
)
def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch, form, package):
    for name in ("onnx", "onnxruntime", "onnxscript", "safetensors"):
        monkeypatch.setitem(sys.modules, name, sys if name != package else None)  # None: cannot be imported
    code, out, err = export(capsys, "--ckpt", "a.pt", "--format", form)
    assert (code, out) == (2, "")
    assert err == f"error: --format {form} needs the package {package}: pip install 'isonet[onnx]'\n"


def test_places_that_cannot_be_written(capsys, network, tmp_path):
    ckpt = tmp_path / "best.pt"
    for output, why in (
        (tmp_path / "gone/a.pt2", "there is no such folder"),
        (tmp_path, "is a folder"),
        (ckpt, "is the checkpoint itself"),
    ):
        code, _, err = export(capsys, "--ckpt", ckpt, "--format", "torch", "--output", output)
        assert code == 2
        assert err.startswith(f"error: --output {output}: {why}")


def test_a_checkpoint_that_is_not_there_or_carries_no_config(capsys, network, tmp_path):
    code, _, err = export(capsys, "--ckpt", tmp_path / "gone.pt", "--format", "torch")
    assert code == 2
    assert "no checkpoint" in err
    save_checkpoint(tmp_path / "bare.pt", {"net": network.state_dict()})
    code, _, err = export(capsys, "--ckpt", tmp_path / "bare.pt", "--format", "torch")
    assert (code, "carries no config" in err) == (2, True)


@pytest.mark.parametrize("option", [("--opset", "17"), ("--tolerance", "-1"), ("--format", "tflite")])
def test_wrong_options(capsys, option):
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--ckpt", "a.pt", "--format", "onnx", *option])
    assert stopped.value.code == 2
    assert option[0] in capsys.readouterr().err
