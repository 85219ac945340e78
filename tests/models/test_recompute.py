"""Activation checkpointing: the same numbers to the bit, of a fraction of the memory."""

import pytest
import torch
import torch.nn.functional as F

from isonet import build_model, load_cfg
from isonet.training.failure import first_non_finite
from isonet.training.finetune import freeze
from isonet.training.optim import Amp

CIFAR = ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10]
NETWORKS = {
    "ISONet": [],
    "R-ISONet": ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.3],
    "ResNet": ["ISON.HAS_ST", True, "ISON.HAS_BN", True, "ISON.SReLU", False, "ISON.DIRAC_INIT", False],
}


def network(depth, recompute, opts=()):
    torch.manual_seed(0)
    return build_model(
        load_cfg(None, [*CIFAR, "ISON.DEPTH", depth, "RUNTIME.CHECKPOINT_ACTIVATIONS", recompute, *opts])
    )


def saved_numbers(model, images):
    """Numbers that autograd keeps for the backward pass, beside the weights; one that is kept twice counts once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)  # held until the count is taken, so that no storage is used again
        return sum(kept.values()), output


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_batch_statistics_are_equal_to_the_bit(name):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    models = [network(32, recompute, NETWORKS[name]) for recompute in (False, True)]
    for model in models:
        for _ in range(2):  # so that statistics which count a batch twice would show
            F.cross_entropy(model(images), labels).backward()
    plain, recomputed = models
    for (key, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    for (key, a), b in zip(plain.named_buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("frozen", ["stem", "stem,s1", "s2"])
def test_in_16_bits_and_with_frozen_parts_the_gradients_are_the_same_too(frozen):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    grads = []
    for recompute in (False, True):
        model = network(20, recompute, [*NETWORKS["R-ISONet"], "MODEL.FREEZE", frozen])
        freeze(model, load_cfg(None, [*CIFAR, "ISON.DEPTH", 20, "MODEL.FREEZE", frozen]))
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() < set(dict(model.named_parameters()))
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def test_what_is_not_finite_is_found_though_the_step_is_recomputed():
    """Forward and backward are finite, and leave nothing behind at which the recomputation would stop."""
    model = network(20, True)
    with torch.no_grad():
        model.s2.b1.f.b.weight.mul_(1e12)
    images, labels, amp = torch.randn(4, 3, 32, 32), torch.arange(4), Amp("off", torch.device("cpu"))
    assert "s2.b1.f.b" in first_non_finite(model, images, labels, amp, ortho_coeff=1e-4)


def test_it_keeps_about_the_square_root_of_the_activations():
    """Of 36 blocks a stage, 72 activations, 6 stay; the stem's and the head's are the same in both."""
    images = torch.randn(2, 3, 32, 32)
    plain, _ = saved_numbers(network(218, False), images)
    recomputed, _ = saved_numbers(network(218, True), images)
    assert 9 < plain / recomputed < 13


def test_evaluation_keeps_nothing():
    model = network(20, True).eval()
    with torch.no_grad():
        assert saved_numbers(model, torch.randn(2, 3, 32, 32))[0] == 0
