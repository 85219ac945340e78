"""Exported files compared with their network, run by the programs that read them, and mistakes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
import sys

import pytest
import torch

from conftest import REFERENCE, TINY, assert_same
from isonet import build_model, load_cfg
from isonet.config import parse_cfg
from isonet.data.build import build_loader
from isonet.errors import NonFiniteError, UserError, run_cli
from isonet.files.checkpoint import save_checkpoint
from isonet.tools.export import main, parse_args
from isonet.tools.formats import export as export_file
from isonet.tools.formats import metadata
from isonet.tools.trained import Trained, load_trained
from launch import forked

NAMES = [f"digit {index}" for index in range(10)]
RESIDUAL = ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.5]


@pytest.fixture
def network(tmp_path):
    """A residual network with random weights, which is saved to best.pt in ``tmp_path``."""
    torch.manual_seed(0)
    cfg = load_cfg(None, [*TINY, *RESIDUAL])
    model = build_model(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {"model": model.state_dict(), "config": cfg.dump(), "classes": NAMES}
    save_checkpoint(tmp_path / "best.pt", state)
    return model.requires_grad_(False)


def export(capfd, *arguments):
    """Return the exit code, standard output and standard error of the tool, including the output of libraries."""
    code = run_cli(main, parse_args([str(argument) for argument in arguments]))
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def assert_described(found):
    """Check the metadata of a file: config, classes and preprocessing."""
    assert parse_cfg(found["config"], "it") == load_cfg(None, [*TINY, *RESIDUAL])
    assert json.loads(found["classes"]) == NAMES
    images = json.loads(found["images"])
    loader = build_loader(load_cfg(None, TINY), "val")
    black = (0 - torch.tensor(images["mean"])) / torch.tensor(images["std"])
    torch.testing.assert_close(next(iter(loader))[0][0].amin((1, 2)), black)  # a digit has black pixels
    assert (images["resize"], images["crop"]) == (8, 8)


def test_onnx(network, tmp_path):
    """Run in a process of its own: onnxruntime starts threads, and the workers of other tests are forked."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    forked(1, check_onnx, tmp_path, tmp_path, network)


def check_onnx(_rank, folder, network):
    import onnx
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run_cli(main, parse_args(["--ckpt", str(folder), "--format", "onnx", "--opset", "20"]))
    assert (code, err.getvalue()) == (0, "")
    (line,) = out.getvalue().splitlines()  # the exporter's own messages are suppressed
    assert line.startswith(f"{folder}/best.onnx: onnx, ")

    file = folder / "best.onnx"
    session = onnxruntime.InferenceSession(file)
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, 8, 8])
    assert (answer.name, answer.shape[1:]) == ("logits", [10])
    for count in (1, 7):
        images = torch.randn(count, 3, 8, 8)
        (found,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(images), rtol=1e-4, atol=1e-4)
    assert_described(session.get_modelmeta().custom_metadata_map)
    assert [each.version for each in onnx.load(file).opset_import if not each.domain] == [20]


def test_a_file_that_fails_its_check_is_not_written_and_the_old_one_stays(network, tmp_path):
    pytest.importorskip("safetensors")
    trained, output = load_trained(str(tmp_path / "best.pt")), tmp_path / "best.safetensors"
    difference, largest = export_file(trained, NAMES, "safetensors", output, 18, 0)
    assert difference == 0 < largest
    former = output.read_bytes()
    trained.model.register_forward_hook(lambda _, __, logits: logits + 0.01)  # not visible in any weight
    with pytest.raises(UserError, match=r"1\.0e-02.*--tolerance"):
        export_file(trained, NAMES, "safetensors", output, 18, 1e-4)
    assert output.read_bytes() == former
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "best.safetensors"]


def test_a_network_that_overflows_is_not_exported(network, tmp_path):
    pytest.importorskip("safetensors")
    trained = load_trained(str(tmp_path / "best.pt"))
    with torch.no_grad():
        trained.model.head.fc.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match="non-finite"):
        export_file(trained, NAMES, "safetensors", tmp_path / "best.safetensors", 18, 1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_a_torch_program(capfd, network, tmp_path):
    output = tmp_path / "mine.pt2"
    code, out, err = export(capfd, "--ckpt", tmp_path / "best.pt", "--format", "torch", "--output", output)
    assert (code, err) == (0, "")
    assert out.startswith(f"{output}: torch, ")
    found = dict.fromkeys(["config", "classes", "images"], "")
    program = torch.export.load(output, extra_files=found).module()
    for count in (1, 7):
        images = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(program(images), network(images))
    assert_described(found)
    code, _, err = export(capfd, "--ckpt", output, "--format", "safetensors")
    assert (code, "exported program" in err) == (2, True)


def test_safetensors(capfd, network, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    code, out, err = export(capfd, "--ckpt", tmp_path, "--format", "safetensors", "--tolerance", 0)
    assert (code, err) == (0, "")
    assert "largest difference 0.0e+00" in out
    weights = load_file(tmp_path / "best.safetensors")
    assert set(weights) == set(network.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    with safetensors.safe_open(tmp_path / "best.safetensors", framework="pt") as file:
        assert_described(file.metadata())


@pytest.mark.parametrize("classes", [NAMES, NAMES[:7], None], ids=["named", "some named", "numbers"])
def test_safetensors_are_a_checkpoint_of_the_same_bytes_each_time(capfd, network, tmp_path, classes):
    pytest.importorskip("safetensors")
    cfg = load_cfg(None, [*TINY, *RESIDUAL])
    state = {"model": network.state_dict(), "config": cfg.dump(), "epoch": 3, "classes": classes}
    save_checkpoint(tmp_path / "best.pt", state)
    contents = set()
    for _ in range(8):  # the library writes five entries of metadata in one of 120 orders
        assert export(capfd, "--ckpt", tmp_path, "--format", "safetensors")[0] == 0
        contents.add((tmp_path / "best.safetensors").read_bytes())
    assert len(contents) == 1
    assert int.from_bytes(contents.pop()[:8], "little") % 8 == 0
    trained = load_trained(str(tmp_path / "best.safetensors"))
    assert (trained.cfg, trained.classes, trained.epoch) == (cfg, classes, 3)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in trained.model.state_dict().items())
    assert export(capfd, "--ckpt", tmp_path / "best.safetensors", "--format", "safetensors", "--output",
                  tmp_path / "again")[0] == 0  # fmt: skip
    assert (tmp_path / "again").read_bytes() == (tmp_path / "best.safetensors").read_bytes()


def test_a_published_checkpoint_is_written_as_the_authors_wrote_it(capfd, tmp_path):
    """Compare with a file of the published implementation, whose test.py loads ``net`` into DataParallel."""
    (tmp_path / "a.yaml").write_text("DATASET: {NAME: CIFAR10, NUM_CLASSES: 10}\nISON: {DEPTH: 20}\n")
    shutil.copy(REFERENCE / "cifar10_ISO20.pt", tmp_path)
    arguments = ["--ckpt", tmp_path / "cifar10_ISO20.pt", "--cfg", tmp_path / "a.yaml", "--format", "published"]
    code, _, err = export(capfd, *arguments)
    assert (code, err) == (0, "")
    written = tmp_path / "cifar10_ISO20-published.pt"
    theirs, ours = (torch.load(file, weights_only=True)["net"] for file in (REFERENCE / "cifar10_ISO20.pt", written))
    assert_same(theirs, ours)
    parallel = torch.nn.DataParallel(build_model(load_cfg(tmp_path / "a.yaml")))
    parallel.load_state_dict(torch.load(written)["net"])
    first = written.read_bytes()
    export(capfd, *arguments)
    assert written.read_bytes() == first


def test_the_metadata_says_how_photographs_are_resized_and_cropped(network, tmp_path):
    cfg = load_cfg(None, ["DATASET.NAME", "pets", "DATASET.NUM_CLASSES", 2, "ISON.DEPTH", 18])
    found = metadata(Trained(tmp_path, cfg, network), ["cat", "dog"])
    assert json.loads(found["images"]) == {
        "resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    assert json.loads(found["classes"]) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("form", "package"),
    [("onnx", "onnx"), ("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("safetensors", "safetensors")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(capfd, monkeypatch, form, package):
    for name in ("onnx", "onnxruntime", "onnxscript", "safetensors"):
        monkeypatch.setitem(sys.modules, name, sys if name != package else None)  # None: cannot be imported
    code, out, err = export(capfd, "--ckpt", "a.pt", "--format", form)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert all(word in err for word in (f"--format {form}", f" {package}", "pip install ", f"'{package}>="))


def test_an_output_that_cannot_be_written_is_refused(capfd, network, tmp_path):
    ckpt = tmp_path / "best.pt"
    for output, why in (
        (tmp_path / "gone/a.pt2", "not a writable folder"),
        (tmp_path, "is a folder"),
        (ckpt, "checkpoint"),
    ):
        code, _, err = export(capfd, "--ckpt", ckpt, "--format", "torch", "--output", output)
        assert code == 2
        assert err.startswith(f"error: --output {output}")
        assert why in err.removeprefix(f"error: --output {output}")


def test_a_missing_checkpoint_and_one_without_a_config(capfd, network, tmp_path):
    code, _, err = export(capfd, "--ckpt", tmp_path / "gone.pt", "--format", "torch")
    assert (code, "gone.pt" in err) == (2, True)
    save_checkpoint(tmp_path / "bare.pt", {"net": network.state_dict()})
    code, _, err = export(capfd, "--ckpt", tmp_path / "bare.pt", "--format", "torch")
    assert (code, "--cfg" in err) == (2, True)


@pytest.mark.parametrize("option", [("--opset", "17"), ("--tolerance", "none"), ("--format", "tflite")])
def test_a_wrong_option_is_named(capsys, option):
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--ckpt", "a.pt", "--format", "onnx", *option])
    assert stopped.value.code == 2
    assert option[0] in capsys.readouterr().err
