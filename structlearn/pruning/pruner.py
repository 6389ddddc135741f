"""The contract of a pruning method: a penalty during training, a plan and a cut at an epoch's end, two phases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from structlearn.pruning.judged import Judged
from structlearn.pruning.phases import Phase, Phases
from structlearn.pruning.sigmas import renew, scaled_layers
from structlearn.scala.layers import check_state
from structlearn.structure import Plan

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from structlearn.structure import Cut, Structure


class Verdict(NamedTuple):
    """What a method says of the units of one set."""

    score: Tensor
    """[units], float: larger is worth more. Where all would go the largest stays; the first of equals."""
    goes: Tensor
    """[units], bool: those that the method's rule removes."""


class Judgement(NamedTuple):
    """What a method says of a network as it is now."""

    plan: Plan
    """Which units stay, in which order."""
    floor: tuple[str, ...]
    """The sets that would lose all their units by the rule, and keep one."""


class Pruner(ABC):
    """A method that makes a network smaller while it is trained.

    Around any training loop::

        loss.backward()
        pruner.regularise()
        optimizer.step()
        pruner.after_step(optimizer)
        ...
        # at the end of an epoch
        pruner.cut(pruner.plan(), optimizer)
        pruner.after_epoch(validation_accuracy)
        if pruner.best: ...                        # keep these weights
        # the learning rate of the next epoch is the schedule's times pruner.factor

    Two phases (:class:`structlearn.pruning.phases.Phases`): only in "pruning" is anything penalised, counted, sorted or
    cut; in "fine_tuning" all of this stands still.

    A method fills in :meth:`_penalty`, :meth:`_verdict`, and what else it has of :meth:`_regularise`,
    :meth:`_after_step` and :meth:`_mend`; all but :meth:`_mend` are called in the phase "pruning" only.

    Args:
        structure: Of the network that is trained.
        patience: Epochs without an improvement that end a phase.

    Raises:
        ValueError: `patience` is not a whole number of at least 1, or the network has no unit that can be cut.
    """

    sorts = False
    """Does the method put units that stay in the order of their scores, the largest first?"""

    def __init__(self, structure: Structure, *, patience: int = 50) -> None:
        if not structure.sets:
            raise ValueError(
                "this network has no unit that can be cut (structure.fixed says why); give one with a hidden layer"
            )
        self.structure = structure
        self._phases = Phases(patience)

    @property
    def phase(self) -> Phase:
        """In "done" training may end."""
        return self._phases.phase

    @property
    def patience(self) -> int:
        """Epochs without an improvement that end a phase."""
        return self._phases.patience

    @property
    def factor(self) -> float:
        """What the learning rate is to be multiplied with: 1 while pruning, then 1, 0.1 and 0.01."""
        return self._phases.factor

    @property
    def best(self) -> bool:
        """Was the last :meth:`after_epoch` the best of fine-tuning so far? Its network is the one to keep."""
        return self._phases.best

    def penalty(self) -> Tensor:
        """What the method adds to the mean loss of a batch: a scalar, differentiable; 0 after pruning."""
        if self.phase == "pruning":
            return self._penalty()
        return next(self.structure.model.parameters()).new_zeros(())

    def regularise(self) -> None:
        """After backward and before the optimiser's step: add the penalty's gradient to the parameters'. No wait.

        A parameter without gradient takes no part in this step, and is left alone.
        """
        if self.phase == "pruning":
            self._regularise()

    def after_step(self, optimizer: Optimizer) -> None:
        """After the optimiser's step: proximal steps, statistics of the method. No wait.

        Args:
            optimizer: The one that has made the step, with its learning rate.

        Raises:
            ValueError: the method takes proximal steps, and the optimiser has several learning rates.
        """
        if self.phase == "pruning":
            self._after_step(optimizer)

    @torch.no_grad()
    def judge(self) -> Judgement:
        """Which units stay, in which order, and which sets are held, by the weights as they are; changes nothing.

        Sets are judged from the last to the first (W Alg. 3), so that a layer's units are not held by weights towards
        units that go at the same moment. No set loses all its units: the one with the largest score stays. After
        pruning nothing goes and nothing is held.
        """
        if self.phase != "pruning":
            return Judgement(Plan({}), ())
        keep, verdicts = {}, self._verdicts()
        for name, verdict in verdicts.items():
            score, stays = verdict.score, ~verdict.goes
            order = score.argsort(descending=True, stable=True) if self.sorts else torch.arange(len(score))
            units = tuple(order[stays[order]].tolist()) or (int(score.argmax()),)
            if units != tuple(range(len(score))):
                keep[name] = units
        return Judgement(Plan(keep), self._floor(verdicts))

    def plan(self) -> Plan:
        """The plan of :meth:`judge`."""
        return self.judge().plan

    @property
    def floor(self) -> tuple[str, ...]:
        """The held sets of :meth:`judge`, which does the work for both: ask that if you want both."""
        return self.judge().floor

    def cut(self, plan: Plan, optimizer: Optimizer | None = None) -> Cut:
        """Cut the network as planned, the optimiser's state with it, and mend what the method has to.

        The layers of :mod:`structlearn.scala` that lose inputs, or have them in another order, get their sigmas anew,
        whatever the method is; so the sum rule holds, the function stays, and the units of a set have the places in the
        sequence that they have in the set (W 3.4.2, step 3).

        Args:
            plan: What :meth:`plan` gave, here or on another rank.
            optimizer: The one that trains the network.

        Raises:
            ValueError: the plan is not of this structure as it is now, or the optimiser keeps what cannot follow. Then
                nothing has changed.
        """
        if optimizer is not None:
            for layer in scaled_layers(self.structure.model).values():
                check_state(layer, optimizer)
        cut = self.structure.apply(plan, optimizer)
        renew(self.structure, cut, optimizer)
        self._mend(cut)
        return cut

    def after_epoch(self, accuracy: float) -> None:
        """After the cut at an epoch's end.

        Args:
            accuracy: Of the network as it is now, on the validation set; higher is better.
        """
        self._phases.after_epoch(accuracy, sum(coupled.size for coupled in self.structure.sets.values()))

    def state_dict(self) -> dict[str, Any]:
        """What the method carries from step to step, but for the structure; plain values and tensors."""
        return {"phases": self._phases.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; the network already has the shape that it had then."""
        self._phases.load_state_dict(state["phases"])

    @abstractmethod
    def _penalty(self) -> Tensor:
        """The penalty, its strength included: a differentiable scalar."""

    @abstractmethod
    def _verdict(self, name: str, judged: Judged) -> Verdict:
        """What the rule says of the set `name`; `judged` are those behind it."""

    def _regularise(self) -> None:
        """Add the penalty's gradient to .grad, without waiting for the device."""

    def _after_step(self, optimizer: Optimizer) -> None:
        """What comes after a step, without waiting for the device."""

    def _mend(self, cut: Cut) -> None:
        """What is to be done after the structure has been cut; also if nothing was."""

    def _floor(self, verdicts: dict[str, Verdict]) -> tuple[str, ...]:
        """The sets that keep a unit by force."""
        return tuple(name for name, verdict in verdicts.items() if bool(verdict.goes.all()))

    def _verdicts(self) -> dict[str, Verdict]:
        """Of all sets, on the host, in the order of the network."""
        judged = Judged(self.structure)
        verdicts: dict[str, Verdict] = {}
        for name in reversed(self.structure.sets):
            score, goes = verdicts[name] = self._verdict(name, judged)
            stays = ~goes
            stays[score.argmax()] |= goes.all()  # here, too, one of them stays
            judged.add(name, stays)
        sizes = [len(verdict.score) for verdict in verdicts.values()]
        columns = [torch.cat(each).cpu().split(sizes) for each in zip(*verdicts.values(), strict=True)]
        found = dict(zip(verdicts, map(Verdict, *columns), strict=True))
        return {name: found[name] for name in self.structure.sets}
