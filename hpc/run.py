"""One run, put together: from a configuration to an engine that trains.

    python -m hpc.run RUN_DIR     joins the ranks of a launcher and trains the run frozen in a folder
"""

import argparse
import ctypes
import fcntl
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from hpc import comm as communication
from hpc import data, device, exchange, network, optimizer
from hpc.checkpoint import Checkpoints
from hpc.comm import Communicator
from hpc.config.folder import CHECKPOINTS, LOGS, RECORD, freeze, frozen
from hpc.config.read import run_id, to_yaml
from hpc.config.root import Config
from hpc.data import Feed
from hpc.engine import Engine, Parts
from hpc.errors import ConfigError, RankTimeoutError, RunError
from hpc.heartbeat import Heartbeat, failed, last_seen
from hpc.objective import Objective
from hpc.progress import Silent, show, stream
from hpc.record import Record
from hpc.seeding import seed_for
from hpc.signals import StopRequest
from hpc.versions import versions

DONE: Final = 0
STOPPED: Final = 75
"""Exit code of a run that stopped early and can go on (EX_TEMPFAIL)."""

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
    try:
        comm = communication.connect(config.compute.deadline_s)
        with StopRequest() as stop, _alone_in(Path(config.run_dir), comm):
            engine, shown = _start(config, comm, stop, progress, as_json)
            try:
                state = engine.run(shown)
            finally:
                shown.close()
            summary = _summary(engine, state)
            comm.barrier("end the run")
        if comm.rank == 0:
            if progress != "none":
                print(_closing(summary, config), file=out, flush=True)  # noqa: T201 - the answer
            if as_json:
                print(json.dumps(summary), flush=True)  # noqa: T201 - the answer
        return DONE if state == "done" else STOPPED
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - one rank's error must end all of them
        return _end_all(error, config, comm)


def _start(
    config: Config, comm: Communicator, stop: StopRequest, progress: str, as_json: bool
) -> tuple[Engine, Any]:
    """Everything between a configuration and the first step."""
    if comm.rank == 0:
        freeze(config)
    comm.barrier("make the run folder")
    run_dir = Path(config.run_dir)
    shown_early: list[str] = []
    parts = _parts(config, comm, stop, run_dir, shown_early.append)
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
        for text in (*shown_early, _opening(config, comm, parts, engine, resumed=loaded is not None)):
            shown.tell(text)
    return engine, shown


def _parts(config: Config, comm: Communicator, stop: StopRequest, run_dir: Path, tell: Any) -> Parts:
    device.prepare(config.compute, comm)
    here = device.choose(config.compute, comm)
    dataset = data.load(config.data, config.seed)
    channels_last = config.compute.channels_last
    feed = Feed(
        dataset, config.data, here, seed=config.seed, rank=comm.rank, world_size=comm.size, channels_last=channels_last
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
                "versions": json.dumps(versions(comm.library)),
                "world_size": comm.size,
                "state": state,
                "ended_by": ended_by,
            }
            try:
                record.write(run_dir / RECORD, attributes)
            except OSError as error:
                raise RunError(f"{run_dir / RECORD} could not be written ({error}); make room and start again") from error

    return Parts(
        config=config,
        comm=comm,
        device=here,
        model=model,
        optimizer=stepper,
        exchange=exchange.build(config.exchange, comm, model, stepper),
        objective=Objective(dataset.task, here, getattr(torch, config.compute.precision)),
        feed=feed,
        checkpoints=Checkpoints(run_dir / CHECKPOINTS, comm, identity, config.checkpoint.keep, tell),
        heartbeat=Heartbeat(run_dir, comm.rank, comm.size, facts),
        stop=stop,
        write_record=write_record,
    )


def _opening(config: Config, comm: Communicator, parts: Parts, engine: Engine, *, resumed: bool) -> str:
    weights = sum(parameter.numel() for parameter in parts.model.parameters())
    place = f"; resumed at epoch {engine.place.epoch}, step {engine.place.step}" if resumed else ""
    return (
        f"{config.run_dir}: {config.model.name} ({weights:,} parameters) on {config.data.name}, "
        f"{comm.size} rank(s) on {parts.device.type}, {config.exchange.name}, {config.optimizer.name}{place}"
    )


def _summary(engine: Engine, state: str) -> dict[str, Any]:
    """The JSON object of ``--json``, and the status."""
    parts, last = engine.parts, engine.record["epochs"].last()
    rows = engine.record["exchange"].columns
    summary = {
        "run_dir": parts.config.run_dir,
        "state": state,
        "epochs": engine.place.epoch,
        "steps": engine.place.step,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        **{key: _number(last.get(key)) for key in ("test_accuracy", "test_loss", "valid_accuracy")},
        "seconds": round(engine.place.seconds, 3),
        "world_size": parts.comm.size,
        "exchange": {key: sum(rows[key]) for key in ("sent", "received", "skipped", "mass")},
    }
    if parts.comm.rank == 0:
        about = {key: value for key, value in summary.items() if key not in {"state", "run_dir", "world_size", "epochs"}}
        parts.heartbeat.status(state, heartbeat=time.time(), epoch=engine.place.epoch, step=engine.place.step, **about)
    return summary


def _number(value: float | None) -> float | None:
    """JSON knows no nan."""
    return value if value is not None and math.isfinite(value) else None


def _closing(summary: dict[str, Any], config: Config) -> str:
    if summary["state"] == "stopped":
        return f"stopped at step {summary['steps']}; run the same command again to go on"
    accuracy = summary["test_accuracy"]
    result = f"test accuracy {100 * accuracy:.2f} %" if accuracy is not None else f"test loss {summary['test_loss']}"
    return f"done: {result}, record {Path(config.run_dir) / RECORD}"


@contextmanager
def _alone_in(run_dir: Path, comm: Communicator) -> Iterator[None]:
    """Hold the run folder: two runs in one would overwrite each other's checkpoints."""
    problem = None
    descriptor = -1
    if comm.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        problem = _lock(descriptor, run_dir)
    problem = comm.gather(problem, "lock the run folder")[0]
    try:
        if problem:
            raise RunError(problem)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int, run_dir: Path, patience_s: float = 10.0) -> str | None:
    """Try for a while: a run that was just killed needs a moment to let go."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return f"{run_dir}: another process is training in this folder; wait for it, or choose another run_dir"
            time.sleep(0.1)
        except OSError:  # a file system without locks: nothing can be said
            return None
        else:
            return None


def _end_all(error: BaseException, config: Config, comm: Communicator) -> int:
    """Say what went wrong on this rank, and end all ranks."""
    run_dir = Path(config.run_dir)
    code = error.exit_code if isinstance(error, RunError) else 1
    message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
    if isinstance(error, RankTimeoutError):
        resumable = any((run_dir / CHECKPOINTS).glob("step-*/manifest.json"))
        code = STOPPED if resumable else 1
        message += f". Last signs of life:\n  {last_seen(run_dir)}"
        message += "\nRun the same command again to go on from the last checkpoint." if resumable else ""
    if not isinstance(error, RunError) and run_dir.is_dir():
        (run_dir / LOGS).mkdir(exist_ok=True)
        log = run_dir / LOGS / f"rank-{comm.rank:04d}.err"
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        message += f" (traceback in {log})"
    if isinstance(error, RunError) and comm.rank > 0:
        time.sleep(0.5)  # what all ranks find, rank 0 says; it ends this one meanwhile
    prefix = f"rank {comm.rank}: " if comm.size > 1 else ""
    print(f"structlearn: {prefix}{message}", file=sys.stderr, flush=True)  # noqa: T201 - the answer
    if not isinstance(error, ConfigError) and run_dir.is_dir():
        try:
            failed(run_dir, f"{prefix}{message}")
        except OSError as trouble:  # a full disk, perhaps: the message above is what counts
            print(f"structlearn: status.json could not be written ({trouble})", file=sys.stderr, flush=True)  # noqa: T201
    comm.abort(code)
    return code


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
    config = frozen(arguments.run_dir)
    if config is None:
        raise ConfigError(f"{arguments.run_dir}: holds no config.yaml; start with structlearn train CONFIG.yaml")
    return run(_moved(config, arguments.run_dir), progress=arguments.progress, as_json=arguments.json)


def _moved(config: Config, run_dir: Path) -> Config:
    """The folder may lie elsewhere than when it was made."""
    from dataclasses import replace

    return replace(config, run_dir=str(run_dir))


if __name__ == "__main__":
    sys.exit(main())
