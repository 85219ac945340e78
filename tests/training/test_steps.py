"""The step, the sums over an epoch, evaluation, devices."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isonet import SReLU, ortho_penalty
from isonet.errors import DeviceError
from isonet.training import TrainStep, evaluate
from isonet.training.devices import explain_out_of_memory, parse_gpu_ids, pick_devices
from isonet.training.metrics import EpochSums, NonFiniteStep, best_classes
from isonet.training.step import StepOutput

CPU = torch.device("cpu")


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), SReLU(6), nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(6, 7))  # fmt: skip


def batches(sizes, classes=7):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, classes, (n,), generator=generator))
        for n in sizes
    ]


def sums_of_epoch(step, data):
    sums = EpochSums(CPU)
    for images, labels in sums.timed(data):
        sums.add(step(images, labels), labels)
    return sums


def test_a_step_is_plain_gradient_descent_on_loss_and_penalty():
    model, twin = small_network(), small_network()
    ((images, labels),) = batches([5])
    out = TrainStep(model, model, torch.optim.SGD(model.parameters(), 0.1), ortho_coeff=0.01)(images, labels)

    cross_entropy, penalty = F.cross_entropy(twin(images), labels), ortho_penalty(twin)
    (cross_entropy + 0.01 * penalty).backward()
    assert out.cross_entropy.item() == pytest.approx(cross_entropy.item())
    assert out.penalty.item() == pytest.approx(penalty.item())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - 0.1 * q.grad)


def test_epoch_means_weight_each_image_equally():
    model = small_network()
    data = batches([4, 4, 2])
    step = TrainStep(model, model, torch.optim.SGD(model.parameters(), 0.0), 0.1)
    sums = sums_of_epoch(step, data)
    means = sums.means(model)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    logits = model(images).detach()
    assert means["cross_entropy"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert means["train_top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert means["penalty"] == pytest.approx(ortho_penalty(model).item(), rel=1e-6)
    assert (sums.steps, sums.taken) == (3, 10)
    assert 0 <= sums.waited <= sums.seconds
    resumed = EpochSums(CPU, part=sums.part())
    assert resumed.means() == means
    assert (resumed.steps, resumed.taken) == (3, 10)


def test_evaluation_against_one_pass_over_everything():
    model = small_network().train()
    data = batches([5, 5, 3])
    found = evaluate(model, data, CPU)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        logits = model(images)
    ranks = (logits >= logits.gather(1, labels[:, None])).sum(1)  # 1 for the first guess
    assert found.images == 13
    assert found.top1 == pytest.approx(100 * (ranks <= 1).double().mean().item())
    assert found.top5 == pytest.approx(100 * (ranks <= 5).double().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert model.training


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("classes", [3, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_first_guess_is_numpys_argmax_where_logits_tie(dtype, classes, layout):
    """This holds in training, in evaluation and for every number of classes. The lowest class wins a tie."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1000, classes, generator=generator).to(dtype)
    logits[0] = 0.0  # all logits are equal
    labels = torch.randint(0, classes, (1000,), generator=generator)
    truth = np.argmax(logits.float().numpy(), axis=1)
    assert ((logits == logits.amax(1, keepdim=True)).sum(1) > 1).any(), "no ties to test"
    if layout == "columns":
        logits = logits.T.contiguous().T
    for count in (1, 2, 5, classes):
        guesses = best_classes(logits, count).numpy()
        assert np.array_equal(guesses[:, 0], truth)
        chosen = np.take_along_axis(logits.float().numpy(), guesses, axis=1)
        assert np.array_equal(
            chosen, -np.sort(-logits.float().numpy(), axis=1)[:, :count]
        )  # the largest logits in decreasing order
        assert all(len(set(row)) == len(row) for row in guesses[:100].tolist())
    found = evaluate(nn.Identity(), [(logits, labels)], CPU)
    sums = EpochSums(CPU)
    sums.add(StepOutput(logits, torch.tensor(1.0), torch.tensor(0.0), torch.tensor(True)), labels)
    expected = 100 * np.mean(truth == labels.numpy())
    assert found.top1 == sums.means()["train_top1"] == pytest.approx(expected)
    within = (logits.float().topk(min(5, classes)).indices == labels[:, None]).sum().item()
    assert found.top5 == sums.means()["train_top5"] == pytest.approx(within / 10, abs=0.101)  # except for the first row


def test_top5_of_fewer_than_five_classes_is_all():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    assert evaluate(model, batches([4], classes=3), CPU).top5 == 100.0


def test_evaluation_turns_dropout_and_gradients_off():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 7))
    assert evaluate(model, batches([6]), CPU).loss == evaluate(model, batches([6]), CPU).loss
    assert model[2].weight.grad is None


def test_the_error_names_the_step_of_a_non_finite_loss():
    model = small_network()
    data = batches([2] * 9)
    data[4][0][0, 0, 0, 0] = float("inf")
    step = TrainStep(model, model, torch.optim.SGD(model.parameters(), 0.1), 0.1)
    sums = sums_of_epoch(step, data)
    with pytest.raises(NonFiniteStep) as error:
        sums.means(model)
    assert error.value.step == 5


def test_weights_that_only_the_last_update_made_infinite_are_detected():
    model = small_network()
    step = TrainStep(model, model, torch.optim.SGD(model.parameters(), 0.1), 0.1)
    sums = sums_of_epoch(step, batches([2]))
    sums.means(model)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteStep) as error:
        sums.means(model)
    assert error.value.step == 0


def test_gpu_ids():
    assert parse_gpu_ids("7,1") == [7, 1]
    for wrong in ("", "a", "0,,1", "-1", "0.5", "0;1"):
        with pytest.raises(DeviceError, match="separated by commas"):
            parse_gpu_ids(wrong)
    with pytest.raises(DeviceError, match="distinct"):
        parse_gpu_ids("1,0,1")


def test_without_a_gpu_the_cpu_is_used_with_a_warning_if_a_gpu_was_requested(caplog):
    with caplog.at_level(logging.WARNING):
        assert pick_devices(None) == [CPU]
        assert not caplog.records
        assert pick_devices("7,1") == [CPU]
    assert "no CUDA device is visible" in caplog.text
    with pytest.raises(DeviceError):
        pick_devices("all")


@pytest.mark.parametrize("case", ["no penalised convolution", "all frozen"])
def test_a_penalty_without_a_weight_to_train_is_only_reported(case):
    convs = [nn.Conv2d(3, 4, 3)] if case == "no penalised convolution" else [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)]
    model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for conv in convs[1:]:
        conv.requires_grad_(False)
    before = convs[0].weight.clone()
    out = TrainStep(model, model, torch.optim.SGD(model.parameters(), 0.1), 1.0)(
        torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    )
    assert (out.penalty > 0) == (case == "all frozen")
    assert not torch.equal(convs[0].weight, before)


def test_out_of_memory_is_explained_and_other_errors_are_not_hidden():
    with pytest.raises(DeviceError, match=r"out of memory \(.*SOLVER.TRAIN_BATCH_SIZE"), explain_out_of_memory():
        torch.empty(1 << 50)  # a petabyte
    with pytest.raises(RuntimeError, match="size of tensor"), explain_out_of_memory():
        torch.zeros(2) + torch.zeros(3)
    for other in (torch.distributed.DistBackendError("NCCL error"), NotImplementedError("no kernel")):
        with pytest.raises(type(other), match=str(other)), explain_out_of_memory():  # subclasses of RuntimeError
            raise other
