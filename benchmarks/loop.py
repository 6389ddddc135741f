"""Step time of the engine (exchange none, one rank) against a bare loop written by hand.

    python benchmarks/loop.py [--rounds 15]

The bare loop is the least that trains the same network on the same samples with the same update: shuffled indices,
forward, backward, fused SGD with momentum, the loss added up on the device. The engine adds phase timing, schedule,
signals, heartbeat, and the progress bar, which nobody sees. Evaluation, record and checkpoint are outside on both
sides.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from measure import interleave, parser, publish, ratio, spread
from torch.nn.functional import cross_entropy

from hpc.alone import Alone
from hpc.config.folder import freeze
from hpc.config.read import validate
from hpc.engine import Engine
from hpc.progress import show
from hpc.run import assemble

EPOCHS, STEPS = 1000, 200


class NoStop:
    """Nobody asks for a stop."""

    requested = False


@contextmanager
def sides(model: dict[str, object], batch: int, folder: Path) -> Iterator[dict[str, Callable[[], float]]]:
    """One epoch of each side, as functions that return seconds a step."""
    config = validate(
        {
            "run_dir": str(folder),
            "epochs": EPOCHS,
            "data": {"name": "fashion-mnist", "train_size": STEPS * batch, "validation": 0.0, "batch_size": batch},
            "model": model,
            "exchange": {"name": "none"},
        }
    )
    freeze(config)
    engine = Engine(assemble(config, Alone(), NoStop(), print))

    theirs = assemble(config, Alone(), NoStop(), print)
    net, optimizer = theirs.model, theirs.optimizer
    batches = list(theirs.feed.epoch(0))
    images = torch.cat([inputs for inputs, _ in batches])
    labels = torch.cat([targets for _, targets in batches])

    def with_engine() -> float:
        start = time.perf_counter()
        engine._train_epoch()  # noqa: SLF001 - what is measured
        engine.place.epoch += 1
        seconds = (time.perf_counter() - start) / STEPS
        engine._mean_losses()  # noqa: SLF001 - the end of the epoch, outside on both sides
        return seconds

    def by_hand() -> float:
        start = time.perf_counter()
        total = torch.zeros(())
        order = torch.randperm(len(images))
        for chosen in order.view(STEPS, batch):
            inputs, targets = images.index_select(0, chosen), labels.index_select(0, chosen)
            loss = cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
        return (time.perf_counter() - start) / STEPS

    run = {"epochs": EPOCHS, "steps": EPOCHS * STEPS, "first_step": 0, "samples_per_step": batch}
    with Path(os.devnull).open("w") as nowhere, closing(show("bar", **run, out=nowhere)) as engine.shown:
        yield {"engine": with_engine, "by hand": by_hand}


def main() -> None:
    rounds = parser(__doc__, 15).parse_args().rounds
    torch.set_num_threads(1)
    lines = ["| network | batch | engine, ms a step | by hand, ms a step | ratio |", "|---|---|---|---|---|"]
    models = {"sFC": {"name": "mlp", "widths": [1000, 1000, 10]}, "LeNet": {"name": "lenet"}}
    for name, model in models.items():
        for batch in (32, 128):
            with tempfile.TemporaryDirectory() as folder, sides(model, batch, Path(folder)) as both:
                interleave(both, 2)  # warm up
                found = interleave(both, rounds)
            ours, theirs = ([1e3 * seconds for seconds in found[side]] for side in ("engine", "by hand"))
            lines.append(f"| {name} | {batch} | {spread(ours)} | {spread(theirs)} | {ratio(ours, theirs)} |")
    publish("loop", "Engine (none, one rank) against a loop by hand: median [quartiles]", lines)


if __name__ == "__main__":
    main()
