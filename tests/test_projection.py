"""The projection: parts compared with independent counts, times with closed forms, and the tables in the docs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.projection import CONFIG, Assumed, count, parts, project, table
from conftest import REPO
from isonet import build_model, load_cfg

EASY = Assumed(tflops=1.0, tflops_bf16=4.0, nvlink_gbs=1e9, latency_us=0.0, cores_per_gpu=10_000)


@pytest.fixture(scope="module")
def counted():
    return count()


def test_the_counts_match_the_network(counted):
    model = build_model(load_cfg(CONFIG))
    assert counted.gradient_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert counted.flop_image == pytest.approx(6 * 4.09e9, rel=0.02)  # three products of ResNet-50's 4.09 GMACs
    assert counted.shares[1] > counted.shares[8] >= counted.shares[64] >= counted.shares[512] > 0
    assert counted.shares[8] >= counted.shares[1] / 8


def test_without_communication_the_time_is_inversely_proportional_to_the_gpus(counted):
    free = replace(counted, gradient_bytes=0, shares=dict.fromkeys((1, 8, 64, 512), 0.0))
    eight, many = project(8, free, EASY), project(64, free, EASY)
    assert eight.computing == pytest.approx(64 * counted.flop_image / 1e9)
    assert eight.step == many.step == eight.computing
    assert many.efficiency == 1.0
    steps = 1_281_167 // (64 * 64)  # with 64 GPUs, which leave out up to one step of images more than 8 GPUs
    assert eight.minutes == pytest.approx(8 * many.minutes, rel=1 / steps)
    assert project(8, free, EASY, bf16=True).step == pytest.approx(eight.step / 4)


def test_communication_costs_what_the_backward_pass_does_not_hide(counted):
    sending = 2 * 7 / 8 * counted.gradient_bytes / 1e9 * 1e3  # 8 nodes at 1 GB/s
    slow = replace(EASY, node_gbs=1.0, hidden=0.0, gpus_per_node=8)
    assert project(64, counted, slow).sending == pytest.approx(sending, rel=1e-3)
    assert project(8, counted, slow).sending == pytest.approx(0, abs=1e-3)
    hidden = replace(slow, hidden=0.1, tflops=40.0)
    found = project(64, counted, hidden)
    assert found.sending == pytest.approx(sending - 0.1 * found.computing, rel=1e-3)
    assert found.step == pytest.approx(found.computing + found.penalty + found.sending)


def test_a_slow_input_determines_the_time_of_a_step(counted):
    few = replace(EASY, cores_per_gpu=1, tflops=1e4)
    found = project(8, counted, few)
    assert found.step == found.input == pytest.approx(1e3 * 64 / counted.core)


def test_the_docs_have_the_tables_that_the_command_prints(counted):
    text = (REPO / "docs" / "scaling.md").read_text()
    assert parts(counted, Assumed()) in text
    assert table(counted, Assumed()) in text
