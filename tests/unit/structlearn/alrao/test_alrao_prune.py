"""Pruning by rate against loops over units that are written out for each network by hand."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from structlearn import alrao
from structlearn.alrao import narrow
from structlearn.alrao.prune import Kept
from structlearn.alrao.rates import draw

FILLINGS = ("zero", "noise", "initial")


class Cells(nn.Module):
    """Two layers of LSTM cells, the first two ways; a linear layer on the last time's cells."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(2, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(10, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def mlp():
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)), (4,)


def conv():
    trunk = [nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 3, bias=False), nn.BatchNorm2d(5)]
    return nn.Sequential(*trunk, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)), (1, 6, 6)


def lstm():
    return Cells(), (4, 2)


# For each layer: its number of units, and where the incoming parameters of unit k are, as (parameter, rows).
LAYERS = {
    "mlp-0": (mlp, "0", 9, lambda k: [("0.weight", [k]), ("0.bias", [k])]),
    "mlp-2": (mlp, "2", 6, lambda k: [("2.weight", [k]), ("2.bias", [k])]),
    "conv-0": (conv, "0", 7, lambda k: [(name, [k]) for name in ("0.weight", "0.bias", "1.weight", "1.bias")]),
    "conv-3": (conv, "3", 5, lambda k: [(name, [k]) for name in ("3.weight", "4.weight", "4.bias")]),
    "lstm-l1": (
        lstm,
        "rnn.l1",
        5,
        lambda k: [
            (f"rnn.{stem}_l1", [gate * 5 + k for gate in range(4)])
            for stem in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ],
    ),
    "lstm-l0_reverse": (
        lstm,
        "rnn.l0_reverse",
        5,
        lambda k: [
            (f"rnn.{stem}_l0_reverse", [gate * 5 + k for gate in range(4)])
            for stem in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ],
    ),
}


def case(name, seed=0):
    """(model as trained, its initial values, layer, rates, a performance that all its outputs count in, the owner)."""
    make, layer, count, owned = LAYERS[name]
    torch.manual_seed(seed)
    model, shape = make()
    initial = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in model.buffers():
            buffer.add_(torch.rand(buffer.shape).to(buffer.dtype))
    model.eval()
    x, wanted = torch.randn(16, *shape), torch.randn(16, 3)

    @torch.no_grad()
    def evaluate():
        return -float((model(x) - wanted).square().mean())

    return model, initial, layer, {layer: draw(count, 1e-5, 10.0, seed=seed)}, evaluate, owned


def by_hand(model, rates, evaluate, owned, filled, low=1e-5, high=10.0):
    """W Alg. 2 with a loop over units and one over their parameters' rows, on copies of the values."""
    trained = copy.deepcopy(dict(model.named_parameters()))

    def pruned(low, high):
        left = 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(trained[name])
            for unit, rate in enumerate(rates.tolist()):
                if low <= rate <= high:
                    left += 1
                    continue
                for name, rows in owned(unit):
                    for row in rows:
                        dict(model.named_parameters())[name][row] = filled[name][row]
        return low, high, evaluate(), left

    rows = [pruned(low, high)]
    while low < high:
        one, other = pruned(low * 2, high), pruned(low, high / 2)
        rows.append(one if one[2] > other[2] else other)
        low, high = rows[-1][:2]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(trained[name])
    return rows


def noise_of(initial, names, seed):
    """What fills a layer's parameters, which are named in the model's order."""
    generator = torch.Generator().manual_seed(seed)
    filled = {}
    for name in names:
        start = initial[name].double()
        draws = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        filled[name] = (start.mean() + start.std(correction=0) * draws).float()
    return filled


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("filling", ["zero", "initial"])
def test_narrowing_is_alg_2_with_loops_over_units(name, filling):
    model, initial, layer, rates, evaluate, owned = case(name)
    filled = initial if filling == "initial" else {key: torch.zeros_like(value) for key, value in initial.items()}
    wanted = by_hand(model, rates[layer], evaluate, owned, filled)
    found = narrow(model, rates, layer, evaluate, filling=filling, initial=initial)
    assert [tuple(row) for row in found] == wanted
    assert len({row.performance for row in found}) > 2


@pytest.mark.parametrize("name", LAYERS)
def test_noise_fills_the_same_rows_with_a_draw_of_its_own(name):
    model, initial, layer, rates, evaluate, owned = case(name)
    mine = {each for each, _ in owned(0)}
    filled = noise_of(initial, [key for key, _ in model.named_parameters() if key in mine], seed=3)
    wanted = by_hand(model, rates[layer], evaluate, owned, filled)
    found = narrow(model, rates, layer, evaluate, filling="noise", initial=initial, seed=3)
    assert [tuple(row) for row in found] == wanted
    assert found != narrow(model, rates, layer, evaluate, filling="noise", initial=initial, seed=4)


def test_noise_has_the_mean_and_deviation_of_the_initial_values():
    model = nn.Sequential(nn.Linear(100, 200), nn.LayerNorm(200), nn.Linear(200, 2))
    initial = copy.deepcopy(model.state_dict())
    seen = {}

    def evaluate():
        seen.update({key: value.clone() for key, value in model.state_dict().items()})
        return 0.0

    narrow(model, {"0": torch.full((200,), 1e-5)}, "0", evaluate, filling="noise", initial=initial, interval=(1, 1))
    for name in ("0.weight", "0.bias"):
        torch.testing.assert_close(seen[name].std(), initial[name].std(), rtol=0.2, atol=0)
        assert not torch.equal(seen[name], initial[name])
    assert torch.equal(seen["1.weight"], torch.ones(200))
    assert torch.equal(seen["1.bias"], torch.zeros(200))
    assert torch.equal(seen["2.weight"], initial["2.weight"])


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("name", ["mlp-0", "conv-3", "lstm-l1"])
def test_the_network_comes_back_bit_for_bit(name, filling):
    model, initial, layer, rates, evaluate, _ = case(name)
    with torch.no_grad():
        next(model.parameters()).view(-1)[:2] = torch.tensor([-0.0, math.nan])
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    narrow(model, rates, layer, evaluate, filling=filling, initial=initial)
    for key, value in model.state_dict().items():
        assert value.numpy().tobytes() == before[key].numpy().tobytes(), key
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_network_comes_back_if_the_evaluation_fails():
    model, _, layer, rates, _, _ = case("conv-0")
    before = copy.deepcopy(model.state_dict())
    answers = iter([0.5, 0.4])
    with pytest.raises(StopIteration):
        narrow(model, rates, layer, lambda: next(answers))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_evaluation_may_change_running_statistics():
    """Each call starts from the trained ones: those that another call has taken anew do not reach it."""
    model, _, layer, rates, _, _ = case("conv-0")
    before = copy.deepcopy(model.state_dict())
    seen = []

    def evaluate():
        seen.append(model[1].running_mean.clone())
        model[1].running_mean.add_(1.0)
        model[1].reset_running_stats()
        return 0.0

    narrow(model, rates, layer, evaluate)
    assert all(torch.equal(each, before["1.running_mean"]) for each in seen)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@settings(deadline=None, max_examples=50)
@given(
    data=st.data(),
    rates=st.lists(st.floats(1e-6, 100.0), min_size=1, max_size=12),
    low=st.floats(1e-6, 1.0),
    octaves=st.floats(0.0, 20.0),
    factor=st.sampled_from([2.0, 1.5, 10.0]),
)
def test_intervals_shrink_by_the_factor_from_one_end_and_end(data, rates, low, octaves, factor):
    layer = nn.Linear(1, len(rates))
    values = st.sampled_from([0.0, 0.25, 0.5, math.nan])
    model = nn.Sequential(layer, nn.Linear(len(rates), 1))
    high = low * 2**octaves
    given_rates = torch.tensor(rates, dtype=torch.float64)
    rows = narrow(model, {"0": given_rates}, "0", lambda: data.draw(values), interval=(low, high), factor=factor)
    assert rows[0][:2] == (low, high)
    for one, other in itertools.pairwise(rows):
        assert one.low < one.high
        assert other[:2] in {(one.low * factor, one.high), (one.low, one.high / factor)}
        assert other.units <= one.units
    assert rows[-1].low >= rows[-1].high
    assert len(rows) - 1 == pytest.approx(math.log(high / low, factor), abs=1.01)
    assert all(row.units == sum(row.low <= rate <= row.high for rate in rates) for row in rows)


@pytest.mark.parametrize(
    ("lower", "upper", "falls"),
    [
        (0.6, 0.5, "low"),
        (0.5, 0.6, "high"),
        (0.5, 0.5, "high"),
        (math.nan, 0.5, "high"),
        (0.5, math.nan, "low"),
        (math.nan, math.nan, "high"),
    ],
)
def test_the_end_that_costs_less_is_given_up_and_the_upper_one_of_equals(lower, upper, falls):
    """One unit at each end of the interval: which of them is gone says which end was tried."""
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))
    nn.init.ones_(model[0].weight)

    def evaluate():
        first, _, last = model[0].weight.flatten().tolist()
        return {(1.0, 1.0): 1.0, (0.0, 1.0): lower, (1.0, 0.0): upper}.get((first, last), 0.0)

    rows = narrow(model, {"0": torch.tensor([1.0, 4.0, 16.0])}, "0", evaluate, interval=(1.0, 16.0))
    assert rows[0] == Kept(1.0, 16.0, 1.0, 3)
    end, performance = {"low": ((2.0, 16.0), lower), "high": ((1.0, 8.0), upper)}[falls]
    assert rows[1][:2] == end
    assert rows[1].performance == pytest.approx(performance, nan_ok=True)


def test_the_same_units_are_measured_once():
    model, calls = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)), []
    rows = narrow(model, {"0": torch.tensor([1e-3, 1.0])}, "0", lambda: calls.append(0) or 0.0)
    assert len(rows) == 21
    assert len(calls) == 3  # both, the slower one, none: the upper end falls while all are equal


def test_units_that_were_frozen_are_pruned_from_the_start():
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))
    rows = narrow(model, {"0": torch.tensor([0.0, 1e-3, 1e-3])}, "0", lambda: model[0].weight[0].abs().item())
    assert rows[0] == Kept(1e-5, 10.0, 0.0, 2)


def test_a_rate_at_the_end_of_the_interval_is_inside_after_rounding_to_float32():
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    ends = torch.tensor([1e-5, 10.0])
    assert ends[0].item() < 1e-5
    assert narrow(model, {"0": ends}, "0", lambda: 0.0)[0].units == 2


def test_the_network_of_best_takes_the_rates_of_its_alrao():
    torch.manual_seed(0)
    model, shape = conv()
    initial = copy.deepcopy(model.state_dict())
    net, optimizer = alrao.adopt(model, heads=3)
    x, y = torch.randn(8, *shape), torch.randint(3, (8,))
    net.loss(net(x), y).backward()
    optimizer.step()
    plain = net.best().eval()
    rates = {name.removeprefix("model."): each for name, each in optimizer.rates.items()}
    answers = [
        narrow(plain, given, "3", lambda: -float(plain(x).detach().square().sum()), filling="noise", initial=initial)
        for given in (optimizer.rates, rates)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0].units == 5
    with pytest.raises(ValueError, match="output layer '8' share one rate"):
        narrow(plain, optimizer.rates, "8", lambda: 0.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer": "5"}, r"unknown layer '5'.*use one of: 0, 2, 4"),
        ({"filling": "zeros"}, r"unknown filling 'zeros' \(did you mean 'zero'\?\)"),
        ({"rates": {}}, "no rates for the layer '2'"),
        ({"rates": {"2": torch.ones(9)}}, r"6 units, but its rates have the shape \(9,\)"),
        ({"filling": "initial"}, "needs the initial values of 2.weight"),
        ({"filling": "noise", "initial": {"2.weight": torch.ones(6, 9)}}, "needs the initial values of 2.bias"),
        ({"filling": "initial", "initial": {"2.weight": torch.ones(9, 6)}}, r"got the shape \(9, 6\)"),
        ({"interval": (1.0, 0.1)}, "interval must be"),
        ({"interval": (0.0, 0.1)}, "interval must be"),
        ({"factor": 1.0}, "factor must be above 1"),
        ({"factor": math.nan}, "factor must be above 1"),
    ],
)
def test_what_cannot_be_is_one_clear_error_and_nothing_is_evaluated(changed, message):
    model, _ = mlp()
    arguments = {"rates": {"2": torch.ones(6)}, "layer": "2", "evaluate": pytest.fail, **changed}
    with pytest.raises(ValueError, match=message):
        narrow(model, **arguments)
