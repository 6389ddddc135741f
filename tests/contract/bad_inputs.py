"""The page of bad configurations, files and environments, with what each of them is told.

    python tests/contract/bad_inputs.py > docs/bad-inputs.md

The rows are in bad_configurations.py, bad_surroundings.py and bad_sweeps.py; the tests run them one by one.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import bad_configurations as configurations
import bad_surroundings as surroundings
import bad_sweeps as sweeps
from provoking import DIGITS, OWN, TRAINED, Bad, Outcome, provoke, train

ROWS: Final = {
    "The configuration": configurations.CONFIGURATION,
    "The configuration's file": configurations.FILES,
    "What does not go together": configurations.COMBINATIONS,
    "Data": surroundings.DATA,
    "The machine and its launcher": surroundings.MACHINE,
    "The run folder": surroundings.FOLDER,
    "A network of your own": surroundings.NETWORK,
    "Checkpoints": surroundings.CHECKPOINTS,
    "Records": surroundings.REPORT,
    "Export": surroundings.EXPORT,
    "The command line": configurations.USAGE,
    "Sweeps": sweeps.SWEEPS,
}

HEAD = """\
# What a mistake is told

Every mistake below ends with one message on standard error and an exit code: 2 for bad usage and bad
configurations, 1 for what goes wrong later, in files, networks and checkpoints. Code 2 comes before any rank
starts and leaves no folder behind, except where it takes the rows of a table or the network, as it is built, to see
the mistake; mended, the run then starts in the same folder. No traceback, and no file that was there is changed.

This page is made from the table that the tests run (`tests/contract/bad_inputs.py`), with the messages as they
are: `python tests/contract/bad_inputs.py > docs/bad-inputs.md`. The column "given" shows what makes the mistake:
what follows `structlearn` on the command line, or lines of the configuration's file `bad.yaml`; `/here` is the
current folder, and # a number that differs from run to run.
"""


# Sizes, places and hashes: they change with every version of a library or a key, and tell a reader nothing.
VOLATILE = re.compile(
    r"\d+(?= bytes, but \d+ were written)|(?<=bytes, but )\d+(?= were written)|(?<=column )\d{3,}|(?<=\(char )\d+"
    r"|(?<=eof = )\d+|(?<=this is run )[0-9a-f]{12}"
)


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
        lines.append(_short(row.args))
    lines += row.yaml.rstrip().splitlines()
    return "<br>".join([*([row.given] if row.given else []), *(f"`{_escaped(line)}`" for line in lines)])


def _short(args: str) -> str:
    """The command without what only makes the test quick."""
    for whole in (DIGITS, OWN):
        args = args.replace(whole, "train")
    return args.replace(TRAINED, "train --run_dir run").replace(" --progress none", "")


def _cell(message: str) -> str:
    lines = VOLATILE.sub("#", message.strip()).replace("|", "\\|").splitlines()
    return "<br>".join(line.strip().replace("<", "&lt;").replace("*", "\\*") for line in lines)


def _escaped(text: str) -> str:
    text = text if len(text) <= 120 else f"{text[:100]}..."
    return text.replace("\t", "(tab)").replace("|", "\\|")


def provoke_all() -> dict[str, list[tuple[Bad, Outcome]]]:
    """Every row of every section, each in a folder of its own."""
    with tempfile.TemporaryDirectory() as parent:

        def fresh() -> Path:
            return Path(tempfile.mkdtemp(dir=parent))

        trained = train(fresh())
        return {title: [(row, provoke(row, fresh(), trained)) for row in rows] for title, rows in ROWS.items()}


if __name__ == "__main__":
    print(page(provoke_all()), end="")
