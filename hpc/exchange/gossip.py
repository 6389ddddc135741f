"""Gossip: each rank pushes its weights to another now and then, and waits for nobody (GoSGD, B Alg. 3-4)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.communicator import Communicator
from hpc.config.training import Gossip as GossipConfig
from hpc.errors import ConfigError
from hpc.exchange import mass, peers
from hpc.exchange.agenda import Agenda
from hpc.exchange.carry import Carry
from hpc.exchange.contents import averages_by_parameter, forget, prepare, weights_and_buffers
from hpc.exchange.form import Form, in_slices, keyed
from hpc.exchange.pace import OwnPace
from hpc.exchange.post import Post
from hpc.exchange.replay import Kind
from hpc.exchange.slices import borders, slices_of
from hpc.exchange.wire import Letter, Message, now_ns
from hpc.flat import FlatBuffer

INBOXES = 2
"""Messages that can wait to be mixed. A third sender waits, and skips its next pushes: memory stays bounded."""


class Gossip(OwnPace):
    """Sum-weight gossip with a mass in integers (see :mod:`hpc.exchange.mass`).

    A rank that pushes halves its mass and sends the other half with its weights; one that receives takes the mean
    of both, weighted by their masses, before its next step, and adds the masses. The masses of all ranks and of
    all messages add up to the same whole at all times; without gradients, so does the weighted sum of the weights.
    With ``slices``, each slice of the weights has masses of its own.

    A network that is cut goes on with its masses: each number that stays has the slice that it had. The engine brings
    everything to rest before a cut, so that in its runs no message meets a network of another structure. Whoever cuts
    without resting loses nothing either, as a message's mass must never be lost: a message says how often its sender's
    network had been cut. One of before a cut that comes after it is carried over the cut and mixed; one of after it
    that comes before waits for the receiver's own cut.

    Args:
        comm: the ranks.
        model: this rank's network.
        optimizer: its optimiser; its running averages travel with the weights under ``momentum: mix``.
        config: the section ``exchange``.
        agenda: when the ranks pause.
        seed: the master seed.
        deadline_s: longest wait for another rank.
        shrinks: will the network be cut? Then slices end where tensors end.
    """

    replicated: ClassVar[bool] = False

    def __init__(
        self,
        comm: Communicator,
        model: nn.Module,
        optimizer: Optimizer,
        config: GossipConfig,
        agenda: Agenda,
        *,
        seed: int,
        deadline_s: float,
        shrinks: bool = False,
    ) -> None:
        super().__init__(comm, model, agenda, comm.size, seed=seed, consensus_every=config.consensus_every)
        self._ends = borders(weights_and_buffers(model), config.slices) if shrinks else config.slices
        self._at_rest = True
        self._older: dict[int, tuple[list[Form], Carry]] = {}
        """By the structure that they are of: how to read messages of before a cut, and to carry them over it."""
        self._forms: list[Form] = []
        self._inboxes: list[Message] = []
        self._early: list[Message] = []
        """Messages of after a cut that this rank has not made yet."""
        self._optimizer, self._config, self._deadline_s = optimizer, config, deadline_s
        self.masses = [mass.UNITS] * config.slices
        self._draws = peers.Draws(seed, comm.rank)
        self._peers = peers.build(config, comm.rank, comm.size) if comm.size > 1 else None
        self._matrix = peers.digest(config, comm.size) if comm.size > 1 else 0
        self._channel = comm.channel() if comm.size > 1 else None
        self._traffic: Post | None = None
        self.events: list[tuple[Kind, int, int, int, int]] | None = None
        """Where a list is put here, it gets what this rank does, as :func:`hpc.exchange.replay.replay` reads it."""
        self.deliveries: list[tuple[int, int, int]] | None = None
        """Where a list is put here, it gets when each message was sent, was here, and was mixed (``time.time_ns``)."""

    # --- one step --------------------------------------------------------------------------------------

    def resume(self, epoch: int, step: int) -> None:
        """Go on from a place that all know. Collective."""
        super().resume(epoch, step)
        self._at_rest = False

    def quiesce(self) -> None:
        """Every message arrives and is mixed. Collective."""
        super().quiesce()
        self._at_rest = True
        self._older.clear()

    def after_step(self, step: int) -> None:
        """Mix what has arrived; perhaps push."""
        if self._peers is None:
            return
        post = self._traffic
        assert post is not None, "resume() comes before the first step"
        post.check()
        if self.events is not None:
            self._note(Kind.STEP, -1, 0, 0)
        if post.arrived:
            self._mix()
        whether, whom = self._draws.at(step)
        if whether < self._config.rho:
            rounds = self.counters.sent // self._config.slices  # all slices go one way before the next is taken
            self._push(post, step, self._peers.choose(whom, rounds))
        self._measure(step)
        if self._config.progress == "inline":
            post.pump()

    def _push(self, post: Post, step: int, to: int) -> None:
        part = self.counters.sent % self._config.slices
        if not post.free() or self.masses[part] < mass.LEAST:
            self.counters.skipped += 1
            return
        self.masses[part], given = mass.halve(self.masses[part])
        post.outbox.pack(Letter(given, step, part, now_ns(), self.comm.rank, self.structure))
        size = post.outbox.size(part)
        post.push(to, size)
        self.counters.sent += 1
        self.counters.bytes_sent += size
        self._weigh()
        self._note(Kind.SEND, to, self.masses[part], given)

    def _mix(self) -> None:
        post = self._traffic
        assert post is not None
        while post.arrived:
            message = post.arrived.popleft()
            letter = message.open()
            if letter.structure > self.structure:
                self._early.append(message)
                continue
            part = letter.slice
            share = mass.share(self.masses[part], letter.mass)
            if letter.structure == self.structure:
                message.mix(part, share)
            else:
                self._mix_older(message, letter, share)
            self._note(Kind.RECEIVE, letter.sender, self.masses[part], letter.mass)
            self.masses[part] += letter.mass
            if self._config.momentum == "reset":
                forget(self._optimizer)
            if self.deliveries is not None:
                self.deliveries.append((letter.sent_ns, message.arrived_ns, now_ns()))
            post.release(message)
            self.counters.received += 1
            self._weigh()

    @torch.no_grad()
    def _mix_older(self, message: Message, letter: Letter, share: float) -> None:
        """Carry a message over all cuts since it was sent, and move the weights towards it.

        Only where the network was cut without a rest (:meth:`quiesce`), which the engine never does.
        """
        if letter.structure not in self._older:
            letter.check(self.structure)
        forms, _ = self._older[letter.structure]
        came = forms[letter.slice].named(message.numbers())
        for structure in range(letter.structure, self.structure):
            came = self._older[structure][1](came)
        tensors = keyed(self.model, self._mixed)
        for key, value in came.items():
            tensors[key].lerp_(value.to(tensors[key].dtype), share)

    def _weigh(self) -> None:
        self.counters.mass = sum(self.masses) / (mass.UNITS * len(self.masses) * self.comm.size)

    def _note(self, kind: Kind, peer: int, own: int, moved: int) -> None:
        if self.events is not None:
            self.events.append((kind, self.comm.rank, peer, own, moved))

    # --- messages ---------------------------------------------------------------------------------------

    @property
    def _mixed(self) -> Optimizer | None:
        """The optimiser, if its running averages travel."""
        return self._optimizer if self._config.momentum == "mix" else None

    def _views(self) -> list[list[torch.Tensor]]:
        """What travels, in slices."""
        averages = averages_by_parameter(self._optimizer) if self._mixed is not None else {}
        return slices_of(weights_and_buffers(self.model), self._ends, averages)

    def _open(self) -> Post:
        if self._mixed is not None:
            prepare(self._optimizer)
        self._forms = self._read_off()
        slices = self._views()
        outbox, *self._inboxes = [Message(slices, self._config.payload) for _ in range(1 + INBOXES)]
        threaded = self._config.progress == "thread"
        assert self._channel is not None
        return Post(
            self._channel, outbox, self._inboxes, self.comm.size, self._deadline_s, self._decide, threaded=threaded
        )

    def _read_off(self) -> list[Form]:
        """How to read a message of each slice of the network as it is, where it will be cut."""
        if isinstance(self._ends, int):
            return []
        tensors = keyed(self.model, self._mixed)
        return [Form({key: tensors[key] for key in keys}) for keys in in_slices(list(tensors), self._ends)]

    def restructure(self, carry: Carry) -> None:
        """Read and write messages of the network as it is now; know how to read those of before that are under way."""
        if not self._at_rest:
            self._older[self.structure] = self._forms, carry
        super().restructure(carry)
        post = self._traffic
        if post is None:
            return
        self._forms, slices = self._read_off(), self._views()
        post.outbox = Message(slices, self._config.payload)  # the old one may be on its way
        for message in self._inboxes:
            message.fit(slices)
        post.arrived.extendleft(reversed(self._early))
        self._early.clear()

    # --- what the ranks stand for ----------------------------------------------------------------------

    def slices(self, values: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Those that are sent in turn: each has masses of its own."""
        return slices_of(values, self._ends)

    def _agree(self, values: list[torch.Tensor]) -> None:
        """The mean of all ranks' weights, each by its mass."""
        whole = mass.UNITS * self.comm.size
        for part, own in zip(self.slices(values), self.masses, strict=True):
            if part:
                torch._foreach_mul_(part, own / whole)
        buffer = FlatBuffer(values)
        flat = buffer.pack(values)
        with self._blocked():
            self.comm.sum_(flat, "evaluate the weighted mean of all ranks")
        buffer.unpack(values)

    def shares(self, state: dict[str, Any], rank: int, ranks: int) -> list[float]:
        """Its masses."""
        return [units / (mass.UNITS * ranks) for units in state["masses"]]

    def let_go(self) -> None:
        """Mix what has arrived; what is under way is lost."""
        if self._traffic is not None:
            self._traffic.let_go()
            self._mix()

    def survive(self, states: Sequence[dict[str, Any]], rank: int, ranks: int) -> tuple[dict[str, Any], float]:
        """The masses that are left grow in proportion, until those of each slice are the whole again."""
        held = list(zip(*(state["masses"] for state in states), strict=True))
        whole = mass.UNITS * len(states)
        masses = [mass.renormalise(units, whole)[rank] for units in held]
        before = mass.UNITS * ranks * len(held)
        counters = {**states[rank]["counters"], "mass": sum(masses) / (whole * len(held))}
        state = {"counters": counters, "masses": masses, "matrix": 0, "ends": states[rank]["ends"]}
        return state, (before - sum(map(sum, held))) / before

    def state_dict(self) -> dict[str, Any]:
        """Masses, beside the counters. Nothing is under way: the engine brings all messages to rest first."""
        return {**super().state_dict(), "masses": list(self.masses), "matrix": self._matrix, "ends": self._ends}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        if state["matrix"] != self._matrix:
            raise ConfigError(
                f"exchange.matrix: {self._config.matrix} holds other numbers than when this run was trained with it; "
                f"restore them, or start in a new run_dir"
            )
        self.masses = [int(units) for units in state["masses"]]
        self._ends = state["ends"]
