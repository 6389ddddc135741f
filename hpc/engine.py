"""The training loop, readable from top to bottom. It never asks which method it has."""

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.alone import Alone
from hpc.checkpoint import Checkpoints, Loaded
from hpc.clock import Clock
from hpc.communicator import Communicator
from hpc.config.root import Config
from hpc.data import Feed
from hpc.errors import ConfigError, RunError
from hpc.evaluate import Score, evaluate
from hpc.exchange import Exchange, Pause
from hpc.heartbeat import Heartbeat
from hpc.losses import Losses
from hpc.merge import merge
from hpc.objective import Model, Objective
from hpc.penalties import Penalties
from hpc.progress import Shown, duration
from hpc.pruning import Pruning
from hpc.record import Record
from hpc.schedule import Patience, Schedule, early_stopping
from hpc.shrink import Shrunk
from hpc.state import lay_out_alike, on_host, random_state, set_random_state, split
from hpc.watch import Watch


class Stop(Protocol):
    """Has somebody asked the run to stop?"""

    requested: bool


@dataclass
class Parts:
    """What a run is made of; ``hpc.run`` puts it together."""

    config: Config
    comm: Communicator
    device: torch.device
    model: nn.Module
    optimizer: Optimizer
    exchange: Exchange
    objective: Objective
    clipped: list[nn.Parameter]
    """Those whose gradients ``optimizer.clip_norm`` is of."""
    watch: Watch
    pruning: Pruning
    penalties: Penalties
    feed: Feed
    fingerprint: str
    """Of the samples: a resumed run refuses others."""
    data: dict[str, Any]
    """What whoever uses the network has to know of the data (``DataSet.about``); checkpoints hold it."""
    checkpoints: Checkpoints
    heartbeat: Heartbeat
    stop: Stop
    write_record: Callable[[Record, str, str], None]
    """Writes the record's file: (record, state, ended_by)."""


@dataclass
class Place:
    """How far a run has come."""

    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Steps made."""
    seconds: float = 0.0
    """Seconds of training, all starts together."""
    ended_by: str = ""
    """Why the run is done (epochs, early_stopping, diverged, pruned); empty while it is not."""


class Engine:
    """One run on this rank. :meth:`restore`, then :meth:`run`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.place = Place()
        self.record = Record()
        self.shown: Shown | None = None
        config, self._steps = parts.config, parts.feed.steps_per_epoch
        self.schedule = Schedule(config.schedule, config.epochs, self._steps)
        self.patience: Patience | None = early_stopping(config.early_stopping) if config.early_stopping else None
        self._forward: Model = self._compiled()
        self._clip = config.optimizer.clip_norm
        self._clock = Clock(parts.device)
        self.taken = 0
        """Steps that this rank has made: the same on all ranks, unless they train at their own speed."""
        self._losses = Losses(self._steps, parts.device)
        self._base_lrs = [group["lr"] for group in parts.optimizer.param_groups]
        self._started = self._resumed_at = time.monotonic()
        self._resumed_step = 0
        self._saved = (-1, -1)
        self.ended = 0
        """Epochs that have ended altogether, recorded and saved; ``place.epoch`` counts one earlier."""
        self._done_by_others = False
        """Was the run done when it was restored, on another number of ranks? Then there is nothing to add to it."""
        self._kept: tuple[dict[str, Any], dict[str, Any], list[tuple[int, float]]] | None = None
        """The state before the end of the last epoch, where ranks may be lost in it, and what was not recorded yet."""
        self._answer: dict[str, torch.Tensor] | None = None
        """On rank 0, of a run that is done: the network that the ranks stand for together."""

    def _compiled(self) -> Model:
        if not self.parts.config.compute.compile:
            return self.parts.model
        torch.compiler.reset()  # what was compiled for a network of before a cut is of no use
        return torch.compile(self.parts.model)

    def run(self, shown: Shown) -> str:
        """Train to the end, or until every rank agrees to stop. Collective.

        Returns:
            ``done`` or ``stopped``; either way a checkpoint of this very place is on the disk.
        """
        self.shown = shown
        self._resumed_at, self._resumed_step = time.monotonic(), self.place.step
        self._started = self._resumed_at - self.place.seconds
        if not self.place.ended_by:  # a run that is done stays done
            self._beat("starting")
        self.parts.model.train()
        while not self.place.ended_by:
            if self._train_epoch() is Pause.STOP:
                self._save()
                self.parts.exchange.close()
                return self._finish("stopped", "signal")
            self._end_epoch()
        self.parts.exchange.close()
        return self._finish("done", self.place.ended_by)

    # --- one epoch -------------------------------------------------------------------------------------

    def _train_epoch(self) -> Pause:
        """The rest of the epoch: EPOCH, or STOP when the ranks agreed to stop before its end."""
        exchange, place = self.parts.exchange, self.place
        while True:
            exchange.resume(place.epoch, self.taken)
            pause = self._train()
            self._beat("bringing messages to rest")
            exchange.quiesce()
            place.step = exchange.made(self.taken)
            if pause is not Pause.SAVE:
                return pause
            self._save()
            self._beat("training")

    def _train(self) -> Pause:
        """Train until the ranks pause; why they do."""
        parts, place, clock = self.parts, self.place, self._clock
        optimizer, exchange, pruning, penalties = parts.optimizer, parts.exchange, parts.pruning, parts.penalties
        if not exchange.trains:
            return self._attend()
        self._set_rates()
        clock.enter("data")
        for inputs, targets in parts.feed.batches(self.taken):
            if self.schedule.changes_within_epoch(place.step):
                self._set_rates()
            clock.enter("forward")
            minimised, loss = parts.objective(self._forward, inputs, targets)
            clock.enter("backward")
            minimised.backward()
            clock.enter("exchange")
            exchange.after_backward()
            clock.enter("optimizer")
            pruning.regularise()
            penalties.regularise()
            if self._clip is not None:
                nn.utils.clip_grad_norm_(parts.clipped, self._clip, foreach=True)
            optimizer.step()
            pruning.after_step(optimizer)
            penalties.after_step(optimizer)
            optimizer.zero_grad(set_to_none=True)
            self._losses.add(loss)
            clock.enter("exchange")
            self.taken += 1
            parts.watch.after_step(self.taken)
            exchange.after_step(self.taken)
            pause = exchange.pause(self.taken, requested=parts.stop.requested)
            clock.enter("")
            place.step = exchange.made(self.taken)
            self._show()
            if pause is not None:
                return pause
            clock.enter("data")
        raise AssertionError("batches never end")

    def _attend(self) -> Pause:
        """Serve those who train, until all ranks pause; why they do."""
        exchange, stop = self.parts.exchange, self.parts.stop
        self._clock.enter("exchange")
        while (pause := exchange.pause(self.taken, requested=stop.requested)) is None:
            exchange.attend()
            self.place.step = exchange.made(self.taken)
            self._show()
        self._clock.enter("")
        return pause

    def _end_epoch(self) -> None:
        """Prune, evaluate, decide whether to go on, record, checkpoint."""
        parts, place, config = self.parts, self.place, self.parts.config
        if config.compute.fault_tolerance == "shrink":
            parts.watch.record(self.record)  # it goes back with the rest
            self._kept = (*self._state(), list(parts.exchange.consensus_errors))
        self._beat("evaluating")
        self._clock.enter("evaluate")
        train_loss = self._mean_losses()
        lr = parts.optimizer.param_groups[0]["lr"]
        parts.model.eval()
        if parts.pruning.cut(place.epoch + 1, parts.exchange, parts.optimizer):
            parts.objective.regularizers.restructured()
            self._forward = self._compiled()
        with parts.exchange.consensus(), parts.watch.consensus(parts.comm):
            valid, test = self._evaluate("valid"), self._evaluate("test")
            place.epoch += 1
            parts.watch.after_epoch(place.epoch, self.taken if parts.exchange.trains else place.step)
            parts.pruning.after_epoch(place.epoch, valid)
            self.schedule.after_epoch(valid.loss)
            place.ended_by = self._ending(train_loss, valid)
            if place.ended_by and parts.comm.rank == 0:
                self._answer = parts.pruning.best or on_host(parts.model.state_dict())
        if place.ended_by and not parts.exchange.replicated and parts.comm.size > 1:
            self._evaluate_each_rank()
        parts.model.train()
        self._clock.enter("")
        place.seconds = time.monotonic() - self._started
        self.record["epochs"].append(
            epoch=place.epoch,
            step=place.step,
            seconds=place.seconds,
            train_loss=train_loss,
            valid_loss=valid.loss,
            valid_accuracy=valid.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            parameters=sum(parameter.numel() for parameter in parts.model.parameters()),
            lr=lr,
        )
        parts.pruning.record(self.record)
        self._record_exchange()
        self._record_seen()
        self.record["profile"].append(**self._clock.take())
        if place.ended_by or place.epoch % config.checkpoint.every_epochs == 0:
            self._save()
            self.record["profile"].columns["checkpoint"][-1] += self._clock.take()["checkpoint"]
        parts.write_record(self.record, "done" if place.ended_by else "running", place.ended_by)
        self._show_epoch(train_loss, valid, test)
        self.ended = place.epoch

    def _evaluate(self, part: Any) -> Score:
        parts = self.parts
        return evaluate(self._forward, parts.feed.evaluation(part), parts.objective, parts.comm, part)

    def _evaluate_each_rank(self) -> None:
        """The networks that the ranks hold themselves, beside the one they stand for together."""
        parts = self.parts
        scores = [
            evaluate(self._forward, parts.feed.evaluation(part, whole=True), parts.objective, Alone(), part)
            for part in (("valid", "test") if parts.exchange.trains else ())
        ]
        numbers = [number for score in scores for number in score] or [math.nan] * 4  # a master has no network
        everyone = parts.comm.gather(numbers, "evaluate each rank")
        columns = ("valid_loss", "valid_accuracy", "test_loss", "test_accuracy")
        for rank, numbers in enumerate(everyone):
            self.record["ranks"].append(rank=rank, **dict(zip(columns, numbers, strict=True)))

    def _ending(self, train_loss: float, valid: Score) -> str:
        """Why the run ends after this epoch, or nothing. All ranks see the same numbers."""
        if not math.isfinite(train_loss):
            return "diverged"
        if self.parts.pruning.done:
            return "pruned"
        watching = self.parts.pruning.phase != "pruning"  # penalty and cuts push the loss around
        if self.patience is not None and watching and self.patience.exhausted(valid.loss):
            return "early_stopping"
        return "epochs" if self.place.epoch >= self.parts.config.epochs else ""

    def _mean_losses(self) -> float:
        """The mean training loss since the last evaluation; the rows of /steps where they are asked for."""
        every = self.parts.config.record.every_steps
        mean, spans = self._losses.take(self.parts.comm, every)
        for number, loss in enumerate(spans, 1):
            self.record["steps"].append(step=self.place.epoch * self._steps + number * (every or 0), loss=loss)
        return mean

    def _record_seen(self) -> None:
        """What has been seen since the last time: before a checkpoint, which would not hold it."""
        self.parts.watch.record(self.record)
        for step, error in self.parts.exchange.consensus_errors:
            self.record["consensus"].append(step=step, error=error)
        self.parts.exchange.consensus_errors.clear()

    def _record_exchange(self) -> None:
        """One row a rank, as of now."""
        rows = self.parts.comm.gather(vars(self.parts.exchange.counters), "gather the exchange counters")
        self.record["exchange"].clear()
        for rank, row in enumerate(rows):
            self.record["exchange"].append(rank=rank, **row)

    def _set_rates(self) -> None:
        factor = self.schedule.factor(self.place.epoch, self.place.step) * self.parts.pruning.factor
        for group, lr in zip(self.parts.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * factor

    # --- what is seen ----------------------------------------------------------------------------------

    def _show(self) -> None:
        place, shown = self.place, self.shown
        if shown is not None and shown.due():
            shown.step(place.epoch + 1, place.step, self._losses.last())
        if self.parts.heartbeat.due():
            self._beat("training")

    def _beat(self, doing: str) -> None:
        place, config = self.place, self.parts.config
        now, steps = time.monotonic(), config.epochs * self._steps
        made = place.step - self._resumed_step
        pace = (now - self._resumed_at) / made if made else math.nan  # seconds a step
        self.parts.heartbeat.beat(
            "running",
            doing,
            epoch=place.epoch,
            step=place.step,
            steps_planned=steps,
            seconds=round(now - self._started, 3),
            samples_per_second=round(config.data.batch_size * self.parts.exchange.workers / pace, 1) if made else None,
            seconds_left=round((steps - place.step) * pace, 1) if made else None,
        )

    def _show_epoch(self, train_loss: float, valid: Score, test: Score) -> None:
        place = self.place
        scores = [f"train {train_loss:.4f}"]
        for name, score in (("valid", valid), ("test", test)):
            if not math.isnan(score.loss):
                accuracy = "" if math.isnan(score.accuracy) else f" {100 * score.accuracy:.2f} %"
                scores.append(f"{name} {score.loss:.4f}{accuracy}")
        if line := self.parts.pruning.line():
            scores.append(line)
        if self.shown is not None:
            line = f"epoch {place.epoch}/{self.parts.config.epochs}  {'  '.join(scores)}  {duration(place.seconds)}"
            self.shown.epoch(line, place.epoch, place.step)
            if place.ended_by == "diverged":
                self.shown.tell("the training loss is not finite any more: the run ends; try a lower optimizer.lr")
            elif place.ended_by == "early_stopping":
                self.shown.tell("the validation loss has stopped improving: the run ends")
            for text in self.parts.pruning.news(place.ended_by):
                self.shown.tell(text)
        self._beat("training")

    def _finish(self, state: str, ended_by: str) -> str:
        if not self._done_by_others:
            self._record_exchange()
        self.parts.write_record(self.record, state, ended_by)
        return state

    # --- state -----------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint of this very place. Collective."""
        here = (self.place.step, self.place.epoch)
        if self._saved == here:
            return
        self._beat("writing a checkpoint")
        self._record_seen()
        self._clock.enter("checkpoint")
        self.place.seconds = time.monotonic() - self._started
        shared, own = self._state()
        if self.parts.exchange.replicated:
            self._compare(shared["network"]["parameters"])
        self.parts.checkpoints.save(*here, shared, own, resized=len(self.record["resized"]))
        self._saved = here
        self._clock.enter("")

    def _compare(self, parameters: dict[str, torch.Tensor]) -> None:
        """Ranks that should hold one network must; one that does not would spoil all later work in silence."""
        digest = 0
        for value in parameters.values() if self.parts.comm.size > 1 else ():
            digest = zlib.crc32(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data, digest)
        digests = self.parts.comm.gather(digest, "compare the networks of all ranks")
        if len(set(digests)) > 1:
            raise RunError(
                f"after step {self.place.step} the ranks hold different networks (checksums {digests}), though "
                f"{self.parts.config.exchange.name} keeps them equal; a device or the network between them is faulty"
            )

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(what all ranks hold alike, what this rank holds)."""
        parts = self.parts
        parameters, buffers = split(parts.model)
        network = {"parameters": parameters, "optimizer": parts.optimizer.state_dict()}
        shared = {
            "place": dict(vars(self.place)),
            "record": self.record.state_dict(),
            "schedule": self.schedule.state_dict(),
            "patience": self.patience.state_dict() if self.patience else None,
            "samples": parts.fingerprint,
            "data": parts.data,
            "epoch_steps": self._steps * parts.exchange.workers,
            "answer": self._answer,
            "pruning": parts.pruning.state_dict(),
        }
        own = {
            "buffers": buffers,
            "exchange": parts.exchange.state_dict(),
            "losses": self._losses.state_dict(),
            "taken": self.taken,
            "random": random_state(parts.device),
        }
        (shared if parts.exchange.replicated else own)["network"] = network
        return shared, own

    def restore(self, loaded: Loaded) -> None:
        """Go back to where a checkpoint was written. Raises ConfigError where the samples have changed since."""
        parts, shared = self.parts, loaded.shared
        if shared["samples"] != parts.fingerprint:
            raise ConfigError(
                f"data: the samples are not those that this run was trained on until step {loaded.step} (their "
                f"checksum differs); restore them, or start in a new run_dir"
            )
        self._set_place(shared)
        parts.pruning.restore(shared["pruning"], parts.exchange, parts.optimizer)
        if loaded.own is not None:
            self._take_back(shared, loaded.own)
        elif self.place.ended_by:
            self._done_by_others = True
        else:
            self._take_over(loaded)

    def _set_place(self, shared: dict[str, Any]) -> None:
        """How far the run was when it was in this state."""
        self.place = Place(**shared["place"])
        self.ended = self.place.epoch
        self.record.load_state_dict(shared["record"])
        self.schedule.load_state_dict(shared["schedule"])
        if self.patience is not None:
            self.patience.load_state_dict(shared["patience"])

    def _take_back(self, shared: dict[str, Any], own: dict[str, Any]) -> None:
        """What this rank held when it wrote the checkpoint."""
        parts = self.parts
        network = (shared if parts.exchange.replicated else own)["network"]
        parts.model.load_state_dict({**network["parameters"], **own["buffers"]})
        parts.optimizer.load_state_dict(network["optimizer"])
        lay_out_alike(parts.optimizer)
        parts.exchange.load_state_dict(own["exchange"])
        self._losses.load_state_dict(own["losses"])
        self.taken = own["taken"]
        set_random_state(own["random"], parts.device)
        self._saved = (self.place.step, self.place.epoch)

    def _take_over(self, loaded: Loaded) -> None:
        """Go on from what another number of ranks had come to: from the one network that they stood for.

        The steps are shared out anew. What else a rank carries starts afresh: its part of the exchange, its random
        numbers, the losses of the epoch so far.
        """
        steps = merge(loaded, self.parts.model, self.parts.optimizer, self.parts.exchange)
        self._share_out(steps, loaded.shared["epoch_steps"], loaded.world_size)

    def go_on(self, parts: Parts, shrunk: Shrunk, began: float) -> None:
        """Go on with the ranks that are left, from what this one holds. It asks nobody: all have agreed before.

        A rank lost at the end of an epoch, when some have recorded it and others not, sends all back into that epoch.

        Args:
            parts: the same network and samples, among fewer ranks.
            shrunk: what they have agreed on.
            began: when the loss was noticed (time.monotonic).
        """
        consensus_errors = dict(shrunk.consensus_errors)
        if self._kept is not None and self._kept[0]["place"]["epoch"] == shrunk.epoch:
            shared, own, unrecorded = self._kept
            self._set_place(shared)
            parts.pruning.load_state_dict(shared["pruning"])
            self._losses.load_state_dict(own["losses"])
            consensus_errors = dict(unrecorded) | consensus_errors
        self._kept = self._answer = None  # one more may be lost before the epoch ends: what comes now stays
        assert self.place.epoch == shrunk.epoch
        before, schedule = self._steps * self.parts.exchange.workers, self.schedule.state_dict()
        ranks_before, self.parts, self._steps = self.parts.comm.size, parts, parts.feed.steps_per_epoch
        self.schedule = Schedule(parts.config.schedule, parts.config.epochs, self._steps)
        self.schedule.load_state_dict(schedule)
        parts.exchange.load_state_dict(shrunk.exchange)
        if shrunk.cut.plan:
            parts.pruning.follow(shrunk.cut, parts.exchange, parts.optimizer)
            parts.objective.regularizers.restructured()
        self._forward = self._compiled()  # the network may have been cut, now or when the loss was noticed
        parts.exchange.consensus_errors += sorted(consensus_errors.items())
        self._share_out(shrunk.steps, before, ranks_before)
        self._clock.enter("")
        now = time.monotonic()
        for rank in shrunk.lost:
            self.record["lost"].append(
                step=self.place.step,
                rank=rank,
                survivors=parts.comm.size,
                mass=shrunk.mass / len(shrunk.lost),
                seconds=now - began,
            )
        self.place.seconds, self._saved = now - self._started, (-1, -1)

    def _share_out(self, steps: int, before: int, ranks_before: int) -> None:
        """Share out the steps that all ranks of another world have made together.

        The same part of the epoch counts as made, rounded down to whole steps: so there is at least one step left in
        it, unless ranks at their own speed had gone past its end.

        Args:
            steps: how many.
            before: how many made an epoch there.
            ranks_before: how many ranks there were.
        """
        place, exchange = self.place, self.parts.exchange
        whole = self._steps * exchange.workers
        total = place.epoch * whole + max(0, steps - place.epoch * before) * whole // before
        self.taken = exchange.share_out(total)
        place.step = total // exchange.workers
        self.record["resized"].append(step=place.step, ranks_before=ranks_before, ranks=self.parts.comm.size)
