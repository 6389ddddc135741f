"""What a normalisation normalises, and which layer the answer comes from."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from structlearn.alrao import Alrao
from structlearn.flow import chain_of, graph_of, last_layer, reached
from structlearn.models import MODELS, build
from structlearn.units import units

KINDS = (nn.Linear, nn.Conv2d)


def coupled(model: nn.Module) -> dict[str, list[int]]:
    """The units of each normalisation's scale; those of its shift must be the same."""
    table = units(model)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)]
    for name in norms:
        assert torch.equal(table.index[f"{name}.weight"], table.index[f"{name}.bias"])
    return {name: table.index[f"{name}.weight"].flatten().tolist() for name in norms}


def test_a_norm_after_a_convolution_also_through_activation_and_pooling() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.MaxPool2d(2), nn.BatchNorm2d(5)
    )
    assert coupled(model) == {"1": [0, 1, 2, 3], "5": [4, 5, 6, 7, 8]}


def test_norms_of_the_wide_residual_network() -> None:
    """Pre-activation: a block's first norm sees the sum of the last block, of which the first term counts."""
    model = build("wideresnet28_10", (3, 4, 4), 5, width=0.0125)
    layers = units(model).layers
    found = coupled(model)
    stem = list(layers["features.0"])
    projected = stem
    for number in range(1, 13):
        name = f"features.{number}"
        assert found[f"{name}.before.0"] == projected
        if f"{name}.projection" in layers:
            projected = list(layers[f"{name}.projection"])
        inner = next(key for key in layers if key.startswith(f"{name}.branch."))
        assert found[f"{name}.branch.1"] == list(layers[inner])
    assert found["features.13"] == projected


def test_norms_of_the_dense_network_have_the_units_of_all_that_is_concatenated() -> None:
    model = build("densenet121", (3, 8, 8), 5, width=0.125)
    layers = units(model).layers
    found = coupled(model)
    concatenated = list(layers["features.0"])
    for number in range(1, 7):
        assert found[f"features.{number}.branch.0"] == concatenated
        assert found[f"features.{number}.branch.3"] == list(layers[f"features.{number}.branch.2"])
        concatenated = concatenated + list(layers[f"features.{number}.branch.5"])
    assert found["features.7"] == concatenated
    halved = list(layers["features.9"])
    assert found["features.11.branch.0"] == halved


def test_a_channel_of_a_norm_belongs_to_the_filter_that_changes_it() -> None:
    """By trial: change all of one unit, and see which channels of the concatenation are others."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Conv2d(2, 3, 1)  # registered first, concatenated last
            self.early = nn.Conv2d(2, 4, 1)
            self.norm = nn.BatchNorm2d(7)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.cat([self.early(x).relu(), self.late(x)], dim=1))

    model = Two()
    table = units(model)
    seen: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.rand(2, 2, 3, 3)
    for layer in (model.early, model.late):
        nn.init.uniform_(layer.weight)
    model(x)
    for unit in range(len(table)):
        with torch.no_grad():
            for layer, name in ((model.early, "early"), (model.late, "late")):
                layer.weight[(table.index[f"{name}.weight"] == unit).flatten()] += 1
        model(x)
        changed = (seen[-1] != seen[-2]).movedim(1, 0).flatten(1).any(1)
        assert table.index["norm.weight"][changed].tolist() == [unit]


class Untraceable(nn.Module):
    """The way through it depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.second = nn.Linear(4, 4)
        self.last = nn.LayerNorm(4)
        self.odd = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        return self.last(self.second(self.norm(self.first(x))))


def test_without_a_graph_norms_follow_the_order_of_registration() -> None:
    model = Untraceable()
    assert graph_of(model) is None
    table = units(model)
    assert coupled(model)["norm"] == list(table.layers["first"])
    assert coupled(model)["last"] == list(table.layers["second"])
    assert coupled(model)["odd"] == list(table.layers["odd"])  # as many as nobody has


def test_a_layer_of_the_user_is_a_layer_whatever_its_forward_pass_does() -> None:
    class Mine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.other = nn.Linear(4, 4)
            self.mine = Mine(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.mine(self.norm(self.mine(self.other(x))))

    model = Model()
    assert coupled(model)["norm"] == list(units(model).layers["mine"])
    assert last_layer(model, KINDS) == "mine"


def test_a_recurrent_layers_norm_has_its_cells() -> None:
    class Model(nn.Module):
        def __init__(self, **options: object) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, **options)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.lstm(x)[0])

    model = Model(num_layers=2, bidirectional=True)
    layers = units(model).layers
    assert coupled(model)["norm"] == [*layers["lstm.l1"], *layers["lstm.l1_reverse"]]


@pytest.mark.parametrize("name", MODELS)
def test_every_models_last_layer_is_its_head(name: str) -> None:
    shape = {"lstm": (6,), "mlp": (4,)}.get(name, (3, 32, 32))
    with torch.device("meta"):
        model = build(name, shape, 5, width=0.125)
    assert last_layer(model, KINDS) == "head"


def test_the_last_layer_is_where_the_answer_comes_from_not_what_was_registered_last() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 3)
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.first(x)).log_softmax(-1).squeeze(1)

    assert last_layer(Model(), KINDS) == "out"


def test_the_last_layer_of_what_has_no_graph_is_the_last_registered_and_of_nothing_none() -> None:
    assert last_layer(Untraceable(), KINDS) == "second"
    assert last_layer(nn.Sequential(nn.ReLU()), KINDS) is None


def test_an_output_layer_can_be_named() -> None:
    assert Alrao(Untraceable(), head="first", heads=2).head == "first"
    for wrong in ("norm", "nowhere"):
        with pytest.raises(ValueError, match="name it"):
            Alrao(Untraceable(), head=wrong)


def test_what_values_reach_is_the_nearest_first_and_ends_where_it_is_stopped() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c(self.b(y).relu() + y.tanh())

    graph = graph_of(Model())
    assert graph is not None
    nodes = {node.name: node for node in graph.nodes}

    def names(start: str, *stops: str) -> list[str]:
        return [node.name for node in reached([nodes[start]], lambda node: node.name in stops)]

    assert names("x") == ["a", "b", "tanh", "relu", "add", "c", "output"]
    assert names("x", "a") == ["a"]
    assert names("a", "a", "b") == ["b", "tanh", "add", "c", "output"]
    assert names("a", "b", "tanh") == ["b", "tanh"]


def test_a_chain_stands_for_the_graph_of_what_has_none() -> None:
    nodes = list(chain_of(Untraceable()).nodes)
    assert [node.op for node in nodes] == ["placeholder", *["call_module"] * 5, "output"]
    assert [node.target for node in nodes[1:-1]] == ["first", "norm", "second", "last", "odd"]
    assert all(node.args == (before,) for before, node in pairwise(nodes))
