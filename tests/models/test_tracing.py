"""Networks as graphs: the graphs of torch.fx, torch.export and torch.compile compute the same results."""

from __future__ import annotations

import pytest
import torch

from isonet.init import delta_init_, normal_init_
from isonet.models import ISONet
from isonet.models.build import init_network_
from isonet.models.isonet import Architecture, BasicTransform, BottleneckTransform
from isonet.models.layers import LayerFactory

FAMILIES = {
    "ISONet": LayerFactory(),
    "R-ISONet": LayerFactory(shortcuts=True, multiplier=0.5),
    "ResNet": LayerFactory(batch_norm=True, srelu=False, shortcuts=True),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_shape = pytest.mark.parametrize(  # each branch and each stem once
    ("transform", "imagenet"),
    [(BasicTransform, False), (BottleneckTransform, True)],
    ids=["basic-CIFAR", "bottleneck-ImageNet"],
)


def network(family, transform, imagenet):
    """Return a network of two blocks: one keeps the shape, and the other halves the map and doubles the width."""
    torch.manual_seed(0)
    arch = Architecture(transform, depths=(1, 1), widths=(8, 16), stem_width=8, imagenet_stem=imagenet)
    model = ISONet(arch, FAMILIES[family], num_classes=5)
    init_network_(model, normal_init_ if family == "ResNet" else delta_init_)  # with delta, ties are common
    return model, torch.randn(3, 3, 24, 24)


def output_and_gradients(model, parameters, images):
    output = model(images)
    return output, *torch.autograd.grad(output.square().sum(), list(parameters))


def assert_all_close(actual, expected, **tolerance):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@every_family
@every_shape
@pytest.mark.parametrize("gradients", [True, False])
def test_a_symbolic_trace_is_bit_identical_to_the_network(family, transform, imagenet, gradients):
    """This holds whether or not gradients are enabled during the trace, because the mode may change at each call."""
    model, images = network(family, transform, imagenet)
    with torch.set_grad_enabled(gradients):
        traced = torch.fx.symbolic_trace(torch.fx.symbolic_trace(model))
    expected = output_and_gradients(model, model.parameters(), images)
    assert_all_close(output_and_gradients(traced, model.parameters(), images), expected, rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))
    with torch.autocast("cpu", torch.bfloat16):
        expected = output_and_gradients(model, model.parameters(), images)
        assert_all_close(output_and_gradients(traced, model.parameters(), images), expected, rtol=0, atol=0)


@every_family
@every_shape
def test_a_traced_network_keeps_its_layers_and_their_memory(family, transform, imagenet):
    """The traced network shares the network's weights, and a training step saves the same amount of memory."""
    model, images = network(family, transform, imagenet)
    traced = torch.fx.symbolic_trace(model)
    assert {p.data_ptr() for p in traced.parameters()} == {p.data_ptr() for p in model.parameters()}

    def saved(net):
        storages = set()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: storages.add(t.untyped_storage()) or t, lambda t: t):
            net(images)
        return sorted(storage.nbytes() for storage in storages)

    assert saved(traced) == saved(model)


@every_family
@every_shape
def test_an_exported_program_takes_any_number_of_images(family, transform, imagenet):
    model, images = network(family, transform, imagenet)
    model.eval()
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for count in (1, 7):
        batch = torch.randn(count, 3, 24, 24)
        torch.testing.assert_close(program.module()(batch), model(batch))


@every_family
@every_shape
def test_a_compiled_network_is_one_graph_with_the_same_gradients(family, transform, imagenet):
    torch.compiler.reset()
    model, images = network(family, transform, imagenet)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    expected = output_and_gradients(model, model.parameters(), images)
    assert_all_close(output_and_gradients(whole, model.parameters(), images), expected)
