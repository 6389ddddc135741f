"""A run whose network is cut while it is trained: decided on rank 0 from what all stand for, applied on each rank."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpc.config.pruning import BnLasso, Norm, PruningConfig, Scaled, Scalp, ShrinkNets, proximal
from hpc.config.pruning import Cutting as CuttingConfig
from hpc.config.training import OptimizerConfig
from hpc.errors import ConfigError, RunError
from hpc.evaluate import Score
from hpc.exchange import Exchange
from hpc.exchange.carry import Carry
from hpc.pruning import Decision, Pruning
from hpc.record import Record
from hpc.seeding import seed_for
from hpc.state import on_host
from structlearn import pruning, scala, shrinknets
from structlearn.structure import Plan, Structure, verify
from structlearn.structure.absorb import absorb


class Cutting(Pruning):
    """Cuts a network at the ends of epochs, alike on all ranks.

    Decide, then apply: inside the consensus rank 0 plans for the one network that all stand for, and sends the plan as
    plain data; each rank cuts its own network, its optimiser's state and what its exchange holds; then they compare the
    structures that they hold. Decisions that each rank made by itself would differ where CPUs do: rounding is another
    on each kind, and tells near-ties of norms, and what is absorbed, apart.

    Args:
        pruner: the method, over this rank's network.
        every: epochs between two cuts.
        example: gives samples, the same on all ranks: they tell what units that go still contribute, so that the next
            biases absorb it. None: it is lost.
    """

    def __init__(self, pruner: pruning.Pruner, every: int, example: Callable[[], torch.Tensor] | None = None) -> None:
        self._pruner, self._every, self._example = pruner, every, example
        self._model = pruner.structure.model
        self._units = self._left
        self._changed = self._told_held = False
        self.phase, self._floor = str(pruner.phase), 0

    @property
    def _left(self) -> int:
        return sum(self._pruner.structure.widths.values())

    @property
    def factor(self) -> float:  # type: ignore[override]
        """Falls during fine-tuning."""
        return self._pruner.factor

    @property
    def done(self) -> bool:  # type: ignore[override]
        """Is fine-tuning over?"""
        return self._pruner.phase == "done"

    @property
    def version(self) -> int:  # type: ignore[override]
        """As the structure counts."""
        return self._pruner.structure.version

    def regularise(self) -> None:
        """Add the penalty's gradient."""
        self._pruner.regularise()

    def after_step(self, optimizer: Optimizer) -> None:
        """Proximal steps, and what the method watches."""
        self._pruner.after_step(optimizer)

    # --- the end of an epoch ---------------------------------------------------------------------------

    def cut(self, epoch: int, exchange: Exchange, optimizer: Optimizer) -> bool:
        """Decide, apply, compare.

        Raises:
            RunError: on every rank, where ranks hold different structures after it.
        """
        self.phase, self._floor, self._changed = str(self._pruner.phase), 0, False
        if self.phase != "pruning" or epoch % self._every:
            return False
        with exchange.consensus():
            own = [self._decide().as_dict(), self._floor] if exchange.comm.rank == 0 else None
        told, self._floor = exchange.comm.gather(own, "hear what is cut")[0]
        decision = Decision.from_dict(told)
        if decision.plan:
            self.follow(decision, exchange, optimizer)
        self._compare(epoch, exchange)
        return bool(decision.plan)

    def _compare(self, epoch: int, exchange: Exchange) -> None:
        structure = self._pruner.structure
        held = exchange.comm.gather([structure.plan.digest, structure.widths], "compare what is cut")
        if others := [str(rank) for rank, each in enumerate(held) if each != held[0]]:
            raise RunError(
                f"after epoch {epoch} rank(s) {', '.join(others)} hold a network of another structure than rank 0 "
                f"(digests {[digest for digest, _ in held]}); a device or the network between them is faulty"
            )

    @torch.no_grad()
    def _decide(self) -> Decision:
        """What is to be done to the network as it is; nothing is."""
        plan, floor = self._pruner.judge()
        self._floor = len(floor)
        if not plan or self._example is None:
            return Decision(plan)
        tensors = {name: tensor for name, tensor in self._pruner.structure.tensors().items() if tensor.dim() == 1}
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        changed = absorb(self._pruner.structure, plan, self._example()).into
        shifts = {name: tuple((tensors[name] - before[name]).tolist()) for name in changed}
        for name in changed:
            tensors[name].copy_(before[name])
        return Decision(plan, shifts)

    @torch.no_grad()
    def follow(self, decision: Decision, exchange: Exchange, optimizer: Optimizer) -> None:
        """The network, the optimiser's state with it, then what the exchange holds."""
        before, tensors = self._left, self._pruner.structure.tensors()
        shifts = {name: tensors[name].new_tensor(values) for name, values in decision.shifts.items()}
        for name, shift in shifts.items():
            tensors[name].add_(shift)
        cut = self._pruner.cut(decision.plan, optimizer)
        exchange.restructure(Carry(cut, shifts))
        self.last, self._changed = decision, self._left < before

    def after_epoch(self, epoch: int, valid: Score) -> None:
        """Judge by the accuracy; of a regression, which has none, by the loss. Keep the best network of fine-tuning."""
        self._pruner.after_epoch(-valid.loss if math.isnan(valid.accuracy) else valid.accuracy)
        if self._pruner.best:
            self.best_epoch = epoch
            self.best = on_host(self._model.state_dict())

    # --- what is seen of it ----------------------------------------------------------------------------

    def record(self, record: Record) -> None:
        """A row of /structure."""
        structure = self._pruner.structure
        record.structure.append(structure.widths, self.phase, structure.plan.digest, self._floor)
        record.answer_epoch = self.best_epoch

    def line(self) -> str:
        """How much is left, if that has changed."""
        if not self._changed:
            return ""
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        return f"{self._left:,} of {self._units:,} units are left ({parameters:,} parameters)"

    def outlook(self, epochs: int) -> list[str]:
        """Whether there can be any fine-tuning: the first epoch is always an improvement."""
        patience = self._pruner.patience
        if epochs > patience + 1:
            return []
        first = f"fine-tuning begins after {patience + 1} epochs at the earliest, and this run has {epochs}"
        return [f"{first}: it will prune to its end, unless you raise epochs or lower pruning.patience ({patience})"]

    def news(self, ended_by: str) -> list[str]:
        """Which phase has ended; once, that layers are held at their last unit."""
        told = self._held_news()
        if ended_by == "epochs" and self.phase == "pruning":
            advice = f"raise epochs or lower pruning.patience ({self._pruner.patience})"
            return [*told, f"the run ended while it was still pruning: {advice}"]
        if self.phase == self._pruner.phase:
            return told
        if self.done:
            return [f"fine-tuning has stopped improving: the run ends, with the network of epoch {self.best_epoch}"]
        return [*told, f"pruning is over, with {self._left:,} of {self._units:,} units: fine-tuning begins"]

    def _held_news(self) -> list[str]:
        if not self._floor or self._told_held:
            return []
        self._told_held = True
        return [
            f"{self._floor} layer(s) would lose all their units, and keep one; a smaller pruning.strength leaves more"
        ]

    # --- state -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that was cut, as one plan; where the method is; the best network of fine-tuning."""
        return {
            "plan": self._pruner.structure.plan.as_dict(),
            "pruner": self._pruner.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """All but the plan."""
        self._pruner.load_state_dict(state["pruner"])
        self.best, self.best_epoch = state["best"], state["best_epoch"]

    def restore(self, state: dict[str, Any], exchange: Exchange, optimizer: Optimizer) -> None:
        """The network shrinks at once to what it had come to."""
        if plan := Plan.from_dict(state["plan"]):
            self.follow(Decision(plan), exchange, optimizer)
        self.load_state_dict(state)


def wrap(config: PruningConfig, model: nn.Module, example: torch.Tensor, seed: int) -> nn.Module:
    """The network with what the method trains in it (scalings, switches), drawn from the seed alone.

    Args:
        config: the section ``pruning``.
        model: the network, on the host; taken over.
        example: inputs of two samples; only their shape and type matter.
        seed: the master seed.

    Raises:
        ConfigError: there is no place for them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "pruning"))
        try:
            if isinstance(config, Scaled):
                return scala.adopt(model, scaling=config.scaling, batch_norm=config.batch_norm)
            if isinstance(config, BnLasso) and config.scaling:
                return scala.adopt(model, scaling=config.scaling, batch_norm=True)
            if isinstance(config, ShrinkNets):
                return shrinknets.adopt(model, example, init=config.init)
        except ValueError as error:
            raise _unfit(config, error) from error
    return model


def build(
    config: PruningConfig,
    optimizer: OptimizerConfig,
    model: nn.Module,
    example: torch.Tensor,
    samples: Callable[[], torch.Tensor],
    answers: int,
) -> Pruning:
    """The method that a configuration asks for, over a network that :func:`wrap` has prepared.

    Args:
        config: the section ``pruning``.
        optimizer: the section ``optimizer``.
        model: the network, on its device.
        example: as for :func:`wrap`, on the same device.
        samples: gives inputs that are typical; the same on all ranks.
        answers: of how many answers to training samples the loss is a mean.

    Raises:
        ConfigError: the network has nothing that it could cut, or does not survive a trial cut of a copy.
    """
    if not isinstance(config, CuttingConfig):
        return Pruning()
    try:
        method = _pruner(config, Structure(model, example), answers, proximal=proximal(config, optimizer))
        verify(model, samples()[:2])
    except ValueError as error:
        raise _unfit(config, error) from error
    return Cutting(method, config.every_epochs, samples if config.absorb else None)


def _pruner(config: CuttingConfig, structure: Structure, answers: int, *, proximal: bool) -> pruning.Pruner:
    common: dict[str, Any] = {"patience": config.patience}
    match config:
        case Scalp():
            return pruning.ScaLP(
                structure, penalty=config.penalty, strength=config.strength, threshold=config.threshold,
                proximal=proximal, **common,
            )  # fmt: skip
        case Norm():
            return pruning.Norm(
                structure, penalty=config.penalty, strength=1 / answers if config.strength is None else config.strength,
                factors=config.factors, threshold=config.threshold, proximal=proximal,
                mix=0.5 if config.mix is None else config.mix, **common,
            )  # fmt: skip
        case BnLasso():
            return pruning.BnLasso(
                structure, strength=config.strength, threshold=config.threshold, proximal=proximal, **common
            )
        case ShrinkNets():
            return shrinknets.ShrinkNets(
                structure, strength=config.strength, weight_strength=config.weight_strength, p=config.power,
                rule=config.rule, memory=0.99 if config.gamma is None else config.gamma,
                threshold=0.001 if config.threshold is None else config.threshold, **common,
            )  # fmt: skip
    raise AssertionError(f"no pruner for {config}")


def _unfit(config: Any, error: ValueError) -> ConfigError:
    return ConfigError(f"pruning.name: {config.name} does not suit this network: {error}")
