"""Train with Alrao, with SGD at each rate of a grid, and with Adam, on several settings (W table 2.1).

    python experiments/alrao_robustness/run.py [FILE.yaml] [--seeds N]

One row a run goes to ``results/runs.csv`` as soon as the run is done; a run that is there is not made again. Runs go
seed by seed: what is broken off leaves whole seeds behind. All in this process, on one thread.
"""

import copy
import dataclasses
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from analysis.experiment import parser
from analysis.rows import Rows
from hpc import data
from hpc.config import yamls
from hpc.config.data import DataConfig
from hpc.data import DataSet, Feed
from hpc.seeding import seed_for
from structlearn import alrao, models

HERE = Path(__file__).parent
COLUMNS = [
    "setting", "seed", "side", "rate", "state", "epochs", "steps", "parameters", "best_epoch",
    "train_loss", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy", "valid_losses",
    "units", "lost_units", "heads", "lost_heads", "best_head_rate",
]  # fmt: skip


class Side(NamedTuple):
    """A method, and its rate where it has one."""

    name: str
    rate: float | None = None

    @property
    def key(self) -> str:
        """As in the column ``rate``."""
        return "" if self.rate is None else f"{self.rate:g}"


class Score(NamedTuple):
    """Mean loss, and share of right answers."""

    loss: float
    accuracy: float


class Learner:
    """A network, its optimiser and its loss: plain or Alrao's."""

    def __init__(self, plan: dict[str, Any], side: Side, network: nn.Module, seed: int) -> None:
        self.alrao: alrao.Alrao | None = None
        self.optimizer: torch.optim.Optimizer
        if side.name == "alrao":
            network, self.optimizer = alrao.adopt(network, **plan["alrao"], seed=seed)
            self.alrao = network
        elif side.name == "sgd":
            assert side.rate is not None
            self.optimizer = torch.optim.SGD(network.parameters(), lr=side.rate)
        else:
            self.optimizer = torch.optim.Adam(network.parameters())
        self.network = network

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step; the loss before it. No step is made where that is not finite."""
        outputs = self.network(x)
        loss = self.alrao.loss(outputs, y) if self.alrao else plain_loss(outputs, y)
        value = loss.item()
        if math.isfinite(value):
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return value

    @torch.no_grad()
    def score(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Score:
        """Loss and accuracy over all examples; of text, over all characters."""
        self.network.eval()
        loss, right, count = 0.0, 0, 0
        for x, y in batches:
            outputs = self.network(x)  # Alrao's log-probabilities are their own log-softmax
            loss += plain_loss(outputs, y).item() * y.numel()
            right += int((outputs.argmax(-1) == y).sum())
            count += y.numel()
        self.network.train()
        return Score(loss / count, right / count)

    def facts(self) -> dict[str, Any]:
        """What of it was lost, and which head won."""
        if not self.alrao:
            return {}
        assert isinstance(self.optimizer, alrao.SGD | alrao.Adam)
        rates, switch = self.optimizer.rates, self.alrao.switch
        heads = rates[f"model.{self.alrao.head}"]
        lost_heads = int((~switch.alive).sum())
        # A head that the switch has dropped because of what it said is not counted by the optimiser.
        lost_units = int(sum((each == 0).sum() for each in rates.values())) - int((heads == 0).sum())
        return {
            "units": sum(len(each) for each in rates.values()) - len(heads),
            "lost_units": lost_units,
            "heads": len(heads),
            "lost_heads": lost_heads,
            "best_head_rate": f"{float(heads[switch.posterior().argmax()]):.4g}",
        }


def plain_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy; text has a further axis."""
    return cross_entropy(outputs.flatten(0, -2), y.flatten())


def make_text(plan: dict[str, Any], folder: Path) -> Path:
    """The text as three files in a folder."""
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    root = Path(plan["text"]["files"]).anchor
    paths = sorted(Path(root).glob(plan["text"]["files"].removeprefix(root)))
    assert paths, f"no file is {plan['text']['files']}; install Debian's package {plan['text']['package']}"
    for path in paths:
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8", errors="replace").lower())
        text = "".join(letter for letter in text if letter.isascii())
        cuts = 0, 8 * len(text) // 10, 9 * len(text) // 10, len(text)
        for place, found in enumerate(parts.values()):
            found.append(text[cuts[place] : cuts[place + 1]])
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in parts.items():
        (folder / f"{name}.txt").write_text(" ".join(texts), encoding="utf-8")
    return folder


def load(plan: dict[str, Any], setting: dict[str, Any], seed: int, work: Path) -> tuple[DataSet, Any]:
    """A setting's data under a seed, and their configuration. ``frame``: so many black pixels around each image."""
    section = dict(setting["data"])
    if section["name"] == "text" and "root" not in section:
        section["root"] = str(make_text(plan, work / "text"))
    config: Any = TypeAdapter(DataConfig).validate_python(section)
    found = data.load(config, seed)
    if width := setting.get("frame", 0):
        parts = {
            name: dataclasses.replace(part, inputs=pad(part.inputs, [width] * 4))
            for name, part in (("train", found.train), ("valid", found.valid), ("test", found.test))
        }
        channels, *sides = found.input_shape
        shape = (channels, *(side + 2 * width for side in sides))
        found = dataclasses.replace(found, input_shape=shape, **parts)
    return found, config


def train(
    plan: dict[str, Any], setting: dict[str, Any], side: Side, seed: int, loaded: tuple[DataSet, Any]
) -> dict[str, Any]:
    """One run: what it reached on the test set at the epoch of the best validation loss (W 2.5.1)."""
    found, config = loaded
    options = dict(setting["model"])
    torch.manual_seed(seed_for(seed, "init"))
    network = models.build(options.pop("name"), found.input_shape, found.outputs, **options)
    parameters = sum(each.numel() for each in network.parameters())
    learner = Learner(plan, side, network, seed)
    torch.manual_seed(seed_for(seed, "forward"))  # dropout: the same for all sides
    feed = Feed(found, config, torch.device("cpu"), seed=seed, rank=0, world_size=1)
    best, kept, curve = Score(math.inf, math.nan), None, list[Score]()
    state, steps, best_epoch, mean = "done", 0, 0, math.nan
    for epoch in range(setting["epochs"]):
        losses = []
        for x, y in feed.epoch(epoch):
            losses.append(learner.step(x, y))
            if not math.isfinite(losses[-1]):
                break
        steps += len(losses)
        mean = sum(losses) / len(losses)
        curve.append(learner.score(feed.evaluation("valid")) if math.isfinite(mean) else Score(math.nan, math.nan))
        if not math.isfinite(curve[-1].loss):
            state = "not finite"
            break
        if curve[-1].loss < best.loss:
            best, best_epoch = curve[-1], epoch + 1
            kept = copy.deepcopy(learner.network.state_dict())
        elif epoch + 1 - best_epoch >= plan["patience"]:
            break
    test = Score(math.nan, math.nan)
    facts = learner.facts()
    if kept is not None:
        learner.network.load_state_dict(kept)
        test = learner.score(feed.evaluation("test"))
    return {
        "state": state,
        "epochs": len(curve),
        "steps": steps,
        "parameters": parameters,
        "best_epoch": best_epoch,
        "train_loss": f"{mean:.6g}",
        "valid_loss": f"{best.loss:.6g}",
        "valid_accuracy": f"{best.accuracy:.6g}",
        "test_loss": f"{test.loss:.6g}",
        "test_accuracy": f"{test.accuracy:.6g}",
        "valid_losses": " ".join(f"{each.loss:.4g}" for each in curve),
        **facts,
    }


def main() -> None:
    options = parser(__doc__, HERE)
    options.add_argument("--work", type=Path, default=Path("runs/alrao_robustness"), help="where the text goes")
    options.add_argument("--sides", nargs="+", default=["alrao", "adam", "sgd"], help="some of them only")
    options.add_argument("--seeds", type=int, help="fewer than the file says")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # cells that are saturated else take ten times as long
    plan = yamls.load(arguments.file)
    rows = Rows(arguments.results / "runs.csv", COLUMNS, key=COLUMNS[:4])
    sides = [Side("alrao"), Side("adam"), *(Side("sgd", rate) for rate in plan["rates"])]
    sides = [side for side in sides if side.name in arguments.sides]
    for seed in range(arguments.seeds or plan["seeds"]):
        for name, setting in plan["settings"].items():
            missing = [side for side in sides if not rows.has(name, seed, side.name, side.key)]
            loaded = load(plan, setting, seed, arguments.work) if missing else None
            for side in missing:
                assert loaded is not None
                start = time.perf_counter()
                row = train(plan, setting, side, seed, loaded)
                row |= {"setting": name, "seed": seed, "side": side.name, "rate": side.key}
                rows.append(row)
                print(
                    f"{name}, seed {seed}, {side.name} {side.key}: {row['state']}, test {row['test_accuracy']}, "
                    f"valid {row['valid_losses']}, {time.perf_counter() - start:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
