"""The reference of the configuration, made from its JSON schema.

python docs/make_configuration.py > docs/configuration.md
"""

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from hpc.config.files import PUBLISHED
from hpc.config.read import NOT_IDENTITY, schema
from hpc.config.root import Config

Row = tuple[str, str, str, str]
"""Key, type, default, meaning."""

_HEAD = """\
# Configuration

Every key of a run's YAML file. This page is made from the JSON schema. To make it again:
`python docs/make_configuration.py > docs/configuration.md`.

A file names what it changes; every other key has the default given here.

```yaml
run_dir: runs/persyn
epochs: 20
data: {{name: digits, batch_size: 16}}
model: {{name: mlp, widths: [256, 256]}}
exchange: {{name: persyn, tau: 8}}
```

- Every key can be given on the command line by its dotted name, as YAML: `structlearn train run.yaml
  --optimizer.lr 0.1 --model.widths "[64, 64]"`. It overrides the file. Another `name` drops the keys that the
  file gave to the old choice. A list is given whole: `--penalties "[{{name: l1}}]"`.
- A key that is not on this page is an error, and so is a key given twice, `epochs: "10"`, or `epochs: true`.
- `structlearn train run.yaml --print_config` prints the resolved configuration and trains nothing.
  `structlearn train --print_schema` prints the JSON schema, with which an editor completes and checks a file.
- The resolved configuration is frozen into the run folder. A folder is resumed only with the same values.
  What may differ:
{free},
  and the folder that `data.root` lies in.
- `run_id` names the experiment: a hash of all values but those.

Some keys are checked together, before a rank starts:

- `schedule.name: plateau` and `early_stopping` watch the validation loss: they need
  `data.validation` above zero.
- `optimizer.nesterov` needs `optimizer.momentum` above 0.
- `pruning` that cuts judges itself by the validation accuracy: it needs `data.validation` above zero. Several ranks
  need an `exchange` other than `none`. `pruning.proximal: true` needs `optimizer.name: sgd` and a penalty other than
  `l2`. `shrinknets` has its own `weight_strength`: `optimizer.weight_decay` stays 0.
- `penalties` take proximal steps with `optimizer.name: sgd`, and one of them, or of `pruning`, on the same weights.
- `regularizers` are there once each. `shade` needs a rectifier (not `lstm`, `tanh`, `sigmoid` or `identity`);
  `input_noise` is not for text; `reve` is for classes; `variational` needs `optimizer.weight_decay: 0`. Of
  `label_noise`, `rate` is for classes and `deviation` for a regression.
- `penalties: [{{name: bn_lasso}}]` needs a network with BatchNorms, or one that `pruning` gives them to.
- `model.regions` other than 1 needs `model.pooling: weldon`.
- `schedule.milestones` increase; `schedule.warmup_epochs` is at most `epochs`.
- `text` and `lstm` go together, and `tabular` goes with `mlp`; a model of your own may take any of them.
- `compute.channels_last` is for images.
- There are at least `data.train_size` training samples, and `data.batch_size` for every rank; images are as large as
  the network needs. (Looked up where the heads of the files tell; rows of csv files are counted later.)
- Two ranks use one CUDA device only with `compute.share_devices`.
"""

_FILES_HEAD = """\
## Where image files are looked for

With `data.root`: there, or in the sub-folder named here, as archives leave it. Without: in
`$STRUCTLEARN_DATA/NAME`, `~/.cache/structlearn/NAME`, `./data/NAME`, and for Fashion-MNIST where Debian's
package puts it; the first place that holds all files counts. Nothing is ever downloaded.

| `data.name` | sub-folder | how to get the files |
|---|---|---|"""


def page() -> str:
    """The whole page as Markdown."""
    root = schema()
    free = textwrap.fill(
        ", ".join(f"`{key}`" for key in sorted(NOT_IDENTITY)), 110, initial_indent="  ", subsequent_indent="  "
    )
    return "\n".join([_HEAD.format(free=free), *_sections(root), _FILES_HEAD, *_files()]) + "\n"


def _sections(root: dict[str, Any]) -> Iterator[str]:
    """The keys without sections first, then each section in the order of the file."""
    plain = {key: spec for key, spec in root["properties"].items() if not _parts(spec)}
    yield "## Keys of the run\n"
    yield from _table(_row(key, spec, None) for key, spec in plain.items())
    for key, spec in root["properties"].items():
        if parts := [root["$defs"][name] for name in _parts(spec)]:
            yield f"## `{key}`\n"
            yield from _section(root, f"{key}.N" if spec.get("type") == "array" else key, spec, parts)


def _section(root: dict[str, Any], key: str, spec: dict[str, Any], parts: list[dict[str, Any]]) -> Iterator[str]:
    """A section: one table, or one for all choices and one for each."""
    text = _prose(spec.get("description", ""))
    if "name" not in parts[0]["properties"]:
        yield _paragraph(_prose(parts[0]["description"]) + (f" {text}" if spec["default"] is None else ""))
        yield from _table(_rows(root, key, parts[0]))
        return
    default = spec["default"]["name"] if spec.get("type") != "array" else None
    names = [name for part in parts for name in _names(part)]
    shown = ", ".join(f"`{name}`{' (default)' if name == default else ''}" for name in names)
    which = f"A list, empty by default. Each of its sections (N, from 0) is one of {shown}."
    which = which if default is None else f"One of {shown}."
    yield _paragraph(f"{text} {which}" if len(names) > 1 else text)
    rows = {id(part): list(_rows(root, key, part)) for part in parts}
    counts = Counter(row for part in parts for row in rows[id(part)])
    common = [row for row, count in counts.items() if len(parts) > 1 and count > len(parts) / 2]
    if common:
        yield "Keys of all choices, where a choice does not say otherwise:\n"
        yield from _table(common)
    for part in parts:
        yield f"### `{key}.name: {_names(part)[0]}`{''.join(f', `{name}`' for name in _names(part)[1:])}\n"
        yield from _choice(part, rows[id(part)], common)


def _choice(part: dict[str, Any], rows: list[Row], common: list[Row]) -> Iterator[str]:
    """One choice: what it is, and the keys that the common ones do not tell."""
    keys = {row[0] for row in rows}
    lacking = [row[0] for row in common if row[0] not in keys]
    own = [row for row in rows if row not in common]
    yield _paragraph(_prose(part["description"]) + (f" It does not take {', '.join(lacking)}." if lacking else ""))
    if own:
        yield from _table(own)


def _rows(root: dict[str, Any], path: str, part: dict[str, Any]) -> Iterator[Row]:
    """A row for each key of a section, those of nested sections by their full name; ``name`` is the heading."""
    required = part.get("required", ())
    for key, spec in sorted(part["properties"].items(), key=lambda item: item[0] != "name"):
        if "$ref" in spec:
            yield from _rows(root, f"{path}.{key}", root["$defs"][_last(spec["$ref"])])
        elif key != "name" or not _names(part, found=False):
            yield _row(f"{path}.{key}", spec, "required" if key in required else None)


def _row(key: str, spec: dict[str, Any], default: str | None) -> Row:
    shown = f"`{_value(spec['default'])}`" if default is None and "default" in spec else default or "empty"
    return f"`{key}`", _type(spec), shown, _prose(spec.get("description", ""))


def _table(rows: Iterable[Row]) -> Iterator[str]:
    """A Markdown table whose source can be read, too."""
    cells = [("key", "type", "default", "meaning"), *((row[0], row[1], row[2], row[3]) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + f" | {row[3]} |"
        for row in cells
    ]
    yield "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|---|", *lines[1:]]) + "\n"


_WORDS = {"boolean": "`true`, `false`", "string": "text", "object": "mapping", "null": "`null`"}


def _type(spec: dict[str, Any]) -> str:
    """A schema in words."""
    if "anyOf" in spec:
        return ", or ".join(_type(choice) for choice in spec["anyOf"])
    if "enum" in spec or "const" in spec:
        return ", ".join(f"`{value}`" for value in spec.get("enum", [spec.get("const")]))
    if spec["type"] != "array":
        return _WORDS.get(spec["type"], f"{spec['type']}{_bounds(spec)}")
    if spec.get("maxItems") == 0:
        return "empty list"
    items = _type(spec["prefixItems"][0] if "prefixItems" in spec else spec["items"])
    for number in ("integer", "number"):
        items = items.replace(number, f"{number}s")
    return f"list of {len(spec['prefixItems'])} {items}" if "prefixItems" in spec else f"list of {items}"


def _bounds(spec: dict[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {spec[bound]:g}" for bound, sign in words.items() if bound in spec)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parts(spec: dict[str, Any]) -> list[str]:
    """Names of the definitions that a key's value can be; none where it is a plain value."""
    spec = spec["items"] if spec.get("type") == "array" and "items" in spec else spec
    choices = [spec, *spec.get("oneOf", ()), *spec.get("anyOf", ())]
    return [_last(choice["$ref"]) for choice in choices if "$ref" in choice]


def _names(part: dict[str, Any], *, found: bool = True) -> list[str]:
    """The values of ``name`` that choose a section; for a name with a pattern, its description where ``found``."""
    name = part["properties"].get("name", {})
    fixed = name.get("enum", [name["const"]] if "const" in name else [])
    return fixed or ([name["description"].strip("`.")] if found and name else [])


def _last(reference: str) -> str:
    return reference.rpartition("/")[2]


def _prose(text: str) -> str:
    """A docstring as one line of Markdown."""
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 110, break_on_hyphens=False) + "\n"


def _files() -> Iterator[str]:
    for name, published in PUBLISHED.items():
        folders = ", ".join(f"`{folder}`" for folder in published.folders)
        yield f"| `{name}` | {folders} | {_prose(published.advice)} |"


if __name__ == "__main__":
    assert Config.__doc__, "the schema's descriptions are docstrings: do not run this with -OO"
    sys.stdout.write(page())
