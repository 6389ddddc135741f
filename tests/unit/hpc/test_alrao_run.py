"""Whole runs with Alrao, in this process: what they record, keep and refuse."""

import json
import math

import h5py
import numpy as np
import pytest
import torch

from hpc import alrao, data, network
from hpc.alone import Alone
from hpc.config.check import check
from hpc.config.read import validate
from hpc.errors import ConfigError
from hpc.rank import train as run
from hpc.record import Record
from hpc.run import assemble
from hpc.signals import StopRequest

DIGITS = {"epochs": 2, "model": {"name": "mlp", "widths": [64]}, "data": {"name": "digits"}}


@pytest.fixture(autouse=True)
def _torch_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def train(tmp_path, capsys, optimizer, **sections):
    """(the JSON summary, every dataset of the record's /alrao, the columns of /epochs)."""
    config = validate({**DIGITS, "optimizer": optimizer, **sections, "run_dir": str(tmp_path / "run")})
    assert run(config, StopRequest(), progress="none", as_json=True) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {}
    with h5py.File(tmp_path / "run" / "record.h5") as file:
        file["alrao"].visititems(lambda name, node: found.update({name: node[()]} if hasattr(node, "shape") else {}))
        return summary, found, {name: column[()] for name, column in file["epochs"].items()}


@pytest.mark.parametrize("name", ["alrao", "alrao-adam"])
def test_a_run_learns_and_records_rates_and_posterior(tmp_path, capsys, name):
    optimizer = {"name": name, "posterior_every": 10, **({"lr_max": 0.01} if name == "alrao-adam" else {})}
    summary, found, epochs = train(tmp_path, capsys, optimizer)
    assert summary["test_accuracy"] > 0.8
    assert found["step"].tolist() == sorted({*range(10, epochs["step"][-1] + 1, 10), *epochs["step"].tolist()})
    assert found["posterior"].shape == (len(found["step"]), 10)
    np.testing.assert_allclose(found["posterior"].sum(1), 1)
    assert not found["heads_lost"].any()
    assert not found["units_lost"].any()
    rates = found["rates/features.1"]
    assert len(rates) == 64
    assert rates.min() >= 1e-5 * 0.999
    high = optimizer.get("lr_max", 10.0)
    np.testing.assert_allclose(found["rates/head"], 1e-5 * (high / 1e-5) ** (np.arange(10) / 9), rtol=1e-5)
    assert (epochs["lr"] == 1).all()
    assert summary["parameters"] == 64 * 65 + 10 * 10 * 65


def test_a_schedule_is_a_factor_on_all_rates(tmp_path, capsys):
    schedule = {"name": "step", "milestones": [1], "factor": 0.25}
    _, _, epochs = train(tmp_path, capsys, {"name": "alrao"}, schedule=schedule)
    assert epochs["lr"].tolist() == [1, 0.25]


def test_heads_are_dropped_after_the_epochs_that_were_asked_for(tmp_path, capsys):
    _, found, epochs = train(
        tmp_path, capsys, {"name": "alrao", "drop_heads_after": 1, "posterior_every": None}, epochs=3
    )
    assert found["step"].tolist() == epochs["step"].tolist()
    assert found["heads_lost"].tolist() == [0, 9, 9]
    best = found["posterior"][0].argmax()
    for later in found["posterior"][1:]:
        assert later[best] == pytest.approx(1)


def test_frozen_units_have_the_rate_zero_in_the_record(tmp_path, capsys):
    _, found, _ = train(tmp_path, capsys, {"name": "alrao", "frozen": 0.5, "heads": 2})
    share = (found["rates/features.1"] == 0).mean()
    assert 0.25 < share < 0.75


def test_a_network_without_a_linear_output_layer_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "odd_net.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Bilinear(1, 1, 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    config = validate({**DIGITS, "model": {"name": "odd_net:build"}, "optimizer": {"name": "alrao"}})
    dataset = data.load(config.data, 0)
    model = network.build(config.model, dataset, 0)
    with pytest.raises(ConfigError, match=r"optimizer\.name: alrao cannot train this network: the output layer"):
        alrao.wrap(config.optimizer, model, dataset.task, 0)


@pytest.mark.parametrize(
    ("optimizer", "exchange", "said"),
    [
        ({"lr_min": 1.0, "lr_max": 0.1}, {}, "optimizer.lr_min: got 1, above optimizer.lr_max: 0.1"),
        ({"rates": "per_rank"}, {"exchange": {"name": "sync"}}, "optimizer.rates: per_rank gives each rank"),
        ({"nesterov": True}, {}, "optimizer.nesterov: true needs optimizer.momentum above 0"),
    ],
)
def test_what_cannot_be_is_refused_before_a_rank_starts(tmp_path, optimizer, exchange, said):
    values = {**DIGITS, **exchange, "optimizer": {"name": "alrao", **optimizer}, "run_dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError) as caught:
        check(validate(values), 1, 1)
    assert any(problem.startswith(said) for problem in caught.value.problems), caught.value.problems


def parts(tmp_path, rank=0, **optimizer):
    values = {**DIGITS, "optimizer": {"name": "alrao", **optimizer}, "exchange": {"name": "none"}}
    config = validate({**values, "run_dir": str(tmp_path)})
    (tmp_path / "logs").mkdir(exist_ok=True)
    comm = Alone()
    comm.rank = rank
    return assemble(config, comm, StopRequest(), lambda _: None)


def test_rates_follow_from_the_seed_and_per_rank_from_the_rank(tmp_path):
    def rates(rank, **optimizer):
        return parts(tmp_path, rank, **optimizer).optimizer.param_groups[0]["rates"]

    assert torch.equal(rates(0), rates(1))
    assert torch.equal(rates(1, rates="per_rank"), rates(1, rates="per_rank"))
    assert not torch.equal(rates(0, rates="per_rank"), rates(1, rates="per_rank"))


def test_clipping_leaves_the_heads_out(tmp_path):
    made = parts(tmp_path)
    clipped = {id(parameter) for parameter in made.clipped}
    heads = {id(parameter) for parameter in made.model.heads.parameters()}
    assert not clipped & heads
    assert clipped | heads == {id(parameter) for parameter in made.model.parameters()}


def test_the_record_keeps_its_rows_over_a_save(tmp_path):
    record, again = Record(), Record()
    record.alrao.rates = {"features.1": torch.tensor([0.5, 0.25]), "head": torch.tensor([1.0])}
    record.alrao.append(7, [0.75, 0.25], 0, 1)
    record.alrao.append(9, [1.0, 0.0], 1, 2)
    again.load_state_dict(record.state_dict())
    for one, other in zip(record.alrao.arrays().items(), again.alrao.arrays().items(), strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
    empty = Record()
    empty.load_state_dict(Record().state_dict())
    assert len(empty.alrao) == 0


def test_regression_is_scored_by_the_squared_error_of_the_best_head(tmp_path, capsys):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 5))
    y = np.stack([x @ generator.normal(size=5), np.sin(x[:, 0])], 1)
    np.savez(tmp_path / "points.npz", x=x, y=y)
    sections = {
        "data": {"name": "tabular", "root": str(tmp_path / "points.npz"), "task": "regression"},
        "model": {"name": "mlp", "widths": [64]},
        "epochs": 20,
    }
    summary, found, _ = train(tmp_path, capsys, {"name": "alrao"}, **sections)
    assert math.isfinite(summary["test_loss"])
    assert summary["test_loss"] < 0.5 * y.var()
    assert found["posterior"].shape[1] == 10


class Two(Alone):
    """Two ranks of which the other one says what it is told to."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def gather(self, value, what):
        return [value, self.other]


def test_a_head_that_another_rank_has_lost_has_no_part_in_the_consensus_and_is_not_chosen(tmp_path):
    made = parts(tmp_path, heads=3, drop_heads_after=1)
    switch = made.model.switch
    switch.update(torch.tensor([-1.0, -3.0, -2.0]), torch.ones(()))
    assert int(switch.posterior().argmax()) == 0
    with made.watch.consensus(Two([False, True, True])):
        assert switch.alive.tolist() == [False, True, True]
        made.watch.after_epoch(1, 10)
    assert switch.alive.tolist() == [False, False, True]  # the best of those that both have


def test_the_consensus_leaves_a_ranks_heads_as_they_were(tmp_path):
    made = parts(tmp_path, heads=3)
    with made.watch.consensus(Two([True, False, True])):
        assert made.model.switch.posterior()[1] == -math.inf
    assert made.model.switch.alive.all()
    assert made.model.switch.posterior().isfinite().all()
