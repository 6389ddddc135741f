"""ShrinkNets as a method of pruning: a penalty on switches and weights; units go with their switches (S 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from structlearn.checks import check_positive
from structlearn.penalties import L1, L2, Penalty
from structlearn.pruning import Pruner, Verdict
from structlearn.shrinknets.killing import rule as rule_of
from structlearn.shrinknets.switch import Switch
from structlearn.structure.wide import wide_type

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from structlearn.pruning.judged import Judged
    from structlearn.structure import Structure

RuleName = Literal["threshold", "sign_change", "sign_variance"]


class ShrinkNets(Pruner):
    """Switches that are pushed to zero; a channel dies by a rule, and goes (S eqs. 2 and 9).

    The penalty is `strength` times the sum of |theta| over all switches, plus `weight_strength` times ||W||_p^p over
    everything else that is trained: biases and normalisations, too. Leave the optimiser's own weight decay at 0; it
    would be for the switches as well. Without the second term there is no minimum (S A.3): switches would shrink and
    weights grow for ever.

    A unit goes when all of its switches are dead. They were of no use from the step on in which they died; that they
    are cut (S's garbage collection) changes the network's function only where the activation makes something of 0, such
    as a sigmoid's 1/2: :func:`structlearn.structure.absorb.absorb` keeps that.

    S's numbers: strengths on a logarithmic scale from 1e-2 to 1e-7; Adam, its rate divided by 10 after 5 epochs without
    a better validation accuracy.

    Args:
        structure: Of a network with switches (:func:`structlearn.shrinknets.adopt`).
        strength: lambda, on the mean loss of a batch.
        weight_strength: lambda_2; above 0.
        p: 1 or 2.
        rule: "sign_variance", "sign_change" or "threshold"; see :mod:`structlearn.shrinknets.killing`.
        memory: g of the rule sign_variance.
        threshold: Of the rule threshold.
        patience: Epochs without an improvement that end a phase.

    Raises:
        ValueError: a number is out of its range, an unknown rule, or no switch is on units that can be cut.
    """

    def __init__(
        self,
        structure: Structure,
        *,
        strength: float,
        weight_strength: float,
        p: Literal[1, 2] = 2,
        rule: RuleName = "sign_variance",
        memory: float = 0.99,
        threshold: float = 0.001,
        patience: int = 50,
    ) -> None:
        super().__init__(structure, patience=patience)
        self.strength = check_positive("strength", strength, zero=True)
        if weight_strength == 0:
            raise ValueError(
                "weight_strength is 0, but without a penalty on the weights there is no minimum (S A.3): the switches "
                "would shrink and the weights grow for ever; give a small one, such as 1e-4"
            )
        self.weight_strength = check_positive("weight_strength", weight_strength)
        if p not in {1, 2}:
            raise ValueError(f"p must be 1 or 2, got {p!r}")
        options = {"sign_variance": {"memory": memory}, "threshold": {"level": threshold}}
        self.rule = rule_of(rule, **options.get(rule, {}))
        modules = dict(structure.model.named_modules())
        self.switches = {name: module for name, module in modules.items() if isinstance(module, Switch)}
        """All switches, by their names."""
        placed = {place.tensor for coupled in structure.sets.values() for place in coupled.places}
        if not any(f"{name}.theta" in placed for name in self.switches):
            raise ValueError(
                "this network has no switch on units that can be cut; give one that "
                "structlearn.shrinknets.adopt(model, example) has put switches into"
            )
        thetas = [switch.theta for switch in self.switches.values()]
        own = {id(theta) for theta in thetas}
        others = [
            each
            for name, each in structure.model.named_parameters()
            # a deviation of variational inference is no weight: shrinking its logarithm would draw it to 1
            if id(each) not in own and each.requires_grad and name.rpartition(".")[2] != "log_deviation"
        ]
        self._penalties: list[tuple[float, Penalty]] = [(self.strength, L1(thetas))]
        if others:  # else only the switches are trained
            self._penalties.append((self.weight_strength, (L1 if p == 1 else L2)(others)))

    def _floor(self, verdicts: dict[str, Verdict]) -> tuple[str, ...]:
        """The sets of which one unit is left alive, and only because a switch does not lose its last channel."""
        held = {f"{name}.theta" for name, switch in self.switches.items() if switch.held > 0}
        return tuple(
            name
            for name, verdict in verdicts.items()
            if (~verdict.goes).sum() <= 1 and any(each.tensor in held for each in self.structure.sets[name].places)
        )

    @property
    def dead(self) -> Tensor:
        """How many channels are dead and still there, in all switches: a scalar on the device."""
        return torch.stack([(~switch.living).sum() for switch in self.switches.values()]).sum()

    def _penalty(self) -> Tensor:
        return torch.stack([strength * penalty.value() for strength, penalty in self._penalties]).sum()

    def _regularise(self) -> None:
        for strength, penalty in self._penalties:
            penalty.add_gradient(strength)

    def _after_step(self, optimizer: Optimizer) -> None:
        self.rule(list(self.switches.values()))

    def _verdict(self, name: str, judged: Judged) -> Verdict:
        """A unit goes where all of its switches are dead; it is worth as much as its largest |theta|."""
        coupled = self.structure.sets[name]
        thetas = [switch.theta for switch in self.switches.values()]
        score = thetas[0].new_zeros(coupled.size + 1, dtype=wide_type(*thetas))  # the last: another set's
        living, switched = torch.zeros_like(score), torch.zeros_like(score)
        for place in coupled.places:
            owner, _, key = place.tensor.rpartition(".")
            if key == "theta" and owner in self.switches:
                switch, units = self.switches[owner], place.units.remainder(coupled.size + 1)
                score.scatter_reduce_(0, units, (switch.theta.abs() * switch.alive).to(score), "amax")
                living.index_add_(0, units, switch.living.to(living))
                switched.index_fill_(0, units, 1.0)
        return Verdict(score[:-1], ((living == 0) & (switched == 1))[:-1])
