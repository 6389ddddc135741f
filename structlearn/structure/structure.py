"""The structure of a network: its coupled units, and the surgery on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from structlearn.checks import check_choice
from structlearn.structure.attributes import set_sizes
from structlearn.structure.coupling import Axis, Coupled, coupled, resolve
from structlearn.structure.cut import Cut
from structlearn.structure.labels import FIXED
from structlearn.structure.plan import Plan
from structlearn.structure.trace import trace
from structlearn.structure.wide import line, squares, wide

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

    from structlearn.structure.trace import Traced
    from structlearn.structure.tracker import Role


class Structure:
    """Which slices of which tensors form one unit of a network, found by following one example through it.

    In a training loop::

        structure = Structure(model, images[:2])
        ...
        plan = Plan({"features.0": (0, 3, 4)})    # three units of that layer stay
        structure.apply(plan, optimizer)          # everywhere at once; training goes on

    Any network will do whose forward pass gets its sizes from its tensors: residual sums, concatenations, flattening,
    grouped convolutions, recurrent cells, parameters without a layer. What a cut could break stays whole
    (:attr:`fixed`): the network's answer, what normalisations or attention mix, what is chosen by number.

    Args:
        model: The network.
        example: A batch, or a tuple of arguments, as the network is called with. Only shapes matter.

    Raises:
        ValueError: the network cannot be run with the example.
    """

    def __init__(self, model: nn.Module, example: Tensor | tuple[Any, ...]) -> None:
        self.model = model
        traced = trace(model, example)
        self._axes, self._sets = resolve(traced)
        self.fixed = _reasons(traced)
        """Layers whose outputs are never cut, and why."""
        self.plan = Plan()
        """All that was cut since the start, as one plan."""
        self.version = 0
        """How many cuts there were."""
        self._places: dict[str, Coupled] | None = None

    @property
    def sets(self) -> dict[str, Coupled]:
        """The coupled sets by name, in the order in which a forward pass meets them."""
        if self._places is None:
            device = next((each.device for each in self.model.parameters()), torch.device("cpu"))
            self._places = coupled(self._axes, self._sets, device)
        return self._places

    @property
    def widths(self) -> dict[str, int]:
        """How many units each set has."""
        return {name: len(numbers) for name, numbers in self._sets.items()}

    def reduce(self, role: Role, of: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Sums over all entries of each unit at its places of one role, in float32 or wider; gradients flow.

        Args:
            role: Which places: "in" for outgoing weights, "out" for incoming ones.
            of: Of a tensor's name and value (half precision as float32), a value of the same shape, or one that
                broadcasts to it.

        Returns:
            For each set, [size].
        """

        def sums(name: str, tensor: Tensor, axis: int) -> Tensor:
            return line(wide(of(name, wide(tensor))).expand(tensor.shape), axis)

        return self._sums(role, sums)

    @torch.no_grad()
    def norms(self, role: Role) -> dict[str, Tensor]:
        """2-norms of all entries of each unit at its places of one role: for each set [size], float32 or wider."""
        found = self._sums(role, lambda _, tensor, axis: squares(tensor, axis))
        return {name: sums.sqrt() for name, sums in found.items()}

    def _sums(self, role: Role, sums: Callable[[str, Tensor, int], Tensor]) -> dict[str, Tensor]:
        """Over all places of each unit, of what `sums` gives for each entry of an axis of a tensor."""
        named, widths = self.tensors(), list(self.widths.values())
        axes = [each for each in self._axes if each.role == role]
        if not axes:
            total = next(iter(named.values())).new_zeros(sum(widths), dtype=torch.float32)
        else:
            found = torch.cat([sums(each.tensor, named[each.tensor], each.axis) for each in axes])
            units = torch.from_numpy(np.concatenate([each.units for each in axes])).to(found.device)
            base = found.new_zeros(sum(widths) + 1)  # the last takes what is never cut
            total = base.index_add(0, units.remainder(len(base)), found)[:-1]
        return dict(zip(self._sets, total.split(widths), strict=True))

    def count(self, role: Role) -> dict[str, Tensor]:
        """How many entries each unit has at its places of one role; [size], float64."""
        with torch.no_grad():
            return self.reduce(role, lambda _, tensor: torch.ones_like(tensor, dtype=torch.float64))

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers by name."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def check(self, plan: Plan) -> None:
        """Raises ValueError where the plan is none for this network as it is now."""
        for name, units in plan.keep.items():
            check_choice("set of units", name, self._sets)
            size = len(self._sets[name])
            if not units:
                raise ValueError(f"the plan leaves no unit of {name}, which has {size}; leave one")
            if len(set(units)) < len(units) or min(units) < 0 or max(units) >= size:
                raise ValueError(
                    f"the plan keeps {len(units)} units of {name}, {min(units)} to {max(units)}, but they are numbered "
                    f"from 0 to {size - 1}, and each may stay once"
                )

    @torch.no_grad()
    def apply(self, plan: Plan, optimizer: Optimizer | None = None) -> Cut:
        """Cut and permute units in place: parameters, gradients, buffers, sizes, and the optimiser's state.

        Parameters stay the same objects, so optimisers, hooks and references to them go on. Of an optimiser's state,
        all that has its parameter's shape is cut with it; one that keeps more does so itself in a method
        `restructure(cut)`.

        Returns:
            What was done, for whatever else has the shape of parameters (see :meth:`Cut.select`).

        Raises:
            ValueError: the plan is none for this network, or the optimiser's state has parts that cannot be cut. Then
                nothing has changed.
        """
        self.check(plan)
        parameters = dict(self.model.named_parameters())
        state = {} if optimizer is None else _states(optimizer, parameters)
        self.version += 1
        cut = Cut(plan, self.version, self._axes, self._sets, parameters)
        self.plan = self.plan.then(plan)
        modules = dict(self.model.named_modules())
        buffers, owners = dict(self.model.named_buffers()), _owners(self.model)
        touched = dict.fromkeys(name.rpartition(".")[0] for name in cut.names)
        for name in cut.names:
            if (parameter := parameters.get(name)) is not None:
                gradient, parameter.grad = parameter.grad, None
                for key, value in state.get(name, {}).items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name][key] = cut.select(name, value)
                _replace(parameter, cut.select(name, parameter.data))
                if gradient is not None:
                    parameter.grad = cut.select(name, gradient)
            else:
                smaller = cut.select(name, buffers[name])
                for module, key in owners[id(buffers[name])]:
                    setattr(module, key, smaller)
        along = {each.tensor for each in self._axes if each.axis == 0 and each.role == "along"}
        for name in touched:
            set_sizes(modules[name], depthwise=f"{name}.weight" in along)
        self._renumber(plan, cut)
        if optimizer is not None and hasattr(optimizer, "restructure"):
            optimizer.restructure(cut)
        return cut

    def _renumber(self, plan: Plan, cut: Cut) -> None:
        self._axes = [
            Axis(each.tensor, each.axis, each.role, units) for each, units in zip(self._axes, cut.units, strict=True)
        ]
        start, sets = 0, {}
        for name, numbers in self._sets.items():
            size = len(plan.keep.get(name, numbers))
            sets[name] = range(start, start + size)
            start += size
        self._sets = sets
        self._places = None


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """For each buffer, by its identity: the modules that hold it, and under which names."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            found.setdefault(id(buffer), []).append((module, key))
    return found


def _replace(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter other values, of another shape.

    Autograd remembers the shape that a gradient must have as long as any graph is alive, such as that of the last loss;
    it forgets when the type changes.
    """
    parameter.data = value.new_empty(0, dtype=torch.float16 if value.dtype != torch.float16 else torch.float32)
    parameter.data = value


def _states(optimizer: Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """The optimiser's state of each parameter, by the parameter's name."""
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        if (state := optimizer.state.get(parameter)) is None:
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name} of shape "
                    f"{tuple(parameter.shape)}, which cannot be cut with it; take an optimiser whose state has the "
                    f"shape of its parameters"
                )
        found[name] = state
    return found


def _reasons(traced: Traced) -> dict[str, str]:
    """For each layer that has outputs which are never cut: why, by the first operator that ties them down."""
    found: dict[str, str] = {}
    fixed = traced.same.find(np.array([FIXED]))[0]
    for name, axes in traced.labels.items():
        for axis, labels in axes.items():
            if traced.roles.get((name, axis)) != "out" or (traced.same.find(labels) != fixed).all():
                continue
            why = next(
                (why for tied, why in traced.why if np.isin(tied, labels).any()), "others are that they are tied to"
            )
            found.setdefault(name.rpartition(".")[0] or name, why)
    return found
