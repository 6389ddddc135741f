"""Who a rank gossips with."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.alone import Alone
from hpc.config.read import validate
from hpc.config.training import Gossip
from hpc.errors import ConfigError
from hpc.exchange import peers
from hpc.exchange.peers import digest
from hpc.run import _compare_configs
from hpc.seeding import generator

LAST = 1.0 - 2.0**-53  # the largest number that a draw can be
CHANCES = st.floats(0, LAST)
RANK_OF = st.integers(2, 300).flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size)))


def kinds(rank, size, tmp_path=None):
    """Every kind of choice, by name."""
    row = [0.0 if peer == rank else 1 / (size - 1) for peer in range(size)]
    return {
        "uniform": peers.Uniform(rank, size),
        "ring": peers.Ring(rank, size),
        "exponential": peers.Exponential(rank, size),
        "matrix": peers.Drawn(tuple(row)),
    }


@pytest.mark.parametrize("name", ["uniform", "ring", "exponential", "matrix"])
@given(place=RANK_OF, chance=CHANCES, pushes=st.integers(0, 10**9))
@settings(deadline=None)
def test_a_choice_is_another_rank_and_always_the_same(name, place, chance, pushes):
    rank, size = place
    one, again = (kinds(rank, size)[name] for _ in range(2))
    chosen = one.choose(chance, pushes)
    assert 0 <= chosen < size
    assert chosen != rank
    one.choose(1 - chance if chance else 0.5, pushes + 1)  # nothing is remembered
    assert one.choose(chance, pushes) == again.choose(chance, pushes) == chosen
    assert isinstance(chosen, int)


@pytest.mark.parametrize("size", [*range(2, 70), 1023, 1024, 1025, 4096])
@pytest.mark.parametrize("chance", [0.0, LAST])
def test_the_ends_of_the_draw_are_ranks_too(size, chance):
    for rank in {0, 1, size // 2, size - 1}:
        for name, choice in kinds(rank, size).items():
            chosen = choice.choose(chance, 0)
            assert chosen in set(range(size)) - {rank}, name
    assert peers.Uniform(0, size).choose(LAST, 0) == size - 1
    assert peers.Uniform(size - 1, size).choose(LAST, 0) == size - 2
    assert peers.Uniform(0, size).choose(0.0, 0) == 1


@pytest.mark.parametrize("size", range(2, 40))
def test_uniform_gives_every_other_rank_an_interval_of_the_same_length(size):
    """The edges lie where they must: each rank's interval of draws is 1 / (size - 1), exactly but for one rounding."""
    for rank in range(size):
        choice = peers.Uniform(rank, size)
        others = [peer for peer in range(size) if peer != rank]
        for place, peer in enumerate(others):
            inside = (Fraction(place) + Fraction(1, 2)) / (size - 1)
            low, high = (Fraction(end) / (size - 1) for end in (place, place + 1))
            assert choice.choose(float(inside), 0) == peer
            assert choice.choose(float(low) + 1e-12, 0) == peer
            assert choice.choose(float(high) - 1e-12, 0) == peer


def test_what_uniform_draws_in_a_run_is_uniform():
    """Pearson's statistic over the stream that a run draws from: far from the tail, for each of several ranks."""
    size, steps = 7, 20_000
    for rank in range(3):
        draws, choice = peers.Draws(5, rank), peers.Uniform(rank, size)
        counts = np.bincount([choice.choose(draws.at(step)[1], 0) for step in range(steps)], minlength=size)
        assert counts[rank] == 0
        expected = steps / (size - 1)
        others = np.delete(counts, rank)
        assert ((others - expected) ** 2 / expected).sum() < 20.5  # chi-square, 5 degrees: one in a thousand is above


def test_whether_and_to_whom_are_independent():
    draws = peers.Draws(1, 0)
    numbers = np.array([draws.at(step) for step in range(20_000)])
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 4 / np.sqrt(len(numbers))
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=4 * np.sqrt(1 / 12 / len(numbers)))


def test_a_ring_closes():
    assert [peers.Ring(rank, 3).choose(0.7, 5) for rank in range(3)] == [1, 2, 0]


@pytest.mark.parametrize("size", [*range(2, 35), 63, 64, 65, 100, 1000])
def test_exponential_reaches_all_in_log2_rounds(size):
    """Each round, every rank pushes once: what rank 0 knows is everywhere after ceil(log2(size)) rounds."""
    choices = [peers.Exponential(rank, size) for rank in range(size)]
    rounds = int(np.ceil(np.log2(size)))
    for first in (0, 1, 7):  # wherever in its turns a rank is, if all are there
        knowing = {0}
        for pushes in range(first, first + rounds):
            knowing |= {choices[rank].choose(0.3, pushes) for rank in knowing}
        assert len(knowing) == size
    assert len({choices[0].choose(0.0, pushes) for pushes in range(50)}) == rounds


@given(st.data())
@settings(deadline=None)
def test_a_row_is_drawn_with_its_chances(data):
    """Exactly: a draw falls to the rank in whose part of [0, 1) it lies; ranks without a chance are never drawn."""
    size = data.draw(st.integers(2, 12))
    weights = data.draw(st.lists(st.integers(0, 20), min_size=size, max_size=size).filter(any))
    row = tuple(weight / sum(weights) for weight in weights)
    choice, edges = peers.Drawn(row), np.cumsum([0, *weights])
    for peer in range(size):
        low, high = (Fraction(int(edge), int(edges[-1])) for edge in edges[peer : peer + 2])
        if low < high:
            assert choice.choose(float((low + high) / 2), 0) == peer
            assert choice.choose(min(float(low) + 1e-9, LAST), 0) == peer
            assert choice.choose(float(high) - 1e-9, 0) == peer
    drawn = {choice.choose(chance, 0) for chance in np.linspace(0, LAST, 500)}
    assert all(row[peer] > 0 for peer in drawn)


def test_a_row_whose_sum_is_a_little_off_still_gives_a_rank():
    row = (0.0, 0.3333333, 0.3333333, 0.3333333)  # as in a file with seven digits
    assert peers.Drawn(row).choose(LAST, 0) == 3


def test_draws_are_functions_of_seed_rank_and_step():
    steps = [*range(5), 1022, 1023, 1024, 1025, 9999]
    forwards, backwards = peers.Draws(3, 1), peers.Draws(3, 1)
    found = {step: forwards.at(step) for step in steps}
    assert {step: backwards.at(step) for step in reversed(steps)} == found
    assert len(set(found.values())) == len(steps)
    for other in (peers.Draws(4, 1), peers.Draws(3, 2)):
        assert not {other.at(step) for step in steps} & set(found.values())
    assert found[0] == tuple(generator(3, "exchange", 1, 0).random(2))  # the documented stream


def test_a_configuration_names_its_peers(tmp_path):
    path = tmp_path / "matrix.txt"
    path.write_text("0 1 0\n0 0 1\n.5 .5 0\n")
    built = {
        kind: peers.build(Gossip(rho=0.1, peers=kind, matrix=str(path) if kind == "matrix" else None), 2, 3)
        for kind in ("uniform", "ring", "exponential", "matrix")
    }
    assert {kind: type(choice) for kind, choice in built.items()} == {
        "uniform": peers.Uniform, "ring": peers.Ring, "exponential": peers.Exponential, "matrix": peers.Drawn,
    }  # fmt: skip
    assert [built["matrix"].choose(chance, 0) for chance in (0.0, 0.49, 0.51, LAST)] == [0, 0, 1, 1]  # its own row


@pytest.mark.parametrize("differs", [0, 1])
def test_ranks_with_other_numbers_in_their_matrix_are_refused(differs, tmp_path):
    """The same name may be another file on another node."""
    (tmp_path / "matrix").write_text("0 1\n1 0\n")
    config = validate({"exchange": {"name": "gossip", "rho": 0.5, "peers": "matrix", "matrix": f"{tmp_path}/matrix"}})

    class Two(Alone):
        size = 2

        def gather(self, value, what):
            key = "checksum of exchange.matrix"
            return [value, {**value, key: value[key] + differs}]

    if not differs:
        _compare_configs(config, Two())
        return
    with pytest.raises(ConfigError, match=r"rank 1 has another configuration .*\(checksum of exchange.matrix"):
        _compare_configs(config, Two())


def test_the_checksum_of_a_matrix_is_of_its_numbers(tmp_path):
    (tmp_path / "matrix").write_text("0 1\n1 0\n")
    config = Gossip(rho=0.5, peers="matrix", matrix=str(tmp_path / "matrix"))
    before = digest(config, 2)
    (tmp_path / "matrix").write_text("# two ranks\n0, 1.0\n1.0, 0\n")
    assert digest(config, 2) == before != 0
    assert digest(Gossip(rho=0.5), 2) == 0
    (tmp_path / "matrix").write_text("0 1 0\n0 0 1\n1 0 0\n")
    assert digest(config, 3) != before
