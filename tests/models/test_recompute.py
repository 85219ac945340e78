"""Activation checkpointing: bit-identical results with a fraction of the memory."""

import pytest
import torch
import torch.nn.functional as F

from isonet import build_model, load_cfg
from isonet.errors import ConfigError
from isonet.training.failure import first_non_finite
from isonet.training.finetune import freeze
from isonet.training.optim import Amp

CIFAR = ["DATASET.NAME", "CIFAR10", "DATASET.NUM_CLASSES", 10]
RISO = ["ISON.HAS_ST", True, "ISON.HAS_RES_MULTIPLIER", True, "ISON.RES_MULTIPLIER", 0.3]
BOTTLENECK = ["ISON.TRANS_FUN", "bottleneck_transform"]


def network(depth, recompute, opts=()):
    torch.manual_seed(0)
    return build_model(
        load_cfg(None, [*CIFAR, "ISON.DEPTH", depth, "RUNTIME.CHECKPOINT_ACTIVATIONS", recompute, *opts])
    )


def saved_numbers(model, images):
    """Return how many numbers autograd saves for the backward pass besides the weights, counting each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)  # keeps the storages alive, so that no address is used twice
        return sum(saved.values()), output


@pytest.mark.parametrize(
    ("depth", "opts"),
    [(8, []), (20, []), (44, RISO), (56, BOTTLENECK), (32, ["ISON.DROPOUT", True, "ISON.DROPOUT_RATE", 0.5])],
    ids=["one block a stage", "ISONet", "R-ISONet", "bottleneck", "dropout"],
)
def test_gradients_and_random_numbers_are_bit_identical(depth, opts):
    """The dropout before the last layer draws the same random numbers, and the same number of them."""
    images, labels, runs = torch.randn(4, 3, 16, 16), torch.arange(4), []
    for recompute in (False, True):
        model = network(depth, recompute, opts)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        runs.append((loss, torch.rand(1), [p.grad for p in model.parameters()]))
    (*plain, grads), (*recomputed, same_grads) = runs
    assert plain == recomputed
    assert all(map(torch.equal, grads, same_grads))


@pytest.mark.parametrize("frozen", ["stem", "stem,s1", "s2"])
def test_in_16_bits_and_with_frozen_parts_the_gradients_are_the_same_too(frozen):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    grads = []
    for recompute in (False, True):
        model = network(20, recompute, [*RISO, "MODEL.FREEZE", frozen])
        freeze(model, load_cfg(None, [*CIFAR, "ISON.DEPTH", 20, "MODEL.FREEZE", frozen]))
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() < set(dict(model.named_parameters()))
    assert all(torch.equal(grad, grads[1][name]) for name, grad in grads[0].items())


def test_the_first_non_finite_layer_is_named_although_the_step_is_recomputed():
    """The forward and backward passes are finite, and no hook stops the recomputation."""
    model = network(20, True)
    with torch.no_grad():
        model.s2.b1.f.b.weight.mul_(1e12)
    images, labels, amp = torch.randn(4, 3, 32, 32), torch.arange(4), Amp("off", torch.device("cpu"))
    assert "s2.b1.f.b" in first_non_finite(model, images, labels, amp, ortho_coeff=1e-4)


def test_about_the_square_root_of_the_activations_is_saved():
    """Of the 216 activations of 108 blocks, 17 before segments and 12 small ones in the last segment are saved."""
    images = torch.randn(2, 3, 32, 32)
    plain, _ = saved_numbers(network(218, False), images)
    recomputed, _ = saved_numbers(network(218, True), images)
    assert 8 < plain / recomputed < 13


def test_evaluation_saves_nothing():
    model = network(20, True).eval()
    with torch.no_grad():
        assert saved_numbers(model, torch.randn(2, 3, 32, 32))[0] == 0


def test_batch_norm_is_refused():
    """With checkpointing, batch norm would count each batch twice in its statistics."""
    with pytest.raises(ConfigError, match=r"RUNTIME.CHECKPOINT_ACTIVATIONS .*ISON.HAS_BN"):
        load_cfg(None, [*CIFAR, "RUNTIME.CHECKPOINT_ACTIVATIONS", True, "ISON.HAS_BN", True])
