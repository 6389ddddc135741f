"""A run whose network has an output layer for each of many learning rates (Alrao)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hpc.communicator import Communicator
from hpc.config.training import Alrao as AlraoConfig
from hpc.config.training import AlraoAdam, OptimizerConfig
from hpc.errors import ConfigError
from hpc.record import Record
from hpc.regularizers import Task
from hpc.seeding import seed_for
from hpc.watch import Watch
from structlearn.alrao import Alrao, PerUnit
from structlearn.flow import last_layer
from structlearn.scala import Scaled, fold


def wrap(config: OptimizerConfig, model: nn.Module, task: Task, seed: int) -> nn.Module:
    """The network's Alrao version where the optimiser asks for it, its heads drawn from the seed alone.

    Raises:
        ConfigError: the network has no linear output layer.
    """
    if not isinstance(config, AlraoConfig | AlraoAdam):
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "heads"))
        _unscale(config.head, model)
        try:
            return Alrao(
                model, task="regression" if task == "regression" else "classification", heads=config.heads,
                head=config.head, theta=config.theta, per=config.per,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"optimizer.name: {config.name} cannot train this network: {error}") from error


def _unscale(head: str | None, model: nn.Module) -> None:
    """Take the scaling (ScaLa) of an output layer into its weights: heads have none, but a rate for each of them."""
    layer = dict(model.named_modules()).get(head or last_layer(model, (nn.Linear, nn.Conv2d)) or "")
    if isinstance(layer, Scaled):
        fold(layer)


def trunk(model: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients may be clipped: all, but for those of an Alrao network's heads.

    Each head learns from its own loss, whose gradient has nothing to do with how long the others' are.
    """
    heads = {id(parameter) for parameter in model.heads.parameters()} if isinstance(model, Alrao) else set()
    return [parameter for parameter in model.parameters() if id(parameter) not in heads]


class AlraoWatch(Watch):
    """Writes down the posterior over the heads, as rank 0 holds it, and how many heads and units are lost.

    Args:
        config: the section ``optimizer``.
        network: the network.
        optimizer: its optimiser.
    """

    def __init__(self, config: AlraoConfig | AlraoAdam, network: Alrao, optimizer: PerUnit) -> None:
        self._network, self._optimizer = network, optimizer
        self._every, self._drop_after = config.posterior_every, config.drop_heads_after
        self._drawn = {name.removeprefix("model."): rates.cpu().clone() for name, rates in optimizer.rates.items()}
        self._seen: list[tuple[int, torch.Tensor]] = []
        self._drop: int | None = None

    def after_step(self, step: int) -> None:
        """Every so many steps, note the posterior on the device."""
        if self._every is not None and step % self._every == 0:
            self._note(step)

    @contextmanager
    def consensus(self, comm: Communicator) -> Iterator[None]:
        """A head that any rank has lost has no part in the network that they stand for together."""
        alive = self._network.switch.alive
        own = alive.clone()
        everyone = comm.gather(own.tolist(), "compare which heads are left")
        left = torch.tensor([all(ranks) for ranks in zip(*everyone, strict=True)], device=alive.device)
        self._network.switch.lose(~left)
        try:
            yield
        finally:
            alive.copy_(own)
        if self._drop is not None:
            self._network.drop(self._drop)
            self._drop = None

    def after_epoch(self, epoch: int, step: int) -> None:
        """Note the posterior of the consensus; after the epoch that the configuration says, drop all heads but one."""
        if self._seen and self._seen[-1][0] == step:
            self._seen.pop()
        self._note(step)
        if epoch == self._drop_after:
            self._drop = int(self._network.switch.posterior().argmax())  # of the consensus: the same on all ranks

    def record(self, record: Record) -> None:
        """Rates once; rows of the posterior since the last time."""
        table = record.alrao
        table.rates = table.rates or self._drawn
        for step, numbers in self._seen:
            *posterior, heads, units = numbers.tolist()
            table.append(step, posterior, int(heads), int(units))
        self._seen.clear()

    def _note(self, step: int) -> None:
        switch = self._network.switch
        lost = torch.stack([(~switch.alive).sum(), self._optimizer.lost]).double()
        self._seen.append((step, torch.cat([switch.posterior().exp(), lost])))


def watch(config: OptimizerConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> Watch:
    """What is seen of a run beside its steps."""
    if isinstance(config, AlraoConfig | AlraoAdam):
        assert isinstance(model, Alrao)
        assert isinstance(optimizer, PerUnit)
        return AlraoWatch(config, model, optimizer)
    return Watch()
