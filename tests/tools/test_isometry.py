"""The isometry report: its numbers are those of the parts, its page stands alone, its command says what is wrong."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from conftest import REPO, TINY
from isonet import build_model, load_cfg, ortho_penalty
from isonet.errors import run_cli
from isonet.isometry import conv_spectrum, signal_norms
from isonet.isometry.page import page
from isonet.tools import isometry as tool
from isonet.training.run import run_training

pytest.importorskip("matplotlib")
DIGITS = REPO / "configs" / "digits_ISO20.yaml"
SMALL = ["ISON.DEPTH", "8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the smallest network with shortcuts, and the values that its metrics have of the spectrum."""
    place = tmp_path_factory.mktemp("runs")
    opts = [*TINY, "ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.0]
    return run_training(load_cfg(None, [*opts, "OUTPUT_DIR", str(place), "RUNTIME.LOG_SPECTRUM", 1]), "run")


def report(out, *args):
    tool.main(tool.parse_args([*map(str, args), "--output", str(out)]))
    return json.loads((out / "report.json").read_text()), (out / "index.html").read_text()


def test_the_numbers_are_those_of_the_network(tmp_path):
    numbers, _ = report(tmp_path, "--cfg", DIGITS, "--images", 5, "--steps", 4, *SMALL)
    (found,) = numbers.values()
    torch.manual_seed(0)
    model = build_model(load_cfg(DIGITS, SMALL)).eval()
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert [conv["name"] for conv in found["convs"]] == [n for n, m in model.named_modules() if hasattr(m, "stride")]
    strided = next(conv for conv in found["convs"] if conv["name"] == "s2.b1.f.a")
    spectrum = conv_spectrum(model.s2.b1.f.a, 8, 8)
    assert (strided["smallest"], strided["largest"]) == (spectrum.smallest, spectrum.largest)
    assert strided["singular_values"] == sum(strided["histogram"]) == 4 * 4 * 32
    near = (spectrum.all() - 1).abs() <= 0.1
    assert strided["near_1"] == pytest.approx(near.float().mean().item())
    assert sum(conv["penalty"] or 0 for conv in found["convs"]) == pytest.approx(ortho_penalty(model).item(), abs=1e-9)
    assert [row["part"] for row in found["jacobian"]] == ["stem", "s1", "s2", "s3", "head", "whole"]
    assert found["jacobian"][1]["largest"] == pytest.approx(1)  # delta initialised, and nothing below the shift
    found["jacobian"][-1]["smallest_error"] = math.nan
    assert "<td>nan</td>" in page(numbers)
    assert len(found["signal"]) == len(signal_norms(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1])))
    assert found["images"] == [5, 3, 8, 8]


def test_the_page_needs_nothing_but_itself_and_shows_every_network(tmp_path, trained):
    names = ["start", "<b>trained</b>", "$a_$"]  # the last would be a broken formula of matplotlib
    plain = load_cfg(DIGITS, ["ISON.HAS_BN", True, "ISON.HAS_ST", True, "ISON.SReLU", False])
    (tmp_path / "plain.yaml").write_text(plain.dump())
    numbers, text = report(
        tmp_path / "out", "--compare", f"start={DIGITS}", f"<b>trained</b>={trained.path}",
        f"$a_$={tmp_path / 'plain.yaml'}", "--steps", 3, *SMALL,
    )  # fmt: skip
    assert list(numbers) == names
    assert "<b>trained" not in text
    assert "&lt;b&gt;trained&lt;/b&gt;" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 5
    for picture in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture)))
        assert image.width == 1200
        assert len(image.convert("L").getcolors()) > 20  # not blank
    assert numbers["<b>trained</b>"]["multipliers"].keys() == {"s1.b1", "s2.b1", "s3.b1"}
    assert all(math.isfinite(row["largest"]) for each in numbers.values() for row in each["jacobian"])


def test_metrics_of_a_run_have_the_extremes_of_its_convs(trained, tmp_path):
    (row,) = map(json.loads, trained.metrics.read_text().splitlines())
    numbers, _ = report(tmp_path, "--ckpt", trained.path, "--steps", 2)
    (found,) = numbers.values()
    # All frequencies of feature maps of up to 8 pixels are looked at
    assert row["largest_singular_value"] == pytest.approx(max(conv["largest"] for conv in found["convs"]), rel=1e-4)
    smallest = min(conv["smallest"] for conv in found["convs"])
    assert row["smallest_singular_value"] == pytest.approx(smallest, abs=1e-4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name a network"),
        (["--cfg", "nothing.yaml"], "no such config"),
        (["--cfg", DIGITS, "--ckpt", "nothing.pt"], "no checkpoint nothing.pt"),
        (["--cfg", DIGITS, "--images", "0"], "must be at least 1"),
        (["--compare", f"a={DIGITS}", f"a={DIGITS}"], "the same name"),
        (["--cfg", DIGITS, "--output", "/proc/nothing"], "cannot be made"),
        (["--ckpt", "a.pt", "--compare", DIGITS], "--ckpt and --compare"),
        (["--compare", "RUNTIME.SEED", "3"], "before the overrides"),
    ],
)
def test_a_mistake_is_one_line(args, words, capsys):
    try:
        code = run_cli(tool.main, tool.parse_args([str(arg) for arg in [*args, "--steps", 1]]))
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr().err.splitlines()
    assert code == 2
    assert told[-1].startswith("error: ")
    assert words in told[-1]


@pytest.fixture
def unmeasured(monkeypatch):
    """Networks are made and not measured."""
    monkeypatch.setattr(tool, "measure", lambda *_: {})
    monkeypatch.setattr(tool, "page", lambda _: "")


def test_a_run_whose_name_has_an_equals_sign_is_taken_as_it_is(unmeasured, trained, tmp_path):
    run = tmp_path / trained.path.parent.name / "coeff-ORTHO_COEFF=1e-4"
    run.mkdir(parents=True)
    (run / "best.pt").write_bytes(trained.best.read_bytes())
    numbers, _ = report(tmp_path / "out", "--compare", run, f"named={run}")
    assert {name: found["source"] for name, found in numbers.items()} == dict.fromkeys(
        [str(run), "named"], str(run / "best.pt")
    )
    cfg = tmp_path / "c.yaml"
    cfg.write_text(load_cfg(trained.config, ["OUTPUT_DIR", str(tmp_path)]).dump())
    tool.main(tool.parse_args(["--cfg", str(cfg), "--compare", run.name, "--output", str(tmp_path / "out")]))
    assert list(json.loads((tmp_path / "out" / "report.json").read_text())) == [run.name]


def test_overrides_may_follow_the_networks_that_are_compared():
    args = tool.parse_args(
        ["--compare", "a=x.yaml", "b=y.yaml", "RUNTIME.SEED", "3", "--steps", "2", "ISON.DEPTH", "8"]
    )
    assert args.compare == ["a=x.yaml", "b=y.yaml"]
    assert args.opts == ["RUNTIME.SEED", "3", "ISON.DEPTH", "8"]


def test_it_computes_as_the_config_says_and_explains_where_memory_ends(monkeypatch, tmp_path, capsys):
    asked = []

    def measure(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tool, "set_precision", lambda *settings: asked.append(settings))
    monkeypatch.setattr(tool, "measure", measure)
    options = [
        "--cfg",
        str(DIGITS),
        "--output",
        str(tmp_path),
        "RUNTIME.DETERMINISTIC",
        "True",
        "RUNTIME.TF32",
        "False",
    ]
    assert run_cli(tool.main, tool.parse_args(options)) == 2
    assert asked == [(True, False)]
    assert capsys.readouterr().err.startswith("error: out of memory")


def test_from_a_shell(tmp_path):
    command = [sys.executable, "-m", "isonet.tools.isometry"]
    shown = subprocess.run([*command, "--help"], cwd=REPO, capture_output=True, text=True, check=True)
    assert "--compare start=configs/digits_ISO20.yaml" in shown.stdout
