"""Fit regressions with ShrinkNets and with group sparsity, over a range of strengths (S 4.4, 4.5).

    python experiments/shrinknets_regression/run.py [FILE.yaml] [--results DIR]

One row a seed goes to ``results/runs.csv``, and to ``results/removal.csv`` for the killing rules, as soon as the seeds
of a setting are done (they are trained together); what is there is not made again. All in this process, on one thread.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fits import Descent, Fit, Setting, loss, refit, train
from sets import Split, read, split

from analysis.experiment import parser
from analysis.rows import Rows
from hpc.config import yamls

HERE = Path(__file__).parent


class Run(NamedTuple):
    """A setting, as in the columns of these names."""

    set: str
    side: str
    rule: str
    strength: str
    rate: str
    weight_ratio: str


RESULTS = ["columns", "dead", "train_loss", "valid_loss", "test_loss", "refit_train_loss", "refit_valid_loss",
           "refit_test_loss", "cost", "epochs"]  # fmt: skip
COLUMNS = [*Run._fields, "seed", *RESULTS]


def run_of(name: str, side: str, rule: str, setting: Setting) -> Run:
    ratio = setting.side.get("weight_ratio")
    return Run(name, side, rule, f"{setting.strength:g}", f"{setting.rate:g}", "" if ratio is None else f"{ratio:g}")


def main_runs(plan: dict[str, Any], name: str) -> Iterator[tuple[Run, Setting]]:
    """All sides and strengths on one set; on one of the sets further rates and ratios, too."""
    search = plan["search"]
    for side, options in plan["sides"].items():
        switches = options["method"] == "shrinknets"
        rule = "sign variance, g = 0.99" if switches else ""  # the default of ShrinkNets
        chosen = [(options, plan["rate"])]
        if name == search["set"] and side in search["sides"]:
            chosen += [(options, rate) for rate in search["rates"]]
            if switches:
                chosen += [(options | {"weight_ratio": ratio}, plan["rate"]) for ratio in search["weight_ratios"]]
        for each, rate in chosen:
            for strength in plan["strengths"]:
                setting = Setting(each, strength, rate, removal=switches)
                yield run_of(name, side, rule, setting), setting


def removal_runs(plan: dict[str, Any], name: str) -> Iterator[tuple[Run, Setting]]:
    """All killing rules, and none, on one set."""
    removal = plan["removal"]
    side = removal["side"]
    for strength in removal["strengths"] if name in removal["sets"] else []:
        for rule, options in {"none": {}, **removal["rules"]}.items():
            setting = Setting(plan["sides"][side] | options, strength, plan["rate"], removal=rule != "none")
            yield run_of(name, side, rule, setting), setting


def results(fit: Fit, parts: Split) -> dict[str, Any]:
    """The columns of `RESULTS`."""
    losses = {f"{name}_loss": loss(fit, part) for name, part in parts._asdict().items()}
    if parts.train.targets.is_floating_point():
        again = refit(fit, parts.train)
        losses |= {f"refit_{name}_loss": loss(again, part) for name, part in parts._asdict().items()}
    return {
        "columns": len(fit.living),
        "dead": f"{fit.dead:.6g}",
        **{name: f"{value:.6g}" for name, value in losses.items()},
        "cost": fit.cost,
        "epochs": fit.epochs,
    }


def work(path: Path, todo: list[tuple[Run, Setting]], splits: list[Split], descent: Descent) -> None:
    """Those runs of which the file does not have every seed."""
    rows = Rows(path, COLUMNS, key=[*Run._fields, "seed"])
    for run, setting in todo:
        if all(rows.has(*run, seed) for seed in range(len(splits))):
            continue
        start = time.perf_counter()
        fits = train(splits, setting, descent)
        pairs = enumerate(zip(fits, splits, strict=True))
        rows.append(*({**run._asdict(), "seed": seed, **results(fit, parts)} for seed, (fit, parts) in pairs))
        dead = sum(fit.dead for fit in fits) / len(fits)
        print(f"{', '.join(filter(None, run))}: {dead:.2f} dead, {time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    arguments = parser(__doc__, HERE).parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # weights that decay to nothing make numbers that take ten times as long
    plan = yamls.load(arguments.file)
    descent = Descent(**plan["descent"])
    for name, config in plan["sets"].items():
        rows = read(config)
        splits = [split(rows, seed) for seed in range(max(plan["seeds"], plan["removal"]["seeds"]))]
        work(arguments.results / "runs.csv", list(main_runs(plan, name)), splits[: plan["seeds"]], descent)
        chosen = list(removal_runs(plan, name))
        work(arguments.results / "removal.csv", chosen, splits[: plan["removal"]["seeds"]], descent)


if __name__ == "__main__":
    main()
