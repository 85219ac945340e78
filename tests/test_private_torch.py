"""The private names of torch do what the module says. ``test_house.py`` checks that no other module uses them."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from conftest import REPO
from isonet import private_torch

FUNCTIONS = [f for f in vars(private_torch).values() if inspect.isfunction(f)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_each_function_names_a_test_that_exists(function):
    (path,) = re.findall(r"Test: ([\w/.]+?)\.?$", inspect.getdoc(function))
    assert (REPO / path).exists()


def test_a_non_finite_gradient_sets_the_flag_and_a_finite_one_does_not():
    flag, one = torch.zeros(()), torch.ones(())
    grads = [torch.ones(3), torch.full((2, 2), 7.0)]
    private_torch.flag_non_finite_(grads, flag, one)
    assert flag.item() == 0
    assert grads[1].unique().tolist() == [7]
    for bad in (float("inf"), float("nan")):
        flag.zero_()
        private_torch.flag_non_finite_([torch.ones(3), torch.tensor([1.0, bad])], flag, one)
        assert flag.item() == 1


def test_which_optimizers_can_skip_a_step_on_the_device():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    assert private_torch.skips_on_device(torch.optim.SGD(parameters, 0.1, fused=True))
    assert not private_torch.skips_on_device(torch.optim.SGD(parameters, 0.1))


def test_the_scale_of_fp16_is_a_tensor_once_it_was_used():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024)
    assert private_torch.scale_on_device(scaler) is None
    scaler.scale(torch.ones(()))
    assert private_torch.scale_on_device(scaler).item() == scaler.get_scale() == 1024
