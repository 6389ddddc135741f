"""A sweep file: one configuration, what varies over its runs, and what they need."""

import difflib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError

from hpc.config.check import check
from hpc.config.explain import OF_SWEEPS, explain
from hpc.config.read import identity, put, validate, values_in
from hpc.config.root import Config
from hpc.config.types import Count, Natural, Text, section
from hpc.errors import ConfigError
from jobs.resources import Resources

_Values = dict[Text, Annotated[list[Any], Field(min_length=1)]]
_TOLD: Final = 3
"""Of how many runs a problem that many have says the labels."""


@section
class Sweep:
    """What varies. A key is dotted, as on the command line: optimizer.lr, resources.ranks, pruning.name."""

    grid: _Values = Field(default_factory=dict)
    """Keys with lists of values: every combination is a run. null: as the file has it."""
    zip: _Values = Field(default_factory=dict)
    """Keys with equally long lists: the first values go together, the second, ... null: as the file has it."""
    seeds: Count | list[Natural] | None = None
    """All of it with the seeds 0, 1, ... (how many), or with these; null: with the file's `seed`."""
    exclude: list[dict[Text, Any]] = Field(default_factory=list)
    """Combinations that are left out: those that have all values of one of these."""


@section
class File:
    """The two sections that a sweep file has beside a run's configuration."""

    sweep: Sweep = Field(default_factory=Sweep)
    resources: Resources = Field(default_factory=Resources)


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        id: twelve hexadecimal digits: a hash of all that decides its result, the number of ranks included. The name of
            its folder.
        label: what varies, for people: "lr=0.1 seed=2".
        config: resolved; its run_dir is its own.
        resources: what it needs.
    """

    id: str
    label: str
    config: Config
    resources: Resources


@dataclass(frozen=True)
class Expanded:
    """A sweep file, read.

    Attributes:
        folder: where its runs are, each in a folder that is named by its id.
        runs: each once, in the order in which they are to start: seed by seed.
        repeated: how many combinations gave a run that was there already.
    """

    folder: Path
    runs: tuple[Run, ...]
    repeated: int


def read(path: Path, overrides: Sequence[str] = ()) -> Expanded:
    """The runs of a sweep file, with ``--KEY.SUBKEY VALUE`` overrides, each checked as far as this machine can tell.

    Raises:
        ConfigError: one message for every problem found, with its key and the runs that have it.
    """
    values = values_in(path, overrides)
    own: dict[str, Any] = {key: values.pop(key) for key in OF_SWEEPS if key in values}
    for key in values.keys() - {each.name for each in fields(Config)}:
        if near := difflib.get_close_matches(key, OF_SWEEPS, n=1):
            raise ConfigError(f"{key}: unknown key; did you mean {near[0]}?")
    file = _file(own)
    if "run_dir" not in values:
        raise ConfigError("run_dir: missing; give the folder that the sweep's runs are to lie in, such as runs/rates")
    _check_sweep(file.sweep)
    return _expanded(values, own, file)


def resources(path: Path | None, overrides: Sequence[str] = ()) -> tuple[Resources, frozenset[str]]:
    """(the section `resources` of a sweep file, which of its keys are given); None: no file. The rest is not looked at.

    Raises:
        ConfigError: one message for every problem found.
    """
    own = values_in(path, overrides).get("resources")
    return _file({"resources": own}).resources, frozenset(own or ())


def _file(values: Mapping[str, Any]) -> File:
    try:
        return TypeAdapter(File).validate_python({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(explain(error, File)) from None


def _check_sweep(sweep: Sweep) -> None:
    """Problems of the sweep as such."""
    problems = []
    lengths = {key: len(column) for key, column in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        problems.append(f"sweep.zip: its lists go together, so they are equally long, but {told}")
    twice = [key for key in sweep.grid if key in sweep.zip]
    problems += [f"sweep: {key} stands in grid and in zip; leave one of them" for key in twice]
    varied = [*sweep.grid, *sweep.zip]
    for key in varied:
        if key in {"run_dir", "sweep", "resources"} or key.startswith("sweep."):
            problems.append(f"sweep: {key} cannot vary over the runs of a sweep; leave it out of grid and zip")
        if key == "seed" and sweep.seeds is not None:
            problems.append("sweep: seed stands in grid or zip, and there is sweep.seeds; leave one of them")
    for rule in sweep.exclude:
        unknown = [key for key in rule if key not in varied and not (key == "seed" and sweep.seeds is not None)]
        problems += [f"sweep.exclude: {key} does not vary in this sweep; name keys of grid or zip" for key in unknown]
        if not rule:
            problems.append("sweep.exclude: an empty rule leaves every run out; give it keys, or leave it out")
    if problems:
        raise ConfigError(problems)


def combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """What is set in each run, in their order: seed by seed, the grid's last key the fastest, then zip."""
    seeds = range(sweep.seeds) if isinstance(sweep.seeds, int) else sweep.seeds
    chosen_seeds = [{}] if seeds is None else [{"seed": seed} for seed in seeds]
    rows = [dict(zip(sweep.zip, row, strict=True)) for row in zip(*sweep.zip.values(), strict=True)] or [{}]
    for seed in chosen_seeds:
        for point in itertools.product(*sweep.grid.values()):
            for row in rows:
                chosen = dict(zip(sweep.grid, point, strict=True)) | row | seed
                if not any(all(chosen[key] == value for key, value in rule.items()) for rule in sweep.exclude):
                    yield {key: value for key, value in chosen.items() if value is not None}


def _expanded(values: dict[str, Any], own: dict[str, Any], file: File) -> Expanded:
    folder = Path(str(values["run_dir"]))
    runs: dict[str, Run] = {}
    problems: dict[str, list[str]] = {}
    repeated = 0
    every = list(combinations(file.sweep))
    for chosen, label in zip(every, labels(every), strict=True):
        try:
            run = _run(values, own, file.resources, chosen, label)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(label)
            continue
        repeated += run.id in runs
        runs.setdefault(run.id, run)
    if problems:
        raise ConfigError([f"{problem}{_whose(labels, file.sweep)}" for problem, labels in problems.items()])
    if not runs:
        raise ConfigError("sweep.exclude: it leaves no run; take a rule away")
    return Expanded(folder, tuple(runs.values()), repeated)


def _run(values: dict[str, Any], own: dict[str, Any], common: Resources, chosen: dict[str, Any], label: str) -> Run:
    mine, needs = json.loads(json.dumps(values)), None
    for key, value in chosen.items():
        if key.startswith("resources."):
            needs = json.loads(json.dumps(own.get("resources") or {})) if needs is None else needs
            put(needs, key.removeprefix("resources."), value)
        else:
            put(mine, key, value)
    resources = common if needs is None else _file({"resources": needs}).resources
    if problems := resources.problems():
        raise ConfigError(problems)
    config = validate(mine)
    identifier = _identifier(config, resources.ranks)
    config = replace(config, run_dir=str(Path(config.run_dir) / identifier))
    check(config, None, resources.ranks)
    return Run(identifier, label, config, resources)


def _identifier(config: Config, ranks: int) -> str:
    """As :func:`hpc.config.read.run_id`, of the number of ranks as well: it changes what is trained."""
    canonical = json.dumps(identity(config) | {"ranks": ranks}, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()


def labels(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each of these combinations sets, for people: "lr=0.1 seed=2"."""
    short = _short(list(dict.fromkeys(key for chosen in every for key in chosen)))
    texts = {key: _texts([chosen.get(key) for chosen in every]) for key in short}
    return [
        " ".join(f"{short[key]}={texts[key][number]}" for key in chosen) or "the only run"
        for number, chosen in enumerate(every)
    ]


def _short(keys: Sequence[str]) -> dict[str, str]:
    """A key's last word, or as much before it as tells it from the others; a name says which section's it is."""
    found = {}
    for key in keys:
        words = key.split(".")
        if words[-1] == "name" and len(words) > 1:
            words = words[:-1]
        found[key] = words[-1]
    often = Counter(found.values())
    return {key: word if often[word] == 1 else key for key, word in found.items()}


def _texts(values: Sequence[Any]) -> list[str]:
    """The values of a key in labels: a section by its name, with its keys where others have that name too."""
    named: dict[str, set[str]] = {}
    for value in values:
        if isinstance(value, Mapping):
            named.setdefault(str(value.get("name")), set()).add(_text(value))
    alone = {name for name, texts in named.items() if len(texts) == 1}
    return [
        str(value["name"]) if isinstance(value, Mapping) and "name" in value and str(value["name"]) in alone
        else _text(value)
        for value in values
    ]  # fmt: skip


def _text(value: Any) -> str:
    """A value: short, and without spaces."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        rest = ",".join(f"{key}={_text(each)}" for key, each in value.items() if key != "name")
        return f"{value.get('name', '')}({rest})" if rest else str(value.get("name", ""))
    return (",".join(map(_text, value)) or "none") if isinstance(value, list) else str(value)


def _whose(labels: Sequence[str], sweep: Sweep) -> str:
    if not (sweep.grid or sweep.zip):
        return ""
    more = f", and {len(labels) - _TOLD} more" if len(labels) > _TOLD else ""
    return f" (in {'; '.join(labels[:_TOLD])}{more})"
