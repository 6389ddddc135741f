"""Who a rank gossips with."""

import zlib
from typing import Protocol

import numpy as np

from hpc.config.peers import read_matrix
from hpc.config.training import Gossip
from hpc.seeding import generator

_BLOCK = 1024  # draws made at a time: a generator for every step would cost as much as a small step


class Peers(Protocol):
    """Chooses the rank that a push goes to. Every choice is a pure function of its arguments."""

    def choose(self, chance: float, pushes: int) -> int:
        """The receiver of push number ``pushes`` (from 0), given a number drawn from [0, 1)."""
        ...


class Uniform:
    """Any other rank, all alike (B Alg. 3)."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def choose(self, chance: float, pushes: int) -> int:
        """One of the others."""
        other = int(chance * (self._size - 1))
        return other + (other >= self._rank)


class Ring:
    """The next rank, always."""

    def __init__(self, rank: int, size: int) -> None:
        self._next = (rank + 1) % size

    def choose(self, chance: float, pushes: int) -> int:
        """The next rank."""
        return self._next


class Exponential:
    """The ranks 1, 2, 4, ... places on, in turn: what one rank knows reaches all others in log2(size) pushes."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._hops = [1 << power for power in range((size - 1).bit_length())]

    def choose(self, chance: float, pushes: int) -> int:
        """The next distance in turn."""
        return (self._rank + self._hops[pushes % len(self._hops)]) % self._size


class Drawn:
    """A rank drawn with the probabilities of a row of the user's matrix."""

    def __init__(self, row: tuple[float, ...]) -> None:
        self._ranks = [rank for rank, chance in enumerate(row) if chance]
        self._edges = np.cumsum([row[rank] for rank in self._ranks])[:-1]

    def choose(self, chance: float, pushes: int) -> int:
        """The place of the draw among the summed chances."""
        return self._ranks[int(np.searchsorted(self._edges, chance, side="right"))]


def build(config: Gossip, rank: int, size: int) -> Peers:
    """The choice that a configuration asks for."""
    match config.peers:
        case "uniform":
            return Uniform(rank, size)
        case "ring":
            return Ring(rank, size)
        case "exponential":
            return Exponential(rank, size)
        case "matrix":
            assert config.matrix is not None  # hpc.config.check saw to it
            return Drawn(read_matrix(config.matrix, size)[rank])


def digest(config: Gossip, size: int) -> int:
    """A checksum of the user's matrix; 0 where there is none."""
    return zlib.crc32(repr(read_matrix(config.matrix, size)).encode()) if config.matrix is not None else 0


class Draws:
    """The numbers that a rank draws at each step: pure functions of seed, rank and step, so there is no state."""

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank, self._block = seed, rank, -1
        self._numbers = np.empty((0, 2))

    def at(self, step: int) -> tuple[float, float]:
        """Two numbers from [0, 1): whether to push after step ``step``, and to whom."""
        block, place = divmod(step, _BLOCK)
        if block != self._block:
            self._block = block
            self._numbers = generator(self._seed, "exchange", self._rank, block).random((_BLOCK, 2))
        whether, whom = self._numbers[place]
        return float(whether), float(whom)
