"""Predictions in every format, compared with the network's softmax on evaluation batches, and mistakes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import REFERENCE, TINY
from isonet import build_model, load_cfg
from isonet.data import build_loader
from isonet.data.sources import digits
from isonet.errors import run_cli
from isonet.files.checkpoint import save_checkpoint
from isonet.tools.predict import main, parse_args

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SMALL_NET = ["ISON.DEPTH", 18, "DATASET.NUM_CLASSES", 3, "RUNTIME.SEED", 5]


def network(cfg):
    """Return a network with random weights that are large enough for clearly different probabilities."""
    torch.manual_seed(cfg.RUNTIME.SEED)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.head.fc.weight.normal_()
    return model


def checkpoint(path, cfg, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {"model": network(cfg).state_dict(), "config": cfg.dump(), **more})
    return path


def expected(cfg):
    """Return the probabilities of the validation images, (N, classes)."""
    model = network(cfg)
    with torch.no_grad():
        return torch.cat([model(images).softmax(1) for images, _ in build_loader(cfg, "val")])


def predict(capsys, *arguments):
    """Return the exit code, standard output and standard error of the tool."""
    code = run_cli(main, parse_args([str(argument) for argument in arguments]))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def assert_predicted(answer, wanted, names):
    """Compare a JSON answer with probabilities (N, classes), one row for each image."""
    found = json.loads(answer)
    assert len(found) == len(wanted)
    for item, row in zip(found, wanted, strict=True):
        best = row.topk(len(item["top"]))
        torch.testing.assert_close(torch.tensor([each["probability"] for each in item["top"]]), best.values)
        assert [each["label"] for each in item["top"]] == best.indices.tolist()
        assert [each["class"] for each in item["top"]] == [names[label] for label in best.indices]
    return found


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """All validation digits as PNG files. Their sorted names have the order of the digits."""
    folder = tmp_path_factory.mktemp("digits")
    for index, pixels in enumerate(digits("val").images):
        place = folder / f"{index // 100}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:03}.png")
    return folder


@pytest.fixture
def few(digit_files):
    return [digit_files / "0" / f"{index:03}.png" for index in range(3)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the checkpoint of a network for the digits."""
    cfg = load_cfg(None, TINY)
    return checkpoint(tmp_path_factory.mktemp("run") / "best.pt", cfg, classes=NAMES).parent


def test_digits_are_predicted_as_in_evaluation(capsys, run, digit_files):
    """The folder is large enough that worker processes read it."""
    code, out, err = predict(capsys, "--ckpt", run, "--format", "json", "--batch-size", 150, digit_files)
    assert (code, err) == (0, "")
    found = assert_predicted(out, expected(load_cfg(None, TINY)), NAMES)
    assert [item["image"] for item in found] == sorted(map(str, digit_files.rglob("*.png")))
    assert {len(item["top"]) for item in found} == {5}


@pytest.mark.parametrize(("size", "decoder"), [(96, "pil"), (96, "torch"), (32, "torch")])
def test_photographs_are_predicted_as_in_evaluation(capsys, tmp_path, size, decoder):
    """JPEG files of several shapes: large images are resized and cropped, and small ones are kept in memory."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index, (name, shape) in enumerate({"ant": (70, 200), "bee": (150, 100), "cat": (97, 96)}.items()):
            path = tmp_path / "data/set" / split / name / f"{index}.jpg"
            path.parent.mkdir(parents=True)
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize(shape).save(path, quality=95)
    opts = ["DATASET.ROOT", str(tmp_path / "data"), "DATASET.NAME", "set", "DATASET.IMAGE_SIZE", size,
            "DATASET.NUM_WORKERS", 0, "RUNTIME.DECODER", decoder, *SMALL_NET]  # fmt: skip
    cfg = load_cfg(None, opts if size > 64 else [*opts, "ISON.DEPTH", 8])
    ckpt = checkpoint(tmp_path / "a.pt", cfg, classes=["ant", "bee", "cat"])
    code, out, _ = predict(capsys, "--ckpt", ckpt, "--format", "json", tmp_path / "data/set/val")
    assert code == 0
    assert_predicted(out, expected(cfg), ["ant", "bee", "cat"])  # the default is 5 classes, and there are 3


def test_all_formats_have_the_same_predictions(capsys, run, few):
    answers = {}
    for kind in ("json", "csv", "table"):
        code, answers[kind], _ = predict(capsys, "--ckpt", run, "--top", 2, "--format", kind, *few)
        assert code == 0
    flat = [
        (item["image"], rank, each["label"], each["class"], each["probability"])
        for item in json.loads(answers["json"])
        for rank, each in enumerate(item["top"], start=1)
    ]
    assert len(flat) == 6
    rows = csv.DictReader(io.StringIO(answers["csv"]))
    assert flat == [
        (row["image"], int(row["rank"]), int(row["label"]), row["class"], float(row["probability"])) for row in rows
    ]
    header, *lines = answers["table"].splitlines()
    assert header.split() == ["image", "rank", "class", "probability"]
    assert [line.split()[-3:] for line in lines] == [[str(r), name, f"{p:.4f}"] for _, r, _, name, p in flat]
    assert [line.split()[0] for line in lines[::2]] == list(map(str, few))
    assert len(set(map(len, lines))) == 1


def test_paths_are_read_from_standard_input(capsys, monkeypatch, run, few):
    lines = "".join(f"{path}\n" for path in [*few, "no\x1b[2Jsuch.png"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    code, out, err = predict(capsys, "--ckpt", run, "--format", "csv", "-", "RUNTIME.SEED", 1)
    assert code == 2
    missing, last = err.splitlines()
    assert missing.startswith("error: no\\x1b[2Jsuch.png: ")
    assert last.startswith("error: 1 of 4 ")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["image"] for row in rows[::5]] == list(map(str, few))
    assert {row["class"] for row in rows} <= set(NAMES)


def test_images_that_cannot_be_read_are_reported_and_the_others_predicted(capsys, run, few, tmp_path):
    (tmp_path / "bad").mkdir()
    for index in range(9):  # so that there are more than two whole batches
        (tmp_path / f"bad/{index}.png").write_bytes(b"no picture")
    with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")  # a relative path, because the absolute one may be too long for a socket
    (tmp_path / "empty").mkdir()
    places = [few[0], tmp_path / "bad", tmp_path / "socket.png", tmp_path / "empty", tmp_path / "gone.png", few[1]]
    code, out, err = predict(capsys, "--ckpt", run, "--batch-size", 4, "--format", "json", *places)
    assert code == 2
    assert_predicted(out, expected(load_cfg(None, TINY))[:2], NAMES)
    *lines, last = err.splitlines()
    assert last.startswith("error: 12 of 14 ")
    for name, times in {"bad/": 9, "socket.png": 1, "empty": 1, "gone.png": 1}.items():
        assert sum(line.startswith(f"error: {tmp_path}/{name}") for line in lines) == times
    assert len(lines) == 12


def test_files_beside_the_images_of_a_folder_are_counted_in_a_warning(capsys, run, tmp_path):
    for name in ("1.jfif", "2.GIF", "3.avif", "4.heic", "5.svg"):
        with open(tmp_path / name, "wb") as file:
            Image.new("RGB", (8, 8)).save(file, {"2": "GIF", "3": "AVIF"}.get(name[0], "JPEG"))
    code, out, err = predict(capsys, "--ckpt", run, "--format", "json", tmp_path)
    assert code == 0
    assert [os.path.basename(answer["image"]) for answer in json.loads(out)] == ["1.jfif", "2.GIF", "3.avif"]
    assert err.startswith(f"warning: {tmp_path}: ")
    assert err.count("\n") == 1
    assert " 2 files" in err
    assert "4.heic" in err


def test_a_checkpoint_without_config_needs_one_and_its_classes_are_numbers(capsys, tmp_path, digit_files):
    ckpt, cfg = REFERENCE / "cifar10_ISO20.pt", tmp_path / "a.yaml"
    image = digit_files / "0/000.png"
    code, out, err = predict(capsys, "--ckpt", ckpt, image)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {ckpt}: ")
    assert "--cfg" in err
    cfg.write_text("DATASET: {NAME: CIFAR10, NUM_CLASSES: 10}\nISON: {DEPTH: 20}\n")
    code, out, _ = predict(capsys, "--ckpt", ckpt, "--cfg", cfg, "--format", "json", "--top", 10, image)
    assert code == 0
    ((item,),) = (json.loads(out),)
    assert sorted(each["class"] for each in item["top"]) == list("0123456789")
    assert sum(each["probability"] for each in item["top"]) == pytest.approx(1)


def test_names_of_classes_from_a_file(capsys, run, few, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"digit {index}\n" for index in range(10)))
    code, out, _ = predict(capsys, "--ckpt", run, "--classes", names, "--format", "json", few[0])
    assert code == 0
    assert all(each["class"] == f"digit {each['label']}" for each in json.loads(out)[0]["top"])
    names.write_text("one\n\nthree\n")
    code, _, err = predict(capsys, "--ckpt", run, "--classes", names, few[0])
    assert code == 2
    assert all(words in err for words in (str(names), "3 classes", "line 2", "10 classes"))


def test_overrides_follow_the_images(capsys, run, few):
    plain = predict(capsys, "--ckpt", run, "--format", "json", few[0])[1]
    code, out, _ = predict(capsys, "--ckpt", run, "--format", "json", few[0], "DATASET.MEAN", "[0, 0, 0]")
    assert code == 0
    assert out != plain
    code, _, err = predict(capsys, "--ckpt", run, few[0], "RUNTIME.AMPP", "bf16")
    assert (code, err.startswith("error: "), "did you mean RUNTIME.AMP?" in err) == (2, True, True)


@pytest.mark.parametrize(
    ("logits", "first"),
    [
        ([0.0, 2.0, 1.0, 2.0, 0.0, 2.0, 0.0, 0.0, 2.0, 2.0], 1),
        ([0.0] * 10, 0),
        ([1e-9, 2e-9, 4e-9, 3e-9] + [0.0] * 6, 2),  # softmax rounds all of these to equal probabilities
    ],
)
def test_the_first_classes_are_the_same_for_every_top(capsys, tmp_path, few, logits, first):
    cfg = load_cfg(None, TINY)
    model = network(cfg)
    with torch.no_grad():
        model.head.fc.weight.zero_()
        model.head.fc.bias.copy_(torch.tensor(logits))
    save_checkpoint(tmp_path / "a.pt", {"model": model.state_dict(), "config": cfg.dump()})
    ranking = []
    for top in (10, 5, 2, 1):
        _, out, _ = predict(capsys, "--ckpt", tmp_path / "a.pt", "--format", "json", "--top", top, few[0])
        (item,) = json.loads(out)
        labels = [each["label"] for each in item["top"]]
        ranking = ranking or labels
        assert labels == ranking[:top]
        probabilities = [each["probability"] for each in item["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
    assert ranking[0] == first
    assert sorted(ranking) == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--top", "0", "a.png"], "--top"), (["--batch-size", "-1", "a.png"], "--batch-size"), ([], "standard input")],
)
def test_a_wrong_option_is_named(capsys, arguments, word):
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--ckpt", "a.pt", *arguments])
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


def test_a_network_that_overflows_predicts_nothing(capsys, tmp_path, few):
    cfg = load_cfg(None, TINY)
    model = network(cfg)
    with torch.no_grad():
        model.head.fc.weight.fill_(3e38)
    save_checkpoint(tmp_path / "a.pt", {"model": model.state_dict(), "config": cfg.dump()})
    code, out, err = predict(capsys, "--ckpt", tmp_path / "a.pt", "--format", "json", *few)
    assert (code, out) == (2, "")
    assert "non-finite" in err
