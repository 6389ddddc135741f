"""YAML as people write it."""

from pathlib import Path

import pytest

from hpc.config import yamls
from hpc.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E5", -2e5),
        ("+1.e3", 1e3),
        (".5e+1", 5.0),
        ("1.5", 1.5),
        ("e3", "e3"),
        ("1e", "1e"),
        ("10", 10),
        ("{a: 1e-3}", {"a": 1e-3}),
        ("a: &x {k: 1}\nb: {<<: *x, l: 2}", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
        ("", None),
    ],
)
def test_values(text: str, value: object) -> None:
    found = yamls.parse(text, "file")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"file, line 3: a is given for the second time"),
        ("s:\n  a: 1\n  a: 1", r"file, line 3: a is given for the second time"),
        ("a: [1\nb", r"file, line \d, column \d+: not valid YAML"),
        ("a: \x00", r"file: not valid YAML"),
        ("{[1]: 2}", r"file, line 1: got \[1\] as a key"),
        ("{{a: 1}: 2}", r"file, line 1: got \{'a': 1\} as a key"),
        ("when: 2026-13-45", r"file: not understood \(month must be in 1\.\.12"),
        ("!!python/object/apply:os.system ['true']", r"file, line 1, column 1: not valid YAML \(could not determine"),
        ("a: *b", r"file, line 1, column 4: not valid YAML \(found undefined alias"),
        ("&a {b: *a}", r"file, line 1, column \d+: not valid YAML \(found unconstructable recursive node"),
        ("[" * 3000, r"file: not understood"),
        ("a: 1\n---\nb: 2", r"file, line 2, column 1: not valid YAML \(but found another document"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        yamls.parse(text, "file")


def test_text_keeps_the_order_and_comes_back() -> None:
    values: dict[str, object] = {
        "z": 1,
        "a": [1, 2.5, None, True],
        "m": {"text": "ä: #", "small": 1e-30, "number?": "1e5", "breaks": "a\x85b\u2028c\nd "},
    }
    text = yamls.dump(values)
    assert list(yamls.parse(text, "file")) == ["z", "a", "m"]
    assert yamls.parse(text, "file") == values


def test_a_file_is_named_in_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("a: ä\n", encoding="utf-8")
    assert yamls.load(path) == {"a": "ä"}
    path.write_text("a: 1\na: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"plan\.yaml, line 2: a is given for the second time"):
        yamls.load(path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(UnicodeDecodeError):
        yamls.load(path)
