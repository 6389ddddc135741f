"""Every row of the table of mistakes: one message that helps, the exit code, no traceback, nothing lost."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("mpi4py", reason="mpi4py is not installed")
pytest.importorskip("pandas", reason="the extra analysis is not installed")
sys.path.insert(0, str(Path(__file__).parent))  # the table is a script, too: its modules lie beside it

from bad_inputs import ROWS, page
from provoking import OWN, Bad, Outcome, command, provoke, train

ROOT = Path(__file__).parent.parent.parent
CASES = [
    pytest.param(row, id=f"{section}: {row.title}".replace(" ", "-")) for section, rows in ROWS.items() for row in rows
]
MENDED = """
from torch import nn

def build(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
"""
CHANGES = {"run/status.json", "run/.lock"}
"""One says what happened last, also when that was a failure; the other which start holds the folder."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bad], Outcome]:
    """What comes of a row; each is provoked once."""
    trained = train(tmp_path_factory.mktemp("trained"))
    known: dict[int, Outcome] = {}

    def find(row: Bad) -> Outcome:
        if id(row) not in known:
            known[id(row)] = provoke(row, tmp_path_factory.mktemp("row"), trained)
        return known[id(row)]

    return find


@pytest.mark.parametrize("row", CASES)
def test_a_mistake_is_told(row: Bad, outcome: Callable[[Bad], Outcome]) -> None:
    found = outcome(row)
    assert row.says, "a row without words tests nothing"
    for words in row.says:
        assert words in found.err
    assert found.code == row.code
    assert found.err.startswith("structlearn: ")
    assert found.err.count("structlearn: ") == 1
    assert "Traceback" not in found.out + found.err


@pytest.mark.parametrize("row", CASES)
def test_a_mistake_loses_nothing(row: Bad, outcome: Callable[[Bad], Outcome]) -> None:
    found = outcome(row)
    lost = [name for name, content in found.before.items() if found.after.get(name) != content and name not in CHANGES]
    assert lost == []
    if row.code == 2 and not row.late:
        assert found.after.keys() == found.before.keys(), "a run that is refused leaves nothing behind"


def test_a_mended_configuration_starts_in_the_same_folder(tmp_path: Path) -> None:
    """Nothing was trained with the mistake, so its folder is not lost to the run."""
    (tmp_path / "mended.py").write_text(MENDED, encoding="utf-8")
    first = provoke(command("a name that is not there", f"{OWN} --model.name mended:built", "mended"), tmp_path)
    assert first.code == 2
    assert "runs/example/config.yaml" in first.after
    second = provoke(command("none", f"{OWN} --model.name mended:build"), tmp_path)
    assert (second.code, second.err) == (0, "")
    third = provoke(command("another run", f"{OWN} --model.name mended:build --seed 6"), tmp_path)
    assert third.code == 2
    assert "seed: 0 in the folder, 6 given" in third.err


def test_there_are_enough_and_none_twice() -> None:
    titles = [(section, row.title) for section, rows in ROWS.items() for row in rows]
    assert len(titles) == len(set(titles)) >= 30


def test_the_page_is_current(outcome: Callable[[Bad], Outcome]) -> None:
    made = page({section: [(row, outcome(row)) for row in rows] for section, rows in ROWS.items()})
    kept = (ROOT / "docs" / "bad-inputs.md").read_text(encoding="utf-8")
    assert kept == made, "python tests/contract/bad_inputs.py > docs/bad-inputs.md"
