"""In which order messages are handed over, whatever MPI completes first."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from hpc.exchange.traffic import IDLE, MOVING, arrived


@dataclass
class Found:
    """A receive whose message was found, and completes at a time of its own."""

    source: int | None
    complete: bool

    def done(self) -> bool:
        return self.complete

    def sender(self) -> int | None:
        return self.source

    def cancel(self) -> None:
        raise AssertionError


def test_a_message_that_overtook_waits_for_those_before_it() -> None:
    first, second, other = Found(1, complete=False), Found(1, complete=True), Found(2, complete=True)
    posted = [(first, "first"), (second, "second"), (other, "other"), (Found(None, complete=False), "none")]
    assert arrived(posted) == (["other"], MOVING)
    first.complete = True
    assert arrived(posted) == (["first", "second"], IDLE)
    assert [name for _, name in posted] == ["none"]


@given(st.lists(st.integers(0, 2), max_size=8), st.randoms(use_true_random=False))
def test_each_rank_is_heard_in_its_order(sources: list[int], chance) -> None:
    flights = [Found(source, complete=False) for source in sources]
    posted = [(flight, place) for place, flight in enumerate(flights)]
    heard: list[int] = []
    for flight in chance.sample(flights, len(flights)):
        flight.complete = True
        heard += arrived(posted)[0]
    assert sorted(heard) == list(range(len(sources)))
    for source in set(sources):
        own = [place for place in heard if sources[place] == source]
        assert own == sorted(own)
