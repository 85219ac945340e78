"""Fixtures: reference figures, real images, and a script run as a user runs it."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

# The suite runs on the CPU, where results are bit-identical; test_gpu.py makes the GPUs visible again
VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel, and so do a test and its processes

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.reference import NUMERICS, fill, options, reference_batch, reference_model
from launch import REPO, end_all, run_script

__all__ = ["NUMERICS", "REPO", "fill", "options", "reference_batch", "reference_model", "run_script"]

REFERENCE = Path(__file__).parent / "reference"
SHARED_DATA = REPO.parent / "shared" / "data"

# The smallest network (6n+2 with n = 1), on the digits included in the package. A run takes seconds
TINY = ["DATASET.NAME", "digits", "DATASET.NUM_CLASSES", 10, "ISON.DEPTH", 8, "SOLVER.MAX_EPOCHS", 1]


@pytest.fixture(autouse=True)
def _no_leaks():
    """Remove a test's logging handlers, determinism setting and scripts before the next test."""
    yield
    end_all()
    log = logging.getLogger("isonet")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = True
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def no_pictures():
    """Hide matplotlib so that runs draw no pictures. The picture takes more than half of a one-epoch run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        yield


def pytest_addoption(parser):
    text = "also run the long tests, and the long form of others (make torture)"
    parser.addoption("--torture", action="store_true", help=text)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--torture"):
        for item in items:
            if item.get_closest_marker("torture"):
                item.add_marker(pytest.mark.skip(reason="a long test: make torture"))


@pytest.fixture(scope="session")
def torture(request) -> bool:
    """Whether fault tests run in their long form."""
    return request.config.getoption("--torture")


@pytest.fixture
def tally(request):
    """Call ``tally(outcome)`` for each fault tried: "survived", or "refused" with one sentence."""
    return lambda outcome, times=1: request.node.user_properties.append(("fault", (outcome, times)))


def pytest_terminal_summary(terminalreporter):
    counts, seconds = defaultdict(Counter), Counter()
    for report in itertools.chain(*terminalreporter.stats.values()):
        if getattr(report, "nodeid", "").startswith("tests/faults/"):
            family = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_")
            seconds[family] += getattr(report, "duration", 0)
            if getattr(report, "when", "") == "call":
                for name, (outcome, times) in getattr(report, "user_properties", ()):
                    counts[family][outcome] += times * (name == "fault")
    if not counts:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'':28}{'tried':>8}{'survived':>10}{'refused':>9}{'seconds':>9}")
    seconds["total"] = seconds.total()
    for name, outcomes in {**counts, "total": sum(counts.values(), Counter())}.items():
        terminalreporter.write_line(
            f"{name:28}{outcomes.total():8}{outcomes['survived']:10}{outcomes['refused']:9}{seconds[name]:9.0f}"
        )


def once(*opts: object) -> list[object]:
    """Return KEY VALUE pairs with the last value of each key. A command line may give each key once."""
    return options(dict(zip(opts[::2], opts[1::2], strict=True)))


def assert_same(a, b):
    """Assert that two nested states are bit-identical."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b
