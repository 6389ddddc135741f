"""One run, put together: from a configuration to an engine that trains. ``hpc.rank`` comes before it."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TextIO, cast

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from hpc import alrao, cutting, data, device, exchange, network, optimizer, penalties, pointers, regularizers
from hpc.checkpoint import Checkpoints, Loaded
from hpc.communicator import Communicator
from hpc.config.folder import CHECKPOINTS, RECORD, check_same, freeze, trained
from hpc.config.read import flatten, run_id, to_values, to_yaml
from hpc.config.root import Config
from hpc.config.training import Gossip, workers
from hpc.data import Feed
from hpc.engine import Engine, Parts, Stop
from hpc.errors import ConfigError, RunError
from hpc.exchange import Agenda
from hpc.exchange.peers import digest
from hpc.failure import STOPPED
from hpc.heartbeat import Heartbeat, forget, forget_from
from hpc.objective import Objective
from hpc.output import Unfailing, say, stream
from hpc.progress import Shown, Silent, show
from hpc.record import Record
from hpc.seeding import seed_for
from hpc.signals import StopRequest
from hpc.summary import closing_table
from hpc.survive import Survival
from hpc.versions import versions
from structlearn.alrao import Alrao

DONE: Final = 0


def run(config: Config, comm: Communicator, stop: StopRequest, *, progress: str = "auto", as_json: bool = False) -> int:
    """Train one run on ranks that have met. Collective. The caller holds the run's folder.

    Args:
        config: the run; a folder with checkpoints is resumed.
        comm: the ranks.
        stop: set by signals.
        progress: auto, bar, plain or none.
        as_json: end with one JSON object on standard output; everything else goes to standard error.

    Returns:
        The exit code: 0 done, 75 stopped and resumable.
    """
    engine, shown = _start(config, comm, stop, progress, as_json)
    survival = Survival(engine, _among)
    try:
        while (summary := survival.attempt(shown)) is None:
            shown.close()
            survival.shrink()
            shown = _shown(engine, progress, as_json)
    finally:
        shown.close()
        survival.close()
    comm = engine.parts.comm
    if comm.rank == 0:
        if progress != "none" and (out := stream(as_json)) is not None:
            width = None if out.isatty() else 120
            console = Console(
                file=cast("TextIO", Unfailing(out)), width=width, highlight=False, markup=False, emoji=False
            )
            console.print(closing_table(summary))
        if as_json:
            say(json.dumps(summary), sys.stdout)
    return DONE if summary["state"] == "done" else STOPPED


def _start(config: Config, comm: Communicator, stop: StopRequest, progress: str, as_json: bool) -> tuple[Engine, Shown]:
    """Everything between a configuration and the first step."""
    _compare_configs(config, comm)
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
    forget(Path(config.run_dir), comm.rank, comm.size)
    shown = _shown(engine, progress, as_json)
    if comm.rank == 0:
        for text in shown_early:  # a damaged checkpoint is worth saying however little is shown
            say(f"structlearn: {text}", sys.stderr)
        shown.tell(_opening(config, comm, parts, engine, loaded))
        for text in () if engine.place.ended_by else parts.pruning.outlook(config.epochs):
            shown.tell(text)
    return engine, shown


def _shown(engine: Engine, progress: str, as_json: bool) -> Shown:
    """What rank 0 shows from here on."""
    parts = engine.parts
    if parts.comm.rank > 0:
        return Silent()
    epochs = parts.config.epochs
    return show(
        progress, epochs=epochs, steps=epochs * parts.feed.steps_per_epoch, first_step=engine.place.step,
        samples_per_step=parts.config.data.batch_size * parts.exchange.workers, out=stream(as_json),
    )  # fmt: skip


def assemble(config: Config, comm: Communicator, stop: Stop, tell: Callable[[str], None]) -> Parts:
    """The parts of a run, ready to be trained by an engine. Collective.

    Args:
        config: the run; its folder must be there (:func:`hpc.config.folder.freeze`).
        comm: the ranks.
        stop: says whether somebody has asked the run to stop.
        tell: called on rank 0 with sentences the user should read.
    """
    device.prepare(config.compute, comm)
    here = device.choose(config.compute, comm)
    pointers.choose(config, comm, here)
    dataset = data.load(config.data, config.seed)
    fingerprint = dataset.fingerprint()
    _compare_data(fingerprint, comm)
    channels_last = config.compute.channels_last
    training = workers(config.exchange, comm.size)
    place = comm.rank - (comm.size - training)  # below 0: the master on a rank of its own, which is rank 0
    feed = Feed(
        dataset,
        config.data,
        here,
        seed=config.seed,
        rank=place if place >= 0 else None,
        world_size=training,
        channels_last=channels_last,
    )
    example = torch.zeros(2, *dataset.input_shape, dtype=torch.int64 if dataset.task == "sequence" else None)
    model = cutting.wrap(config.pruning, network.build(config.model, dataset, config.seed), example, config.seed)
    model = alrao.wrap(config.optimizer, model, dataset.task, config.seed)
    attached = regularizers.attach(config.regularizers, model, example, dataset.task, dataset.answers)
    model = model.to(here)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(seed_for(config.seed, "forward", comm.rank))  # dropout differs from rank to rank
    stepper = optimizer.build(config.optimizer, model, config.seed, comm.rank)
    mixture = model if isinstance(model, Alrao) else None
    return Parts(
        config=config,
        device=here,
        model=model,
        optimizer=stepper,
        objective=Objective(
            dataset.task, here, getattr(torch, config.compute.precision), dataset.outputs, mixture, attached
        ),
        clipped=alrao.trunk(model),
        watch=alrao.watch(config.optimizer, model, stepper),
        pruning=cutting.build(config.pruning, config.optimizer, model, example.to(here), feed.some, dataset.answers),
        penalties=penalties.build(config.penalties, model, dataset.answers),
        fingerprint=fingerprint,
        data=dataset.about(),
        stop=stop,
        **_parts_of(config, comm, feed, model, stepper, tell),
    )


def _among(parts: Parts, comm: Communicator) -> Parts:
    """The same network and samples among those ranks that are left. Collective over them."""
    if comm.rank == 0:
        forget_from(Path(parts.config.run_dir), comm.size)
    feed = parts.feed.among(comm.rank, comm.size)
    among = replace(parts, **_parts_of(parts.config, comm, feed, parts.model, parts.optimizer, lambda _: None))
    among.exchange.structure = parts.pruning.version
    return among


def _parts_of(
    config: Config, comm: Communicator, feed: Feed, model: nn.Module, stepper: Optimizer, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The parts of a run that know its ranks. Collective."""
    run_dir, identity = Path(config.run_dir), run_id(config)
    agenda = Agenda(feed.steps_per_epoch, config.checkpoint.every_steps, workers(config.exchange, comm.size))

    def write_record(record: Record, state: str, ended_by: str) -> None:
        if comm.rank == 0:
            attributes = {
                "run_id": identity,
                "config": to_yaml(config),
                "versions": json.dumps(versions(comm.vendor)),
                "world_size": len(record["exchange"]),
                "state": state,
                "ended_by": ended_by,
            }
            try:
                record.write(run_dir / RECORD, attributes)
            except OSError as error:
                raise RunError(
                    f"{run_dir / RECORD} could not be written ({error}); make room and start again"
                ) from error

    return {
        "comm": comm,
        "feed": feed,
        "exchange": exchange.build(config, comm, model, stepper, agenda),
        "checkpoints": Checkpoints(run_dir / CHECKPOINTS, comm, identity, config.checkpoint.keep, tell),
        "heartbeat": Heartbeat(run_dir, comm.rank, comm.size, {"run_id": identity, "epochs": config.epochs}),
        "write_record": write_record,
    }


def _compare_configs(config: Config, comm: Communicator) -> None:
    """Ranks that train different things would spoil each other's work; those that meet at other places, hang."""
    mine = {key: value for key, value in flatten(to_values(config)).items() if key not in {"run_dir", "data.root"}}
    if isinstance(config.exchange, Gossip) and comm.size > 1:
        mine["checksum of exchange.matrix"] = digest(config.exchange, comm.size)
    everyone = comm.gather(mine, "compare configurations")
    for rank, theirs in enumerate(everyone):
        first, missing = everyone[0], "(not set)"
        if keys := sorted(key for key in first.keys() | theirs.keys() if first.get(key) != theirs.get(key)):
            listed = ", ".join(f"{key} {theirs.get(key, missing)!r}, not {first.get(key, missing)!r}" for key in keys)
            raise ConfigError(f"rank {rank} has another configuration than rank 0 ({listed}); give all the same one")


def _compare_data(fingerprint: str, comm: Communicator) -> None:
    """The same name may be another file on another node."""
    everyone = comm.gather(fingerprint, "compare the data")
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            raise ConfigError(
                f"data: rank {rank} reads other samples than rank 0, under the same configuration; "
                f"make the copies of the data set on their machines alike"
            )


def _opening(config: Config, comm: Communicator, parts: Parts, engine: Engine, loaded: Loaded | None) -> str:
    weights = sum(parameter.numel() for parameter in parts.model.parameters())
    pointed = " (device pointers)" if comm.device_pointers else ""
    method = "" if config.pruning.name == "none" else f", {config.pruning.name}"
    place = ""
    if loaded is not None:
        before = f"was done ({engine.place.ended_by})" if engine.place.ended_by else "resumed"
        place = f"; {before} at epoch {engine.place.epoch}, step {engine.place.step}"
        if loaded.world_size != comm.size:
            place += f", from a checkpoint of {loaded.world_size} rank(s)"
    return (
        f"{config.run_dir}: {config.model.name} ({weights:,} parameters) on {config.data.name}, "
        f"{comm.size} rank(s) on {parts.device.type}{pointed}, {config.exchange.name}, {config.optimizer.name}{method}"
        f"{place}"
    )
