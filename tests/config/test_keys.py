"""The table of keys: the requirements on a row, and the objects derived from the rows."""

from __future__ import annotations

import pytest

from isonet.config import default_cfg, flat, parse_cfg
from isonet.config.keys import BEFORE_THE_KEY, KEYS, MAY_DIFFER
from isonet.config.kinds import Bool, Float, Int, ListOf, OneOf, Text


@pytest.mark.parametrize("row", KEYS.values(), ids=list(KEYS))
def test_a_row_is_complete(row):
    assert len(row.name.split(".")) <= 2
    assert row.name.replace(".", "").replace("_", "").isalnum()
    assert row.meaning.isprintable()
    assert row.meaning == row.meaning.strip()
    assert 10 <= len(row.meaning) <= 110
    assert not row.meaning.endswith(".")  # the meaning is a phrase, not a sentence

    items = row.kind.items if isinstance(row.kind, ListOf) else row.kind
    assert isinstance(items, Bool | Int | Float | Text)
    if isinstance(items, Int | Float):
        assert items.low < items.high
    if isinstance(items, OneOf):
        assert len(set(items.choices)) == len(items.choices) > 1
    for value in (row.default, row.before):
        if value is not None:
            read = row.kind.read(value)
            assert (read, type(read)) == (value, type(value))
            assert row.kind.fault(read) == ""
    assert row.before != row.default


@pytest.mark.parametrize("row", KEYS.values(), ids=list(KEYS))
def test_a_value_of_the_wrong_kind_is_refused(row):
    with pytest.raises((TypeError, ValueError)):
        row.kind.read(object())
    assert row.kind.takes


def test_the_tree_and_the_sets_are_derived_from_the_rows():
    assert flat(default_cfg()) == {name: row.default for name, row in KEYS.items()}
    assert flat(parse_cfg(default_cfg().dump(), "a checkpoint")) == flat(default_cfg())
    assert {name for name, row in KEYS.items() if row.may_differ} == MAY_DIFFER
    assert "OUTPUT_DIR" in MAY_DIFFER
    assert not {"ISON.DEPTH", "SOLVER.BASE_LR", "RUNTIME.SEED"} & MAY_DIFFER
    assert BEFORE_THE_KEY == {"SOLVER.DROP_LAST": False, "RUNTIME.CHANNELS_LAST": False}


def test_two_trees_share_nothing():
    one, other = default_cfg(), default_cfg()
    one.SOLVER.LR_MILESTONES.append(7)
    assert KEYS["SOLVER.LR_MILESTONES"].default == other.SOLVER.LR_MILESTONES
