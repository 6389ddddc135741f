"""`python -m analysis SOURCE --out DIR`: the report of one run or of many."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.schema import RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report and prints where it is; 0 if it did, 2 if it could not."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis", description="Tables, figures and one page from what runs have recorded."
    )
    parser.add_argument(
        "source", type=Path, nargs="+", help="a run folder, a record.h5, a folder of run folders, or a collected file"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--strict", action="store_true", help="fail if any run cannot be read, instead of listing it")
    given = parser.parse_args(arguments)
    # Here, so that --help need not wait for matplotlib.
    from analysis.report import report

    try:
        page = report(given.source, given.out, strict=given.strict)
    except (RecordError, OSError) as error:
        sys.stderr.write("error: " + " ".join(str(error).split()) + "\n")
        return 2
    sys.stdout.write(f"{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
