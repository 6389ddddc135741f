"""The user's own matrix of who gossips with whom, read and checked before any rank starts."""

import math
from pathlib import Path

from hpc.errors import ConfigError

Matrix = tuple[tuple[float, ...], ...]

_KEY = "exchange.matrix"


def read_matrix(path: str, size: int) -> Matrix:
    """A square text file of numbers: row r holds the chances that rank r pushes to each of the ranks.

    Numbers are separated by spaces or commas; ``#`` starts a comment. Rows add up to 1, nobody pushes to itself,
    and what one rank knows must be able to reach all others.

    Raises:
        ConfigError: the file cannot be read, or is no such matrix for ``size`` ranks.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        lines = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
        rows = tuple(tuple(map(float, line)) for line in lines if line)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{_KEY}: {path} cannot be read as rows of numbers ({error}); give a text file") from None
    if len(rows) != size or any(len(row) != size for row in rows):
        shape = f"{len(rows)} row(s) of {sorted({len(row) for row in rows})} numbers"
        raise ConfigError(f"{_KEY}: {path} has {shape}, but {size} ranks need {size} rows of {size}")
    for rank, row in enumerate(rows):
        if not all(math.isfinite(chance) and chance >= 0 for chance in row) or abs(sum(row) - 1) > 1e-6:
            raise ConfigError(f"{_KEY}: {path}, row {rank}: {row} are no chances that add up to 1; mend the row")
        if row[rank]:
            raise ConfigError(f"{_KEY}: {path}, row {rank}: rank {rank} would push to itself; put 0 on the diagonal")
    for graph, way in ((rows, "from"), (tuple(zip(*rows, strict=True)), "to")):
        if lost := sorted(set(range(size)) - _reached(graph)):
            raise ConfigError(
                f"{_KEY}: {path}: there is no way {way} rank 0 for rank(s) {lost}, so the ranks would never agree; "
                f"connect them"
            )
    return rows


def _reached(graph: Matrix) -> set[int]:
    """The ranks that rank 0 reaches."""
    reached, fresh = {0}, [0]
    while fresh:
        rank = fresh.pop()
        new = {peer for peer, chance in enumerate(graph[rank]) if chance} - reached
        reached |= new
        fresh += new
    return reached
