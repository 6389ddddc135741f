"""One run, put together: from a configuration to an engine that trains.

python -m hpc.run RUN_DIR     joins the ranks of a launcher and trains the run frozen in a folder
"""

import argparse
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from hpc import comm as communication
from hpc import data, device, exchange, network, optimizer
from hpc.checkpoint import Checkpoints
from hpc.comm import Communicator
from hpc.config.folder import CHECKPOINTS, RECORD, check_same, freeze, frozen, trained
from hpc.config.read import run_id, to_yaml
from hpc.config.root import Config
from hpc.data import Feed
from hpc.engine import Engine, Parts, Stop
from hpc.errors import ConfigError, RunError
from hpc.failure import STOPPED, end_all
from hpc.heartbeat import Heartbeat
from hpc.lock import alone_in
from hpc.objective import Objective
from hpc.progress import Silent, show, stream
from hpc.record import Record
from hpc.seeding import seed_for
from hpc.signals import StopRequest
from hpc.summary import closing_table, summarise
from hpc.versions import versions

DONE: Final = 0

OUR_LAUNCHER: Final = "STRUCTLEARN_RANKS"
"""Set for ranks that ``structlearn train --ranks N`` started: they must not outlive it."""


def run(config: Config, *, progress: str = "auto", as_json: bool = False) -> int:
    """Train one run on the ranks that this process belongs to. Collective over them.

    Args:
        config: the run. Its folder is made where it does not exist; a folder with checkpoints is resumed.
        progress: auto, bar, plain or none.
        as_json: end with one JSON object on standard output; everything else goes to standard error.

    Returns:
        The exit code: 0 done, 75 stopped and resumable. Errors end all ranks with 1 (or 2, or 75) at once.
    """
    comm: Communicator = communication.Alone()
    out = stream(as_json)
    holding = False
    try:
        comm = communication.connect(config.compute.deadline_s)
        with StopRequest() as stop, alone_in(Path(config.run_dir), comm):
            holding = True
            engine, shown = _start(config, comm, stop, progress, as_json)
            try:
                state = engine.run(shown)
            finally:
                shown.close()
            summary = summarise(engine, state)
            comm.barrier("end the run")
        if comm.rank == 0:
            if progress != "none":
                width = None if out.isatty() else 120
                console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
                console.print(closing_table(summary))
            if as_json:
                print(json.dumps(summary), flush=True)  # noqa: T201 - the answer
        return DONE if state == "done" else STOPPED
    except BaseException as error:  # noqa: BLE001 - whatever ends one rank must end all of them
        return end_all(error, config, comm, holding=holding)


def refuse(error: RunError) -> int:
    """End the ranks of a launcher for what one of them found before it joined the others.

    The others may be waiting in MPI's start for this one: join them, then end all with this rank's message.
    """
    comm = communication.connect(Config().compute.deadline_s)
    return end_all(error, Config(), comm, holding=False)


def _start(config: Config, comm: Communicator, stop: StopRequest, progress: str, as_json: bool) -> tuple[Engine, Any]:
    """Everything between a configuration and the first step."""
    if comm.rank == 0:
        if trained(Path(config.run_dir)):  # again, now that the folder is held: another start may have been quicker
            check_same(config)
        freeze(config)
    comm.barrier("make the run folder")
    shown_early: list[str] = []
    parts = assemble(config, comm, stop, shown_early.append)
    engine = Engine(parts)
    loaded = parts.checkpoints.load()
    if loaded is not None:
        engine.restore(loaded)
        shown_early += loaded.passed_over
    shown: Any = Silent()
    if comm.rank == 0:
        shown = show(
            progress, epochs=config.epochs, steps=config.epochs * parts.feed.steps_per_epoch,
            first_step=engine.place.step, samples_per_step=config.data.batch_size * comm.size, out=stream(as_json),
        )  # fmt: skip
        for text in shown_early:  # a damaged checkpoint is worth saying however little is shown
            print(f"structlearn: {text}", file=sys.stderr, flush=True)  # noqa: T201
        shown.tell(_opening(config, comm, parts, engine, resumed=loaded is not None))
    return engine, shown


def assemble(config: Config, comm: Communicator, stop: Stop, tell: Callable[[str], None]) -> Parts:
    """The parts of a run, ready to be trained by an engine. Collective.

    Args:
        config: the run; its folder must be there (:func:`hpc.config.folder.freeze`).
        comm: the ranks.
        stop: says whether somebody has asked the run to stop.
        tell: called on rank 0 with sentences the user should read.
    """
    run_dir = Path(config.run_dir)
    device.prepare(config.compute, comm)
    here = device.choose(config.compute, comm)
    dataset = data.load(config.data, config.seed)
    channels_last = config.compute.channels_last
    feed = Feed(
        dataset,
        config.data,
        here,
        seed=config.seed,
        rank=comm.rank,
        world_size=comm.size,
        channels_last=channels_last,
    )
    model = network.build(config.model, dataset, config.seed).to(here)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(seed_for(config.seed, "forward", comm.rank))  # dropout differs from rank to rank
    stepper = optimizer.build(config.optimizer, model.parameters())
    identity = run_id(config)
    facts = {"run_id": identity, "epochs": config.epochs}

    def write_record(record: Record, state: str, ended_by: str) -> None:
        if comm.rank == 0:
            attributes = {
                "run_id": identity,
                "config": to_yaml(config),
                "versions": json.dumps(versions(comm.vendor)),
                "world_size": comm.size,
                "state": state,
                "ended_by": ended_by,
            }
            try:
                record.write(run_dir / RECORD, attributes)
            except OSError as error:
                raise RunError(
                    f"{run_dir / RECORD} could not be written ({error}); make room and start again"
                ) from error

    return Parts(
        config=config,
        comm=comm,
        device=here,
        model=model,
        optimizer=stepper,
        exchange=exchange.build(config.exchange, comm, model, stepper),
        objective=Objective(dataset.task, here, getattr(torch, config.compute.precision), dataset.outputs),
        feed=feed,
        checkpoints=Checkpoints(run_dir / CHECKPOINTS, comm, identity, config.checkpoint.keep, tell),
        heartbeat=Heartbeat(run_dir, comm.rank, comm.size, facts),
        stop=stop,
        write_record=write_record,
    )


def _opening(config: Config, comm: Communicator, parts: Parts, engine: Engine, *, resumed: bool) -> str:
    weights = sum(parameter.numel() for parameter in parts.model.parameters())
    place = ""
    if resumed:
        before = "was done" if engine.place.ended_by else "resumed"
        place = f"; {before} at epoch {engine.place.epoch}, step {engine.place.step}"
    return (
        f"{config.run_dir}: {config.model.name} ({weights:,} parameters) on {config.data.name}, "
        f"{comm.size} rank(s) on {parts.device.type}, {config.exchange.name}, {config.optimizer.name}{place}"
    )


def _die_with_parent() -> None:
    """Ask Linux to end this rank when the launcher that started it dies, however it dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def main() -> int:
    """The command line of a rank."""
    parser = argparse.ArgumentParser(prog="python -m hpc.run", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--progress", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if OUR_LAUNCHER in os.environ:
        _die_with_parent()
    try:
        config = _frozen_in(arguments.run_dir)
    except ConfigError as error:
        print(f"structlearn: {error}", file=sys.stderr)  # noqa: T201 - the answer
        return error.exit_code
    return run(config, progress=arguments.progress, as_json=arguments.json)


def _frozen_in(run_dir: Path) -> Config:
    """The folder's configuration; the folder may lie elsewhere than when it was made."""
    config = frozen(run_dir)
    if config is None:
        raise ConfigError(f"{run_dir}: holds no config.yaml; start with structlearn train CONFIG.yaml")
    return replace(config, run_dir=str(run_dir))


if __name__ == "__main__":
    sys.exit(main())
