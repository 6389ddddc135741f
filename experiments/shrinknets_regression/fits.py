"""Regressions of several seeds as one network, and their training with switches and without."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from sets import Part, Split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from hpc.seeding import generator, seed_for
from structlearn.pruning import Norm, Pruner
from structlearn.shrinknets import ShrinkNets, Switch
from structlearn.structure import Structure

DEAD = 1e-3  # a column whose norm is less is dead (S 4.4: all of whose weights are)


class Setting(NamedTuple):
    """How a set is fitted."""

    side: dict[str, Any]
    """`method`, and its options: group_sparsity (`proximal`) or shrinknets (`p`, `weight_ratio`, `rule`, ...)."""
    strength: float
    """lambda, over that at which group sparsity leaves no column."""
    rate: float
    """The learning rate at the start, over the inverse of the objective's largest curvature."""
    removal: bool
    """Are switches killed, and their columns cut at each epoch's end?"""


class Descent(NamedTuple):
    """Stochastic gradient descent, the same for all sides."""

    steps: int
    batch: int
    momentum: float


class Fit(NamedTuple):
    """One seed's regression."""

    weights: Tensor
    """[outputs, columns]: switches are multiplied in; columns that have been cut are 0."""
    bias: Tensor
    """[outputs]."""
    cost: int
    """The sum over all epochs of the columns that were there (S 4.5)."""
    epochs: int

    @property
    def living(self) -> Tensor:
        """[columns], bool."""
        return self.weights.norm(dim=0) >= DEAD

    @property
    def dead(self) -> float:
        """The share of columns."""
        return 1 - self.living.float().mean().item()


class Regressions(nn.Module):
    """Linear maps of the same columns that share nothing, one a seed, with a switch on each column or without.

    An identity stands in front, which is not trained. So its outputs are units like those of any layer, and a dead
    column is cut as a dead unit is.
    """

    def __init__(self, seeds: int, columns: int, outputs: int, *, switches: bool) -> None:
        super().__init__()
        for seed in range(seeds):
            torch.manual_seed(seed_for(seed, "init"))
            answer = nn.Linear(columns, outputs)
            chosen = nn.Linear(columns, columns, bias=False)
            chosen.weight = nn.Parameter(torch.eye(columns), requires_grad=False)
            parts = OrderedDict[str, nn.Module](columns=chosen)
            if switches:
                parts["switch"] = Switch(columns, axis=-1)
            parts["answer"] = answer
            self.add_module(f"seed{seed}", nn.Sequential(parts))

    def forward(self, x: Tensor) -> Tensor:
        """[seeds, rows, columns] to [seeds, rows, outputs]."""
        return torch.stack([branch(each) for branch, each in zip(self.children(), x, strict=True)])

    @torch.no_grad()
    def fits(self, costs: list[int], epochs: int) -> list[Fit]:
        """What has been learned."""
        found = []
        for branch, cost in zip(self.children(), costs, strict=True):
            parts: dict[str, Any] = dict(branch.named_children())
            weights = parts["answer"].weight
            if "switch" in parts:
                weights = weights * parts["switch"].factor
            found.append(Fit(weights @ parts["columns"].weight, parts["answer"].bias.clone(), cost, epochs))
        return found


def objective(answer: Tensor, targets: Tensor) -> Tensor:
    """[seeds]: the mean over rows of the squared distance from the targets (S eq. 6), or of the cross-entropy."""
    if targets.is_floating_point():
        return (answer - targets).square().sum(-1).mean(-1)
    return cross_entropy(answer.transpose(1, 2), targets, reduction="none").mean(-1)


def loss(fit: Fit, part: Part) -> float:
    """On a part, over the loss of knowing nothing: of the targets' means, or of equal chances."""
    found = objective((part.inputs @ fit.weights.T + fit.bias)[None], part.targets[None]).item()
    outputs = len(fit.bias)
    return found / (outputs if part.targets.is_floating_point() else math.log(outputs))


def outputs_of(part: Part) -> int:
    """How many targets, or classes."""
    return part.targets.shape[1] if part.targets.is_floating_point() else int(part.targets.max()) + 1


def curvature(parts: list[Part]) -> float:
    """A bound of the objective's second derivatives, for the seed where it is largest."""
    largest = max(torch.linalg.matrix_norm(part.inputs, 2).item() ** 2 / len(part.inputs) for part in parts)
    return (2.0 if parts[0].targets.is_floating_point() else 0.5) * max(1.0, largest)  # 1 is the bias's


def steepness(part: Part) -> float:
    """The largest 2-norm of a column's gradient where all weights are 0.

    A group sparsity whose penalty is steeper leaves no column.
    """
    if part.targets.is_floating_point():
        slopes = 2 * part.targets.T @ part.inputs
    else:
        slopes = one_hot(part.targets).to(part.inputs).T @ part.inputs  # columns have mean 0
    return slopes.norm(dim=0).max().item() / len(part.inputs)


def pruner_of(structure: Structure, setting: Setting, steepest: float, outputs: int) -> Pruner:
    """The method of a side; its strength is that of the setting times the data's steepness."""
    options = {key: value for key, value in setting.side.items() if key != "method"}
    strength = setting.strength * steepest
    if setting.side["method"] == "group_sparsity":
        strength /= math.sqrt(outputs)  # S eq. 4 and the penalty have this factor, S eq. 5 has it in lambda
        return Norm(structure, penalty="reversed_group_lasso", strength=strength, threshold=DEAD, **options)
    ratio = options.pop("weight_ratio")
    return ShrinkNets(structure, strength=strength, weight_strength=ratio * strength, **options)


def train(splits: list[Split], setting: Setting, descent: Descent) -> list[Fit]:
    """All seeds' regressions; the learning rate falls to 0 along half a cosine."""
    parts = [split.train for split in splits]
    inputs = torch.stack([part.inputs for part in parts])
    targets = torch.stack([part.targets for part in parts])
    outputs = outputs_of(parts[0])
    network = Regressions(len(parts), inputs.shape[2], outputs, switches=setting.side["method"] == "shrinknets")
    structure = Structure(network, inputs[:, :2])
    pruner = pruner_of(structure, setting, sum(map(steepness, parts)) / len(parts), outputs)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    highest = setting.rate / curvature(parts)
    optimizer = torch.optim.SGD(trained, lr=highest, momentum=descent.momentum)
    rows = torch.arange(len(parts))[:, None]
    after_step = setting.removal or setting.side["method"] == "group_sparsity"
    costs, epoch, step = [0] * len(parts), 0, 0
    while step < descent.steps:
        for index in batches(inputs.shape[1], descent.batch, len(parts), epoch):
            rate = highest * (1 + math.cos(math.pi * step / descent.steps)) / 2
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            objective(network(inputs[rows, index]), targets[rows, index]).sum().backward()
            pruner.regularise()
            optimizer.step()
            if after_step:
                pruner.after_step(optimizer)
            step += 1
        epoch += 1
        costs = [cost + width for cost, width in zip(costs, structure.widths.values(), strict=True)]
        if setting.removal:
            pruner.cut(pruner.plan(), optimizer)
    return network.fits(costs, epoch)


def batches(rows: int, size: int, seeds: int, epoch: int) -> Iterator[Tensor]:
    """An epoch's batches, [seeds, size]: rows in a random order, each seed its own. What is less than one is left."""
    orders = [generator(seed, "order", epoch).permutation(rows) for seed in range(seeds)]
    for start in range(0, rows - size + 1, size):
        yield torch.stack([torch.from_numpy(order[start : start + size]) for order in orders])


def refit(fit: Fit, part: Part) -> Fit:
    """Least squares on the columns that are left, without any penalty: what the choice of columns is worth.

    For linear regressions only: without penalty a logistic one has no minimum where planes part the classes.
    """
    inputs = torch.column_stack([part.inputs * fit.living, torch.ones(len(part.inputs))]).double()
    solution = torch.linalg.lstsq(inputs, part.targets.double(), driver="gelsd").solution.float()
    return fit._replace(weights=solution[:-1].T, bias=solution[-1])
