"""The isometry report: its numbers compared with its parts, its page, which needs no other file, and mistakes."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import math
import re

import pytest
import torch
from PIL import Image

from conftest import REPO, TINY
from isonet import build_model, load_cfg, ortho_penalty
from isonet.errors import UserError, run_cli
from isonet.isometry import conv_spectrum, signal_norms
from isonet.isometry.page import page
from isonet.plots import isometry as plots
from isonet.tools import isometry as tool
from isonet.training.run import run_training

pytest.importorskip("matplotlib")
DIGITS = REPO / "configs" / "digits_ISO20.yaml"
SMALL = ["ISON.DEPTH", "8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the smallest network with shortcuts. It logs the extremes of the spectrum."""
    place = tmp_path_factory.mktemp("runs")
    opts = [*TINY, "ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.0]
    return run_training(load_cfg(None, [*opts, "OUTPUT_DIR", str(place), "RUNTIME.LOG_SPECTRUM", 1]), "run")


def report(out, *args):
    tool.main(tool.parse_args([*map(str, args), "--output", str(out)]))
    return json.loads((out / "report.json").read_text()), (out / "index.html").read_text()


def test_the_numbers_match_the_network(tmp_path):
    numbers, _ = report(tmp_path, "--cfg", DIGITS, "--images", 5, "--steps", 4, *SMALL)
    (found,) = numbers.values()
    torch.manual_seed(0)
    model = build_model(load_cfg(DIGITS, SMALL)).eval()
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert [conv["name"] for conv in found["convs"]] == [n for n, m in model.named_modules() if hasattr(m, "stride")]
    strided = next(conv for conv in found["convs"] if conv["name"] == "s2.b1.f.a")
    spectrum = conv_spectrum(model.s2.b1.f.a, 8, 8)
    assert (strided["smallest"], strided["largest"]) == (spectrum.smallest, spectrum.largest)
    assert strided["singular_values"] == 4 * 4 * 32
    near = (spectrum.all() - 1).abs() <= 0.1
    assert strided["near_1"] == pytest.approx(near.float().mean().item())
    assert sum(conv["penalty"] or 0 for conv in found["convs"]) == pytest.approx(ortho_penalty(model).item(), abs=1e-9)
    assert [row["part"] for row in found["jacobian"]] == ["stem", "s1", "s2", "s3", "head", "whole"]
    assert found["jacobian"][1]["largest"] == pytest.approx(1)  # delta initialisation, and no value is clipped
    kept = strided["kept"]  # 16 of the 32 singular values at each position can be 1
    assert (kept["singular_values"], kept["smallest"], kept["near_1"]) == (4 * 4 * 16, 1.0, 1.0)
    found["signal"][-1]["backward"] = 0.0
    assert "no gradient" in page(numbers)
    assert len(found["signal"]) == len(signal_norms(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1])))
    assert found["images"] == [5, 3, 8, 8]


@pytest.fixture(scope="module")
def compared(tmp_path_factory, trained):
    """The numbers and the page of three networks, two of them with shortcuts."""
    place = tmp_path_factory.mktemp("compared")
    plain = load_cfg(DIGITS, ["ISON.HAS_BN", True, "ISON.HAS_ST", True, "ISON.SReLU", False])
    (place / "plain.yaml").write_text(plain.dump())
    return report(
        place / "out", "--compare", f"start={DIGITS}", f"<b>trained</b>={trained.path}",
        f"$a_$={place / 'plain.yaml'}", "--steps", 3, *SMALL,
    )  # fmt: skip


def test_the_networks_share_the_axes_of_the_singular_values(compared):
    numbers, _ = compared
    figure = plots.spectrum_by_layer(numbers)
    first, *others = figure.axes
    assert len(others) == 2
    convs = [conv for each in numbers.values() for conv in each["convs"]]
    low, high = first.get_ylim()
    assert low <= min(conv["kept"]["smallest"] for conv in convs) < max(conv["largest"] for conv in convs) <= high
    for axis in others:
        assert axis.get_ylim() == first.get_ylim()
        assert axis.get_xlim() == first.get_xlim()
        labels = [text.get_text() for text in axis.get_xticklabels()]
        assert labels == [text.get_text() for text in first.get_xticklabels()]
        assert (
            labels.index("s1.b1.b") < labels.index("s2.b1.proj") < labels.index("s3.b1.a")
        )  # although "start" lacks some of these layers


def test_the_line_of_a_network_with_shortcuts_passes_through_its_trunk(compared):
    numbers, _ = compared
    for (name, each), panel in itertools.product(numbers.items(), (0, 1)):
        key, base = ("forward", 0) if panel == 0 else ("backward", -1)
        names = [layer["name"] for layer in each["signal"]]
        trunk = [".f." not in layer or name == "start" for layer in names]  # "start" has no shortcuts
        assert not all(trunk) or name == "start"
        lines = {line.get_label(): line for line in plots.norms_by_layer(numbers).axes[panel].lines}
        drawn = [layer[key] / each["signal"][base][key] for layer, on in zip(each["signal"], trunk, strict=True) if on]
        assert lines[name].get_ydata() == pytest.approx(drawn)
        if not all(trunk):
            (branches,) = (line for label, line in lines.items() if label.startswith(f"{name}, "))
            assert branches.get_linestyle() == "None"
            norms = [layer[key] for layer, on in zip(each["signal"], trunk, strict=True) if not on]
            drawn = [norm / each["signal"][base][key] or math.nan for norm in norms]  # a norm of 0 is not drawn
            assert branches.get_ydata() == pytest.approx(drawn, nan_ok=True)
            assert branches.get_label().endswith("0") == (not any(norms))


def test_a_network_without_a_gradient_has_no_line(compared):
    numbers = copy.deepcopy(compared[0])
    numbers["start"]["signal"][-1]["backward"] = 0.0
    (line,) = (
        line for line in plots.norms_by_layer(numbers).axes[1].lines if line.get_label().startswith("start")
    )  # fmt: skip
    assert all(math.isnan(value) for value in line.get_ydata())


def test_a_bound_on_a_singular_value_is_hollow(compared):
    """The table shows a bound on the smallest value with the sign <."""
    numbers, text = compared
    rows = [row for each in numbers.values() for row in each["jacobian"]]
    (axis,) = plots.jacobian_by_part(numbers).axes
    drawn = [(line.get_fillstyle(), y) for line in axis.lines for y in line.get_ydata() if line.get_marker() != "None"]
    hollow = sorted(y for style, y in drawn if style == "none")
    bounds = [max(row["smallest"], row["rounding"]) for row in rows if row["smallest_is_bound"]]
    bounds += [row["largest"] for row in rows if row["largest_is_bound"]]
    assert hollow == pytest.approx(sorted(bounds))
    assert 0 < len(hollow) < len(drawn) == 2 * len(rows)
    assert text.count("<td>&lt; ") == sum(row["smallest_is_bound"] for row in rows)


def test_a_penalty_of_0_is_a_bound(compared):
    numbers, _ = compared
    lines = plots.penalty_by_layer(numbers).axes[0].lines
    (start,) = (line for line in lines if line.get_label() == "start")
    assert all(math.isnan(value) for value in start.get_ydata())  # the delta initialisation has no penalty
    hollow = [line.get_ydata() for line in lines if line.get_fillstyle() == "none"]
    assert 6 in [sum(not math.isnan(value) for value in values) for values in hollow]


def test_the_page_needs_no_other_file_and_shows_every_network(compared):
    names = ["start", "<b>trained</b>", "$a_$"]  # matplotlib would parse the last one as an invalid formula
    numbers, text = compared
    assert list(numbers) == names
    columns = [row.count("<td>") for row in re.findall(r"<tr>.*</tr>", text)]
    assert 0 < max(columns) <= 4  # a phone shows four columns without scrolling
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


def test_the_metrics_of_a_run_have_the_extremes_of_its_convs(trained, tmp_path):
    (row,) = map(json.loads, trained.metrics.read_text().splitlines())
    numbers, _ = report(tmp_path, "--ckpt", trained.path, "--steps", 2)
    (found,) = numbers.values()
    # The feature maps have at most 8 pixels a side, so all of their frequencies are evaluated
    assert row["largest_singular_value"] == pytest.approx(max(conv["largest"] for conv in found["convs"]), rel=1e-4)
    smallest = min(conv["smallest"] for conv in found["convs"])
    assert row["smallest_singular_value"] == pytest.approx(smallest, abs=1e-4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name a network"),
        (["--cfg", "nothing.yaml"], "nothing.yaml"),
        (["--cfg", DIGITS, "--ckpt", "nothing.pt"], "nothing.pt"),
        (["--cfg", DIGITS, "--images", "0"], "--images"),
        (["--compare", f"a={DIGITS}", f"a={DIGITS}"], "NAME=NETWORK"),
        (["--cfg", DIGITS, *SMALL, "--output", "/proc/nothing"], "/proc/nothing"),
        (["--ckpt", "a.pt", "--compare", DIGITS], "--ckpt"),
        (["--compare", "RUNTIME.SEED", "3"], "name a network"),
    ],
)
def test_a_mistake_is_one_line(args, words, capsys):
    try:
        code = run_cli(tool.main, tool.parse_args([str(arg) for arg in [*args, "--steps", 1]]))
    except SystemExit as ended:
        code = ended.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("error: ")
    assert words in line


def networks(*arguments):
    args = tool.parse_args(list(map(str, arguments)))
    return tool.networks_of(args, load_cfg(args.cfg) if args.cfg else None)


def test_a_page_of_the_user_is_not_replaced(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match=r"--output .*index\.html"):
        tool.main(tool.parse_args(["--cfg", "configs/digits_ISO20.yaml", "--output", str(tmp_path)]))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_names_are_given_before_an_equals_sign_unless_it_belongs_to_a_run(trained, tmp_path):
    run = tmp_path / trained.path.parent.name / "coeff-ORTHO_COEFF=1e-4"
    run.mkdir(parents=True)
    (run / "best.pt").touch()
    assert networks("--compare", run, f"named={run}", "a=b.pt") == {str(run): str(run), "named": str(run), "a": "b.pt"}
    cfg = tmp_path / "c.yaml"
    cfg.write_text(load_cfg(trained.config, ["OUTPUT_DIR", str(tmp_path)]).dump())
    assert networks("--cfg", cfg, "--compare", run.name) == {run.name: run.name}
    assert networks("--compare", run.name) == {"coeff-ORTHO_COEFF": "1e-4"}
    assert networks("--cfg", cfg) == {"c": str(cfg)}
    assert networks("--cfg", cfg, "--ckpt", "a") == {"a": "a"}


def test_overrides_may_follow_the_networks_that_are_compared():
    args = tool.parse_args(
        ["--compare", "a=x.yaml", "b=y.yaml", "RUNTIME.SEED", "3", "--steps", "2", "ISON.DEPTH", "8"]
    )
    assert args.compare == ["a=x.yaml", "b=y.yaml"]
    assert args.opts == ["RUNTIME.SEED", "3", "ISON.DEPTH", "8"]


def test_the_precision_follows_the_config(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # restored afterwards
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    for deterministic, tf32 in ((True, False), (False, True)):
        options = ["RUNTIME.DETERMINISTIC", deterministic, "RUNTIME.TF32", tf32, *SMALL]
        args = tool.parse_args(["--cfg", str(DIGITS), "--images", "1", "--steps", "1", *map(str, options)])
        tool.measure_network(args.cfg, args, torch.device("cpu"))
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.backends.cudnn.allow_tf32 == tf32


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def measure(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("isonet.isometry.measure.measure", measure)  # a test cannot use up the memory
    assert run_cli(tool.main, tool.parse_args(["--cfg", str(DIGITS), *SMALL])) == 2
    assert capsys.readouterr().err.startswith("error: out of memory")
