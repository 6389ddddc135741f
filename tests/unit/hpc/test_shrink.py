"""Fewer ranks: what those who are left agree on, and how one of them goes on."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.alone import Alone
from hpc.config.folder import freeze
from hpc.config.read import validate
from hpc.engine import Engine
from hpc.exchange import mass
from hpc.exchange.gossip import Gossip
from hpc.progress import Silent
from hpc.pruning import Decision
from hpc.run import _among, assemble
from hpc.shrink import Shrunk, agree
from hpc.signals import StopRequest
from structlearn.structure import Plan

BEFORE = 5
CUT = Decision(Plan({"head": (0, 2)}), {"head.bias": (0.5, -1e-9)})


def state(masses, **counters):
    return {"counters": {"sent": 3, "mass": 0.0, **counters}, "masses": masses, "ends": len(masses)}


def gossip():
    return Gossip.__new__(Gossip)


@given(
    st.integers(1, 3).flatmap(
        lambda slices: st.lists(
            st.lists(st.integers(1, mass.UNITS), min_size=slices, max_size=slices), min_size=1, max_size=BEFORE - 1
        )
    )
)
@settings(deadline=None)
def test_masses_of_those_who_are_left_are_the_whole_again(held):
    states = [state(masses) for masses in held]
    found = [gossip().survive(states, rank, BEFORE) for rank in range(len(held))]
    for part in range(len(held[0])):
        assert sum(own["masses"][part] for own, _ in found) == mass.UNITS * len(held)
    assert sum(own["counters"]["mass"] for own, _ in found) == pytest.approx(1.0, abs=1e-12)
    assert all(own["counters"]["sent"] == 3 for own, _ in found)
    whole = mass.UNITS * BEFORE * len(held[0])
    assert {lost for _, lost in found} == {(whole - sum(map(sum, held))) / whole}


def test_they_go_on_where_the_slowest_ended_an_epoch_and_the_best_informed_is():
    everyone = [
        [2, 40, state([mass.UNITS // 2]), [[40, 1.5]], 3, CUT.as_dict()],
        [1, 41, state([mass.UNITS]), [], 2, Decision().as_dict()],
        [2, 39, state([mass.UNITS]), [[40, 1.5], [50, 2.0]], 3, CUT.as_dict()],
    ]
    before = SimpleNamespace(size=4, started=(0, 1, 2, 3))
    for rank in range(3):
        comm = SimpleNamespace(started=(1, 2, 3), rank=rank, gather=lambda *_: everyone)
        exchange = gossip()
        exchange.consensus_errors, exchange.state_dict = [], dict
        shrunk = agree(before, comm, 0, 0, exchange, SimpleNamespace(version=everyone[rank][4], last=Decision()))
        assert shrunk.cut == (CUT if rank == 1 else Decision())
        assert (shrunk.lost, shrunk.epoch, shrunk.steps) == ((0,), 1, 4 * 41)
        assert shrunk.mass == 1.5 / 4
        assert shrunk.consensus_errors == [(40, 1.5)]
        assert shrunk.exchange["masses"] == [mass.renormalise([mass.UNITS // 2, mass.UNITS, mass.UNITS], 3 << 40)[rank]]


CONFIG = {
    "epochs": 3,
    "data": {"name": "digits"},
    "model": {"name": "mlp", "widths": [16]},
    "exchange": {"name": "gossip", "rho": 0.5},
    "compute": {"fault_tolerance": "shrink"},
}


def test_what_one_loss_has_recorded_outlives_the_next(tmp_path):
    """Both in one epoch: the second must not send the record back to before the first."""
    config = validate({**CONFIG, "run_dir": str(tmp_path / "run")})
    freeze(config)
    engine = Engine(assemble(config, Alone(), StopRequest(), lambda _: None))
    assert engine.run(Silent()) == "done"
    shared, own, _ = engine._kept
    engine._kept = shared, own, [(40, 1.5), (50, 2.0)]  # measured, and not recorded yet
    parts, steps = engine.parts, engine.place.step
    for rank, errors in ((1, [(50, 2.0), (60, 2.5)]), (3, [])):
        again = replace(parts, exchange=assemble(config, Alone(), StopRequest(), lambda _: None).exchange)
        shrunk = Shrunk((rank,), 2, steps, parts.exchange.state_dict(), 0.5, errors)
        engine.go_on(again, shrunk, time.monotonic())
        if rank == 1:
            assert again.exchange.consensus_errors == [(40, 1.5), (50, 2.0), (60, 2.5)]
            engine._record_seen()
    assert engine.record["lost"].columns["rank"] == [1, 3]
    assert len(engine.record["resized"].columns["step"]) == 2
    assert engine.record["consensus"].columns["step"] == [40, 50, 60]
    assert engine._state()[0]["answer"] is None  # it is not done any more


@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.parametrize("method", ["_record_exchange", "_record_seen", "_save", "_show_epoch"])
def test_a_loss_anywhere_in_the_end_of_an_epoch_sends_all_back_into_it(method, epoch, tmp_path, monkeypatch):
    """Else its rows would be missing, and of the last one the checkpoint with the answer."""
    config = validate({**CONFIG, "run_dir": str(tmp_path / "run")})
    freeze(config)
    engine = Engine(assemble(config, Alone(), StopRequest(), lambda _: None))
    before = getattr(engine, method)

    def lost(*arguments):
        if engine.place.epoch == epoch:
            raise ConnectionError("a rank is lost")
        return before(*arguments)

    monkeypatch.setattr(engine, method, lost)
    with pytest.raises(ConnectionError):
        engine.run(Silent())
    monkeypatch.undo()
    assert (engine.ended, engine.place.epoch) == (epoch - 1, epoch)
    parts = replace(engine.parts, exchange=assemble(config, Alone(), StopRequest(), lambda _: None).exchange)
    shrunk = Shrunk((1,), engine.ended, engine.place.step, engine.parts.exchange.state_dict(), 0.5, [])
    engine.go_on(parts, shrunk, time.monotonic())
    assert engine.run(Silent()) == "done"
    for table in ("epochs", "profile"):
        assert len(next(iter(engine.record[table].columns.values()))) == 3
    loaded = parts.checkpoints.load()
    assert (loaded.shared["place"]["epoch"], loaded.shared["place"]["ended_by"]) == (3, "epochs")
    assert loaded.shared["answer"] is not None


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_run_goes_on_from_its_own_network_in_the_epoch_that_all_are_in(epoch, tmp_path):
    config = validate({**CONFIG, "run_dir": str(tmp_path / "run")})
    freeze(config)
    engine = Engine(assemble(config, Alone(), StopRequest(), lambda _: None))
    assert engine.run(Silent()) == "done"
    parts, steps = engine.parts, engine.place.step
    weights = [parameter.clone() for parameter in parts.model.parameters()]
    shrunk = Shrunk((1, 3), epoch, steps, parts.exchange.state_dict(), 0.5, [])
    again = replace(parts, exchange=assemble(config, Alone(), StopRequest(), lambda _: None).exchange)
    engine.go_on(again, shrunk, time.monotonic())
    assert (engine.place.epoch, engine.place.step, engine.taken) == (epoch, steps, steps)
    assert all((old == new).all() for old, new in zip(weights, parts.model.parameters(), strict=True))
    assert engine.record["lost"].columns["rank"] == [1, 3]
    assert engine.record["lost"].columns["mass"] == [0.25, 0.25]
    assert engine.record["resized"].columns["step"] == [steps]
    assert engine.record["epochs"].columns["epoch"] == list(range(1, epoch + 1))
    assert engine.run(Silent()) == "done"  # where it was sent back into the last epoch, it ends that once more
    assert engine.record["epochs"].columns["epoch"] == [1, 2, 3]
    assert engine.place.step == steps + (epoch == 2)


PRUNED = {**CONFIG, "pruning": {"name": "norm", "threshold": 1.4, "strength": 0.01}}


def sizes(engine):
    return [tuple(parameter.shape) for parameter in engine.parts.model.parameters()]


@pytest.mark.parametrize("method", ["_record_exchange", "_save"])
def test_a_loss_after_a_cut_sends_back_into_the_epoch_but_not_the_cut(method, tmp_path, monkeypatch):
    config = validate({**PRUNED, "run_dir": str(tmp_path / "run")})
    freeze(config)
    engine = Engine(assemble(config, Alone(), StopRequest(), lambda _: None))
    before = getattr(engine, method)

    def lost(*arguments):
        if engine.place.epoch == 2:
            raise ConnectionError("a rank is lost")
        return before(*arguments)

    monkeypatch.setattr(engine, method, lost)
    with pytest.raises(ConnectionError):
        engine.run(Silent())
    monkeypatch.undo()
    pruning, shapes = engine.parts.pruning, sizes(engine)
    assert shapes[0][0] < 16
    waited = pruning.state_dict()["pruner"]["phases"]
    parts = _among(engine.parts, Alone())
    assert parts.exchange.structure == pruning.version > 0
    shrunk = Shrunk((1,), engine.ended, engine.place.step, engine.parts.exchange.state_dict(), 0.5, [])
    version = pruning.version
    engine.go_on(parts, shrunk, time.monotonic())
    assert sizes(engine) == shapes
    assert parts.exchange.structure == pruning.version == version
    assert len(engine.record.structure) == engine.place.epoch == 1
    assert engine.parts.pruning.state_dict()["pruner"]["phases"] == engine_of_one_epoch(config, tmp_path) != waited
    assert engine.run(Silent()) == "done"
    assert len(engine.record.structure) == 3


def engine_of_one_epoch(config, tmp_path):
    """Where the method is after the first epoch."""
    config = replace(config, epochs=1, run_dir=str(tmp_path / "other"))
    freeze(config)
    engine = Engine(assemble(config, Alone(), StopRequest(), lambda _: None))
    assert engine.run(Silent()) == "done"
    return engine.parts.pruning.state_dict()["pruner"]["phases"]


def test_who_has_not_made_the_last_cut_makes_it_when_the_others_go_on(tmp_path):
    config = validate({**PRUNED, "epochs": 1, "run_dir": str(tmp_path / "run")})
    freeze(config)
    ahead, behind = (Engine(assemble(config, Alone(), StopRequest(), lambda _: None)) for _ in range(2))
    assert ahead.run(Silent()) == "done"
    pruning = ahead.parts.pruning
    assert pruning.version == 1
    parts = _among(behind.parts, Alone())
    assert parts.exchange.structure == 0
    shrunk = Shrunk((1,), 0, 10, behind.parts.exchange.state_dict(), 0.5, [], pruning.last)
    behind.go_on(parts, shrunk, time.monotonic())
    assert sizes(behind) == sizes(ahead)
    assert parts.exchange.structure == parts.pruning.version == 1
    assert behind.run(Silent()) == "done"


@pytest.mark.parametrize(("meeting", "cuts"), [("hear what is cut", 0), ("compare what is cut", 1)])
def test_a_loss_while_a_cut_is_told_or_compared_can_be_gone_on_from(meeting, cuts, tmp_path, monkeypatch):
    config = validate({**PRUNED, "epochs": 1, "run_dir": str(tmp_path / "run")})
    freeze(config)
    engine = Engine(assemble(config, Alone(), StopRequest(), lambda _: None))
    pruning, gather = engine.parts.pruning, engine.parts.comm.gather

    def lost(value, what):
        if what == meeting:
            raise ConnectionError("a rank is lost")
        return gather(value, what)

    monkeypatch.setattr(engine.parts.comm, "gather", lost)
    with pytest.raises(ConnectionError):
        engine.run(Silent())
    monkeypatch.undo()
    assert (pruning.version, bool(pruning.last.plan)) == (cuts, bool(cuts))  # what others are told if they have not
    parts, steps = _among(engine.parts, Alone()), engine.place.step
    shrunk = Shrunk((1,), 0, steps, engine.parts.exchange.state_dict(), 0.5, [])
    engine.go_on(parts, shrunk, time.monotonic())
    assert engine.run(Silent()) == "done"
    assert pruning.version >= 1
    assert len(engine.record.structure) == 1
