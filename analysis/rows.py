"""The table that an experiment fills run by run, over as many starts as it takes."""

from __future__ import annotations

import csv
import io
import os
from typing import TYPE_CHECKING, Any

from analysis.schema import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path


class Rows:
    """A csv file with a row for each run that is done. It outlives a start, so that no run is made twice.

    A file that is not there is begun. A last line without its end is what a start left that was killed while it wrote:
    it is taken out of the file, so that its run is made again. As an iterable: the rows, as the text that is written.

    Args:
        path: the file; its folder is made if need be.
        columns: all columns, in their order.
        key: those that tell one run from another.

    Raises:
        RecordError: the file has other columns, or a row with more or fewer values than columns.
    """

    def __init__(self, path: Path, columns: Iterable[str], key: Iterable[str]) -> None:
        self._path, self._columns, self._key = path, list(columns), list(key)
        self._rows: dict[tuple[str, ...], dict[str, str]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._whole_lines()
        if not whole:
            path.write_text(_text([self._columns]), encoding="utf-8")
            return
        reader = csv.reader(io.StringIO(whole.decode(), newline=""))
        if (found := next(reader)) != self._columns:
            got, wanted = (f"the columns {', '.join(names)}" for names in (found, self._columns))
            raise RecordError(path, got, wanted, "give --results another folder, or move that file away")
        for values in reader:
            if len(values) != len(self._columns):
                got = f"{len(values)} values in line {reader.line_num}"
                raise RecordError(path, got, f"{len(self._columns)}, one a column", "mend that line, or delete it")
            self._take(values)

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(list(self._rows.values()))

    def has(self, *key: object) -> bool:
        """Is there a row with these values of its key? Numbers count as the text that is written of them."""
        return tuple(_value(each) for each in key) in self._rows

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write rows, all at once, but for those whose key is there already. A column that a row lacks stays empty.

        Values have no line breaks: by them a row that is broken off is known.

        Raises:
            ValueError: a row has a column that the file does not have.
        """
        new = []
        for row in rows:
            if unknown := row.keys() - set(self._columns):
                raise ValueError(f"{self._path} has no columns {', '.join(sorted(unknown))}")
            values = [_value(row.get(name)) for name in self._columns]
            assert not any({"\n", "\r"} & set(value) for value in values), f"a line break in {row}"
            if self._take(values):
                new.append(values)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            file.write(_text(new))

    def _take(self, values: list[str]) -> bool:
        """Keep a row, if its key is a new one. Is it?"""
        row = dict(zip(self._columns, values, strict=True))
        key = tuple(row[name] for name in self._key)
        return self._rows.setdefault(key, row) is row

    def _whole_lines(self) -> bytes:
        """What is in the file; a last line that is not whole is cut off."""
        found = self._path.read_bytes() if self._path.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        if whole != found:
            os.truncate(self._path, len(whole))
        return whole


def _value(value: object) -> str:
    """As it is written."""
    return "" if value is None else str(value)


def _text(rows: list[list[str]]) -> str:
    """Rows as csv."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
