"""A global batch gives the same losses and accuracy on 1, 2 and 4 processes, or in 1, 2 and 4 pieces."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from conftest import TINY
from isonet import load_cfg
from isonet.files.checkpoint import read_checkpoint
from isonet.files.run_folder import LATEST
from isonet.training.run import run_training
from isonet.training.step import TrainStep
from launch import forked

BATCH, RATE, STEPS = 144, 0.02, 10  # 1,437 images: 9 whole steps, and one of 141, not divisible by 2 or 4
ALL_IMAGES = ["SOLVER.DROP_LAST", False]
WAYS = [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)]  # processes, SOLVER.ACCUMULATE

pytestmark = pytest.mark.usefixtures("no_pictures")


def cfg(tmp_path, processes, accumulate, *opts):
    shares = processes * accumulate
    return load_cfg(None, [
        *TINY, "OUTPUT_DIR", str(tmp_path), "RUNTIME.LOG_EVERY", 1, "SOLVER.ACCUMULATE", accumulate,
        "SOLVER.TRAIN_BATCH_SIZE", BATCH // shares, "SOLVER.BASE_LR", RATE / shares,
        "SOLVER.TEST_BATCH_SIZE", 50, *opts,
    ])  # fmt: skip


def train(_rank, tmp_path, config, resume=None):
    """Run the training and return this rank's share of the losses of each step."""
    losses = []

    def step(self, *args, real=TrainStep.__call__, **kwargs):
        output = real(self, *args, **kwargs)
        losses.append((float(output.cross_entropy), float(output.penalty)))
        return output

    TrainStep.__call__, real = step, TrainStep.__call__
    try:
        run_training(config, "run", resume=resume)
    finally:
        TrainStep.__call__ = real
    return losses


def run(tmp_path, processes, accumulate, *opts, resume=None):
    """Return the losses of each step summed over ranks, the metrics, and the last checkpoint."""
    config = cfg(tmp_path, processes, accumulate, *opts)
    if processes == 1:
        losses = [train(0, tmp_path, config, resume)]
    else:
        losses = forked(processes, train, tmp_path, tmp_path, config, resume)
    folder = tmp_path / "digits" / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return torch.tensor(losses, dtype=torch.float64).sum(0), rows, read_checkpoint(folder / "latest.pt")


DROPOUT = ["ISON.DROPOUT", True, "ISON.DROPOUT_RATE", 0.3]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A dictionary from SOLVER.DROP_LAST to the run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {drop_last: run(folder / str(drop_last), 1, 1, "SOLVER.DROP_LAST", drop_last) for drop_last in (True, False)}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The folder of a run of four processes on all images."""
    folder = tmp_path_factory.mktemp("four")
    run(folder, 4, 1, *ALL_IMAGES)
    return folder


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("processes", "accumulate"), WAYS[1:])
def test_a_global_batch_gives_the_same_losses_however_it_is_distributed(
    alone, tmp_path, processes, accumulate, drop_last
):
    losses, rows, state = run(tmp_path, processes, accumulate, "SOLVER.DROP_LAST", drop_last)
    alone = alone[drop_last]
    assert len(losses) == len(alone[0]) == STEPS - drop_last
    torch.testing.assert_close(losses, alone[0], rtol=1e-5, atol=0)
    for row, expected in zip(rows, alone[1], strict=True):
        assert row["top1"] == expected["top1"]  # exactly equal
        assert row["top5"] == expected["top5"]
        assert row == pytest.approx(expected, rel=1e-5)
    for name, value in alone[2]["model"].items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-4, atol=1e-6)


def test_a_penalty_at_every_third_step_has_the_same_losses_on_two_processes(tmp_path):
    seldom = ["ISON.ORTHO_EVERY", 3, "ISON.ORTHO_COEFF", 1e-2]
    one, two = (run(tmp_path / str(processes), processes, 1, *seldom) for processes in (1, 2))
    torch.testing.assert_close(two[0], one[0], rtol=1e-5, atol=0)
    assert one[0][:, 1].unique().numel() == 4  # of the initial weights, and of steps 3, 6 and 9
    assert two[1] == [pytest.approx(row, rel=1e-5) for row in one[1]]
    assert all(row["penalty"] == np.float32(row["penalty"]) for row in two[1])  # as a resumed run restores it


def test_dropout_depends_on_the_piece_of_the_batch_and_not_on_its_rank(tmp_path):
    ways = [run(tmp_path / f"{p}{a}", p, a, *DROPOUT, *ALL_IMAGES) for p, a in ((4, 1), (2, 2), (1, 4))]
    for losses, _, _ in ways[1:]:
        torch.testing.assert_close(losses, ways[0][0], rtol=1e-5, atol=0)


def test_batch_norm_uses_the_statistics_of_rank_0(tmp_path):
    """In training, each rank has separate statistics, like GPUs under DataParallel. Evaluation must use the same."""
    _, rows, state = run(tmp_path, 2, 1, "ISON.HAS_BN", True, "ISON.SReLU", False, "ISON.DIRAC_INIT", False)
    config = cfg(tmp_path, 2, 1, "ISON.HAS_BN", True, "ISON.SReLU", False, "ISON.DIRAC_INIT", False)
    from isonet import build_model
    from isonet.data import build_loader
    from isonet.training import evaluate

    model = build_model(config)
    model.load_state_dict(state["model"])
    found = evaluate(model, build_loader(config, "val"), torch.device("cpu"))
    assert (found.top1, found.top5) == (rows[-1]["top1"], rows[-1]["top5"])


@pytest.mark.parametrize("processes", [2, 1, 3])
def test_another_number_of_processes_keeps_the_global_batch_or_logs_the_change(four, tmp_path, processes):
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    more = [*ALL_IMAGES, "SOLVER.MAX_EPOCHS", 2, "SOLVER.TRAIN_BATCH_SIZE", BATCH // 4, "SOLVER.BASE_LR", RATE / 4]
    losses, rows, _ = run(tmp_path, processes, 1, *more, resume=LATEST)
    log = (tmp_path / "digits" / "run" / "log.txt").read_text()
    if processes == 3:
        (line,) = [line for line in log.splitlines() if "global batch" in line]
        assert re.search(r"144 -> 108 .*4 GPUs x 36 .*3 GPUs x 36 .*0\.02 -> 0\.015", line), line
    else:
        assert len(losses) == STEPS
        assert rows[1]["learning_rate"] == pytest.approx(RATE)
        (line,) = [line for line in log.splitlines() if "global batch" in line]
        assert re.search(rf"4 GPUs .*{processes} .*SOLVER.ACCUMULATE {4 // processes} .*144", line), line
        assert "another value" not in log


def test_every_start_of_the_same_command_keeps_the_global_batch(four, tmp_path):
    """Each start requests the same as the first one: 144 images on 4 processes."""
    more = [*ALL_IMAGES, "SOLVER.TRAIN_BATCH_SIZE", BATCH // 4, "SOLVER.BASE_LR", RATE / 4]
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    for epochs, processes in enumerate((2, 2, 1), start=2):
        losses, rows, state = run(tmp_path, processes, 1, *more, "SOLVER.MAX_EPOCHS", epochs, resume=LATEST)
        assert len(losses) == STEPS
        assert rows[-1]["learning_rate"] == pytest.approx(RATE)
        assert state["num_devices"] == processes
    log = (tmp_path / "digits" / "run" / "log.txt").read_text()
    assert log.count("the global batch") == log.count("keeps the global batch")


@pytest.mark.parametrize("schedule", ["steps", "linear"])
def test_a_run_resumed_within_an_epoch_by_fewer_processes_leaves_out_the_same_images(tmp_path, schedule):
    """Of 9 steps, 4 processes save after step 5. Then 2 processes run the other 4 steps, with equal losses."""
    more = ["SOLVER.SCHEDULE", schedule, "RUNTIME.SAVE_EVERY", 5, "RUNTIME.KEEP", 9]
    whole, rows, _ = run(tmp_path / "whole", 4, 1, *more)
    part = str(tmp_path / "whole" / "digits" / "run" / "epoch0001-step000005.pt")
    more += ["SOLVER.TRAIN_BATCH_SIZE", BATCH // 4, "SOLVER.BASE_LR", RATE / 4]
    losses, resumed, state = run(tmp_path / "resumed", 2, 1, *more, resume=part)
    assert (len(whole), len(losses)) == (9, 4)
    torch.testing.assert_close(losses, whole[5:], rtol=1e-5, atol=0)
    assert resumed == [pytest.approx(rows[0], rel=1e-5)]
    if schedule == "linear":  # the rate of the last step, after 8 of 9 batches
        assert state["optimizer"]["param_groups"][1]["lr"] == pytest.approx(RATE / 9)


def test_a_penalty_that_overflows_on_one_rank_skips_the_update_on_all(tmp_path):
    for finite, unchanged in forked(2, step_of_overflowing_penalty, tmp_path):
        assert (finite, unchanged) == (False, True)


def step_of_overflowing_penalty(rank):
    from isonet import build_model
    from isonet.fast_penalty.plan import deal_out
    from isonet.ortho import penalised_convs
    from isonet.training import build_optimizer
    from isonet.training.distributed import connected

    config = load_cfg(None, [*TINY, "ISON.HAS_ST", True])
    with connected(None) as (world, (device,)):
        model = build_model(config)
        _, (first, *_) = deal_out(penalised_convs(model), 2)  # a layer of rank 1
        with torch.no_grad():
            first[1].weight *= 1e12  # the square of its Gram matrix overflows float32
        before = [parameter.clone() for parameter in model.parameters()]
        step = TrainStep(world.data_parallel(model, device), model, build_optimizer(model, config), 1e-30, world=world)
        output = step(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), 8)
        assert torch.isfinite(output.penalty) == (rank == 0)
        return bool(output.finite), all(map(torch.equal, before, model.parameters()))


def test_a_rank_without_images_does_not_change_the_result(tmp_path):
    """With a batch of one image, the second rank has none. Weights and batch norm equal those of one process."""
    (alone,) = [step_of_one_image(0, 1)]
    for weights in forked(2, step_of_one_image, tmp_path, 2):
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-8)


def step_of_one_image(rank, ranks):
    from isonet import build_model
    from isonet.training import build_optimizer
    from isonet.training.distributed import connected

    config = load_cfg(None, [*TINY, "ISON.HAS_BN", True, "ISON.SReLU", False])
    images, labels = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8), torch.tensor([4])
    with connected(None) as (world, (device,)):
        torch.manual_seed(0)
        model = build_model(config)
        step = TrainStep(world.data_parallel(model, device), model, build_optimizer(model, config), 1e-4, world=world)
        mine = world.share.of(1)
        for _ in range(2):  # the second step uses the batch norm statistics of the first
            step(images[mine], labels[mine], 1)
        world.broadcast(model.buffers())
        return {name: value.clone() for name, value in model.state_dict().items()}
