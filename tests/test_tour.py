"""The outputs in docs/tour.md match the outputs of its code."""

from __future__ import annotations

import re
import sys

import pytest

from conftest import REPO

sys.path.insert(0, str(REPO / "docs"))
from run_tour import BLOCK, TOUR, run

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")


def test_every_quick_block_prints_its_output():
    text = TOUR.read_text(encoding="utf-8")
    before, after = ([block[3] or "" for block in BLOCK.finditer(each)] for each in (text, run(text, with_slow=False)))
    assert len(before) == len(after) >= 6
    assert all(before[:-1])
    for old, new in zip(before, after, strict=True):
        assert NUMBER.sub("#", old) == NUMBER.sub("#", new)
        found, shown = ([float(n) for n in NUMBER.findall(each)] for each in (new, old))
        assert found == pytest.approx(shown, rel=0.05, abs=0.02)  # other processors round differently


def test_a_changed_output_is_detected():
    text = TOUR.read_text(encoding="utf-8")
    assert "cuts 16%" in text
    assert run(text.replace("cuts 16%", "cuts 17%"), with_slow=False) != text.replace("cuts 16%", "cuts 17%")
