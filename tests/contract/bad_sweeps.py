"""Mistakes in sweep files, and with the commands on a sweep's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from provoking import Bad, command

SUBMIT: Final = "submit bad.yaml --cluster slurm"


def sweep(title: str, yaml: str, *says: str, **more: Any) -> Bad:
    """A mistake in a sweep's file."""
    return Bad(title=title, yaml=f"run_dir: s\n{yaml}", says=says, args=SUBMIT, **more)


def damaged(text: str) -> Callable[[], object]:
    """A sweep's folder whose list of runs is this text."""

    def make() -> None:
        Path("s/sweep").mkdir(parents=True)
        Path("s/sweep/runs.json").write_text(text)

    return make


SWEEPS: Final = [
    command("no folder for the runs", SUBMIT, "run_dir: missing", "runs/rates", yaml="sweep: {grid: {seed: [1, 2]}}"),
    sweep(
        "a section with a typing error",
        "sweeep: {seeds: 2}",
        "sweeep: unknown key; did you mean sweep?",
    ),
    sweep("the same in it", "sweep: {gird: {epochs: [1]}}", "sweep.gird: unknown key; did you mean grid?"),
    sweep(
        "a varied key with a typing error",
        "sweep: {grid: {optimizer.lrr: [0.1]}}",
        "optimizer.lrr: unknown key; did you mean lr?",
        "(in lrr=0.1)",
    ),
    sweep("one value for a list", "sweep: {grid: {optimizer.lr: 0.1}}", "sweep.grid.optimizer.lr: got 0.1", "list"),
    sweep("an empty list", "sweep: {grid: {optimizer.lr: []}}", "sweep.grid.optimizer.lr: got []", "at least 1"),
    sweep(
        "a list for the grid",
        "sweep: {grid: [0.1, 0.2]}",
        "sweep.grid: got [0.1, 0.2]",
        "mapping of keys to values",
    ),
    sweep(
        "a value that some runs cannot have",
        "sweep: {grid: {epochs: [1, 0], optimizer.lr: [0.1, 0.2]}}",
        "epochs: got 0",
        "(in epochs=0 lr=0.1; epochs=0 lr=0.2)",
    ),
    sweep(
        "values that do not go together",
        "sweep: {grid: {exchange.name: [persyn, gossip]}}\nexchange: {tau: 5}\nresources: {ranks: 2}",
        "(in exchange=gossip)",
    ),
    sweep(
        "lists of different length in zip",
        "sweep: {zip: {epochs: [1, 2], optimizer.lr: [0.1]}}",
        "sweep.zip: its lists go together, so they are equally long",
        "epochs has 2, optimizer.lr has 1",
    ),
    sweep(
        "a key in grid and in zip",
        "sweep: {grid: {epochs: [1]}, zip: {epochs: [2]}}",
        "epochs stands in grid and in zip; leave one of them",
    ),
    sweep("seed and seeds", "sweep: {grid: {seed: [1]}, seeds: 2}", "sweep: seed stands in grid or zip"),
    sweep("no seed", "sweep: {seeds: 0}", "sweep.seeds: got 0"),
    sweep("a folder that varies", "sweep: {grid: {run_dir: [a, b]}}", "run_dir cannot vary"),
    sweep(
        "an exclusion by a key that does not vary",
        "sweep: {grid: {epochs: [1]}, exclude: [{seed: 1}]}",
        "sweep.exclude: seed does not vary",
    ),
    sweep(
        "an exclusion of everything",
        "sweep: {grid: {epochs: [1]}, exclude: [{epochs: 1}]}",
        "sweep.exclude: it leaves no run",
    ),
    sweep("an empty exclusion", "sweep: {grid: {epochs: [1]}, exclude: [{}]}", "an empty rule leaves every run out"),
    sweep("needs with a typing error", "resources: {rank: 2}", "resources.rank: unknown key; did you mean ranks?"),
    sweep("no rank", "resources: {ranks: 0}", "resources.ranks: got 0", "or equal to 1"),
    sweep(
        "ranks that do not fill the nodes",
        "resources: {ranks: 3, nodes: 2}",
        "resources.nodes: got 2, but 3 rank(s) cannot be spread evenly",
    ),
    sweep("memory with a unit", "resources: {mem_gb: 8G}", "resources.mem_gb: got '8G'", "number"),
    sweep(
        "a need under sbatch",
        "resources: {sbatch: {time: 60, nodes: 2}}",
        "resources.sbatch.time: set resources.timeout_min",
        "resources.sbatch.nodes: set resources.nodes",
    ),
    sweep(
        "dashes before an option",
        "resources: {sbatch: {--exclusive: true}}",
        "resources.sbatch: got '--exclusive'",
        "without dashes",
    ),
    sweep("half a core", "resources: {cpus_per_rank: 0.5}", "resources.cpus_per_rank: got 0.5", "valid integer"),
    sweep(
        "several mistakes at once",
        "epochs: -1\nsweep: {grid: {optimizer.lr: [0.1]}}\nmodel: {name: lenett}",
        "epochs: got -1",
        "did you mean lenet?",
    ),
    command(
        "a sweep for a run",
        "train bad.yaml",
        "sweep: unknown key; it belongs to a sweep",
        "submit",
        yaml="sweep: {seeds: 2}",
    ),
    command("a cluster that is none", "submit bad.yaml --cluster pbs", "pbs", "slurm", yaml="run_dir: s"),
    command("no cluster", "submit bad.yaml", "--cluster", yaml="run_dir: s"),
    command("no such sweep", "status s", "s: holds no sweep", "run_dir of a sweep file"),
    command(
        "a damaged list of runs",
        "status s",
        "runs.json: cannot be read",
        "moved away",
        prepare=damaged('{"runs": {"a"'),
        given="s/sweep/runs.json is broken off",
    ),
    command(
        "a run that is not there",
        "logs s 12ab",
        "12ab: no run of this sweep is called that",
        prepare=damaged('{"runs": {}}'),
        given="a sweep without such a run",
    ),
]
