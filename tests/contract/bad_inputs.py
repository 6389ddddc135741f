"""The page of bad configurations, files and environments, with what each of them is told.

    python tests/contract/bad_inputs.py > docs/bad-inputs.md

The table is in bad_rows.py; the tests run it row by row.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bad_rows import ROWS
from provoking import Bad, Outcome, provoke, train

HEAD = """\
# What a mistake is told

Every mistake below ends with one message on standard error and an exit code: 2 for bad usage or a bad
configuration, found before any rank starts; 1 for what only shows when the data, the network or a checkpoint
are read. No traceback, and no file that was there is changed.

The page is made from the table that the tests run (`tests/contract/bad_rows.py`), with the messages as they
are: `python tests/contract/bad_inputs.py > docs/bad-inputs.md`. `/here` stands for the current folder; a long
dash for nothing beyond the command.
"""


def page(outcomes: Mapping[str, list[tuple[Bad, Outcome]]]) -> str:
    """The table as Markdown, by section."""
    return "\n".join([HEAD, *_sections(outcomes)])


def _sections(outcomes: Mapping[str, list[tuple[Bad, Outcome]]]) -> Iterator[str]:
    number = 0
    for title, rows in outcomes.items():
        yield f"## {title}\n\n| # | mistake | given | exit | message |\n| - | - | - | - | - |"
        for row, outcome in rows:
            number += 1
            yield f"| {number} | {row.title} | {_given(row)} | {outcome.code} | {_cell(outcome.err)} |"
        yield ""


def _given(row: Bad) -> str:
    """Environment, command and file, each in a line of its own."""
    lines = [f"{key}={value}" for key, value in row.env.items()]
    if row.args != "train bad.yaml":
        lines.append(row.args)
    lines += row.yaml.rstrip().splitlines()
    return "<br>".join([*([row.given] if row.given else []), *(f"`{_escaped(line)}`" for line in lines)])


def _cell(message: str) -> str:
    lines = message.strip().splitlines()
    return "<br>".join(_escaped(line.strip()).replace("<", "&lt;").replace("*", "\\*") for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\t", "(tab)").replace("|", "\\|")


def provoke_all() -> dict[str, list[tuple[Bad, Outcome]]]:
    """Every row of every section, each in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)

        def fresh(name: str) -> Path:
            (parent / name).mkdir()
            return parent / name

        trained = train(fresh("trained"))
        return {
            title: [(row, provoke(row, fresh(f"{title[:3]}-{place}"), trained)) for place, row in enumerate(rows)]
            for title, rows in ROWS.items()
        }


if __name__ == "__main__":
    print(page(provoke_all()), end="")
