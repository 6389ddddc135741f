"""An Alrao network has the units that its network had: what a norm belongs to does not change by the wrapping."""

import copy

import pytest
import torch

from structlearn import alrao, models
from structlearn.units import Units, units


def places(table: Units, name: str, prefix: str) -> list[tuple[str, int]]:
    """For each number of a parameter's index: the layer's name within the plain network, and the place in it."""
    owner = {number: (layer, number - numbers.start) for layer, numbers in table.layers.items() for number in numbers}
    found = (owner[int(number)] for number in table.index[name].flatten())
    return [(layer.removeprefix(prefix), place) for layer, place in found]


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "wideresnet28_10", "densenet121", "mobilenet_v2", "googlenet"])
def test_an_alrao_network_couples_norms_as_its_plain_network_does(name):
    torch.manual_seed(0)
    model = models.build(name, (3, 32, 32), 10, width=0.05)
    plain, wrapped = units(copy.deepcopy(model)), units(alrao.Alrao(model))
    for parameter in plain.index:
        if not parameter.startswith("head."):
            assert places(plain, parameter, "") == places(wrapped, f"model.{parameter}", "model."), parameter
