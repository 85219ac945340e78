"""The benchmarks of scale: their steps, their curves and their data sets, at small sizes."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.checkpoints import checkpoint_rows
from benchmarks.common import Row
from benchmarks.growth import AXES, VARIANTS, Axis, Point, curves, exponent, growth_rows, step
from benchmarks.plot import draw_growth
from benchmarks.start import start_epoch, write_folder, write_shards
from isonet.data.folders import image_folder
from isonet.data.shards.source import open_shards

CPU = torch.device("cpu")

linux = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory is measured on Linux")


@pytest.mark.parametrize("width", [16, 24])
def test_both_forms_of_a_network_of_any_width_take_the_same_steps(width):
    both = [step(variant, Point("cifar10_ISO56", 2, 32, 8, width), CPU) for variant in VARIANTS]
    first, again = ([take() for take in both] for _ in range(2))
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert again == first  # the learning rate is 0


def test_the_exponent_of_a_power_is_its_slope():
    rows = [Row(f"depth {x}", 3.0 * x**2, 5.0 * x**0.5, None, None, "ms") for x in (2, 7, 40)]
    rows += [Row("depth 2", 1.0, 1.0, None, None, "MiB"), Row("width 9", 1.0, 1.0, None, None, "ms")]
    curve = curves(rows, "depth")["ms"]
    assert list(curve) == [2, 7, 40]
    assert [exponent(curve, variant) for variant in VARIANTS] == pytest.approx([2.0, 0.5])


@linux
def test_the_rows_of_an_axis_and_their_picture(tmp_path):
    pytest.importorskip("matplotlib")
    axis = Axis("depth", Point("cifar10_ISO56", 2, 32, 8), (8, 14), (), "small")
    rows = growth_rows([axis], quick=False, repeats=1, device=CPU)
    assert [row.work for row in rows[:4]] == ["depth 8", "depth 8", "depth 14", "depth 14"]
    memory = curves(rows, "depth")["MiB"]
    assert all(row.baseline > 0 and row.value > 0 for row in memory.values())
    assert memory[14].baseline > memory[8].baseline
    others = [Row(row.work.replace("depth", each.field), *[row.baseline, row.value, None, None, row.unit])
              for each in AXES for row in rows[:4]]  # fmt: skip
    draw_growth(others, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_has_its_images_and_classes(tmp_path):
    write_folder(tmp_path, 2100)
    check_images(image_folder(tmp_path, "train"))


@linux
def test_the_shards_have_their_images_and_an_epoch_starts(tmp_path):
    write_shards(tmp_path / "shards", 2100)
    check_images(open_shards(tmp_path / "shards/shards/train"))
    found = start_epoch("shards", tmp_path / "shards", more=0)
    assert 0 < found["built"] < found["indices"]
    assert 0 < found["worker"] < found["imports"] <= found["peak"]


def check_images(source):
    assert len(source.labels) == 2100
    assert len(set(map(int, source.labels))) == len(source.classes) == 1000
    assert source.read(2099).size == (400, 300)


@linux
def test_a_checkpoint_is_compared_with_torchs(tmp_path):
    written, beside, read, beside_read = checkpoint_rows(1, tmp_path, "cifar10_ISO29")
    for row in (written, read):
        assert row.ratio == pytest.approx(row.baseline / row.value)
    assert beside.unit == beside_read.unit == "MiB"
    theirs, ours = (torch.load(tmp_path / name) for name in ("torch.pt", "ours.pt"))
    assert all(torch.equal(value, ours["model"][name]) for name, value in theirs["model"].items())
