"""Networks of the zoo and of the user."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from hpc.config.model import Cnn, Custom, Mlp
from hpc.data.dataset import DataSet, Part
from hpc.errors import RunError
from hpc.network import build


def dataset(*shape: int, outputs: int = 10) -> DataSet:
    part = Part(torch.zeros(0, *shape), torch.zeros(0, dtype=torch.int64))
    return DataSet(
        name="x", task="classification", train=part, valid=part, test=part, input_shape=shape, outputs=outputs,
        mean=torch.zeros(1), std=torch.ones(1), labels=tuple(map(str, range(outputs))),
    )  # fmt: skip


DIGITS = dataset(1, 8, 8)
MLP = Mlp(widths=(7,))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# --- the zoo -----------------------------------------------------------------------------------------------


def test_weights_follow_from_the_seed_alone():
    expected = weights(build(MLP, DIGITS, 3))
    torch.manual_seed(99)
    torch.rand(10)
    assert torch.equal(weights(build(MLP, DIGITS, 3)), expected)
    assert not torch.equal(weights(build(MLP, DIGITS, 4)), expected)


def test_weights_do_not_change_when_threads_do():
    threads = torch.get_num_threads()
    expected = weights(build(Mlp(widths=(300,)), DIGITS, 3))
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(weights(build(Mlp(widths=(300,)), DIGITS, 3)), expected)
    finally:
        torch.set_num_threads(threads)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(MLP, DIGITS, 3)
    assert torch.equal(torch.rand(3), expected)


def test_the_options_of_the_config_reach_the_network():
    model = build(Mlp(widths=(7, 5), batch_norm=True, dropout=0.25, activation="tanh"), DIGITS, 0)
    kinds = [type(module) for module in model.modules()]
    assert [module.out_features for module in model.modules() if isinstance(module, nn.Linear)] == [7, 5, 10]
    assert nn.BatchNorm1d in kinds
    assert nn.Tanh in kinds
    assert nn.Dropout in kinds


def test_shape_and_outputs_are_those_of_the_data():
    assert build(MLP, dataset(3, 5, outputs=4), 0)(torch.zeros(2, 3, 5)).shape == (2, 4)


def test_a_network_that_does_not_fit_the_data_is_an_error_for_people():
    with pytest.raises(RunError, match=r"^model: "):
        build(Cnn(), dataset(13), 0)


# --- a function of the user's ------------------------------------------------------------------------------


@pytest.fixture
def module(monkeypatch):
    """Install a module with functions under a name."""

    def install(name: str, **content: Any) -> None:
        made = ModuleType(name)
        vars(made).update(content)
        for place in range(1, name.count(".") + 1):
            package = ".".join(name.split(".")[:place])
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, name, made)

    monkeypatch.setattr(sys, "path", list(sys.path))
    return install


class Given(nn.Linear):
    """A network that remembers what it was built with."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(2, 2)
        self.given = given


def remember(**given: Any) -> Given:
    return Given(given)


def test_a_function_is_given_shape_outputs_and_the_options(module):
    module("mine.nets", make=remember)
    model = build(Custom(name="mine.nets:make", options={"depth": 3, "wide": True}), DIGITS, 0)
    assert model.given == {"input_shape": (1, 8, 8), "outputs": 10, "depth": 3, "wide": True}


def test_an_option_overrides_what_would_be_given(module):
    module("mine", make=remember)
    assert build(Custom(name="mine:make", options={"outputs": 3}), DIGITS, 0).given["outputs"] == 3


@pytest.mark.parametrize("name", ["torchvision.models", "torchvision"])
def test_torchvision_is_given_the_number_of_classes_only(module, name):
    module(name, resnet18=remember)
    model = build(Custom(name=f"{name}:resnet18", options={"weights": None}), dataset(3, 32, 32), 0)
    assert model.given == {"num_classes": 10, "weights": None}


def test_timm_is_given_classes_and_channels(module):
    module("timm", create_model=remember)
    model = build(Custom(name="timm:create_model", options={"model_name": "vit"}), dataset(3, 32, 32), 0)
    assert model.given == {"num_classes": 10, "in_chans": 3, "model_name": "vit"}


def test_a_users_weights_follow_from_the_seed_too(module):
    module("mine", make=remember)
    custom = Custom(name="mine:make")
    assert torch.equal(weights(build(custom, DIGITS, 1)), weights(build(custom, DIGITS, 1)))
    assert not torch.equal(weights(build(custom, DIGITS, 1)), weights(build(custom, DIGITS, 2)))


def test_a_module_beside_the_configuration_is_found(module, tmp_path, monkeypatch):
    (tmp_path / "my_net_here.py").write_text(
        "from torch import nn\ndef make(input_shape, outputs):\n    return nn.Linear(input_shape[0], outputs)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        model = build(Custom(name="my_net_here:make"), dataset(4), 0)
    finally:
        sys.modules.pop("my_net_here", None)
    assert (model.in_features, model.out_features) == (4, 10)


@pytest.mark.parametrize(
    ("name", "said"), [("no_such_module:make", "No module named 'no_such_module'"), ("mine:nothing", "nothing")]
)
def test_what_cannot_be_loaded_is_named(module, name, said):
    module("mine", make=remember)
    with pytest.raises(RunError, match=f"model.name: {name} cannot be loaded .*{said}.*check the module and function"):
        build(Custom(name=name), DIGITS, 0)


def test_a_function_that_refuses_its_arguments_is_named_with_them(module):
    module("mine", make=lambda outputs: nn.Linear(1, outputs))
    with pytest.raises(RunError, match=r"mine:make refused its arguments \['input_shape', 'outputs'\].*unexpected"):
        build(Custom(name="mine:make"), DIGITS, 0)


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), ("text", "str"), (nn.Linear, "type")])
def test_a_function_must_return_a_module(module, value, kind):
    module("mine", make=lambda **_: value)
    with pytest.raises(RunError, match=f"mine:make returned {kind}, but a torch.nn.Module is needed"):
        build(Custom(name="mine:make"), DIGITS, 0)


def test_an_error_inside_the_users_function_keeps_its_own_face(module):
    def make(**_):
        raise ZeroDivisionError("in the user's code")

    module("mine", make=make)
    with pytest.raises(ZeroDivisionError, match="in the user's code"):
        build(Custom(name="mine:make"), DIGITS, 0)
