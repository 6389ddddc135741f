"""What all optimisers with one learning rate a unit share: rates, steps, and units that are lost."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from structlearn.alrao.heads import Heads
from structlearn.alrao.network import Alrao
from structlearn.alrao.rates import draw, grid
from structlearn.units import largest, units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT: Final = 1e6
"""A unit that would move by this much or more in one step is lost. Below it weights multiply through several layers
without leaving float32; behind a BatchNorm, which makes any scale do, rates of 1e7 still move less."""

CHUNK: Final = 2**19
"""Numbers that are updated together on a CPU: they stay in its cache between the operations of a step."""


@dataclass
class Chunk:
    """Parameters that are updated together."""

    names: list[str]
    parameters: list[Tensor]
    gradients: list[Tensor]
    rates: list[Tensor]
    """For each, the rates of its units, in a shape that broadcasts to it."""
    top: Tensor
    """The largest rate of each."""


class PerUnit(Optimizer):
    """An optimiser with one learning rate for every unit, drawn once, at the start (W 2.4.3).

    A parameter group's ``rates`` holds the rates of all units as one vector, in the order of
    :func:`structlearn.units.units`; ``lr`` is a factor on all of them, 1 at the start, so that any learning-rate
    schedule multiplies them all. A head of :class:`Alrao` is one unit; heads have their rates from a grid.

    A unit whose step would be LIMIT or more is *lost*: all its parameters become 0 and its rate, too, and ``lost``
    counts it. So it cannot spoil the units that are fed by it. Where a parameter's gradient is not finite, the unit's
    part of it makes no step. On a CPU this costs one reading of the step's numbers; on other devices, where to look at
    a number would be to wait for it, it is done without looking.

    Args:
        network: Any network; for one that is an :class:`Alrao` a step also updates its switch.
        defaults: What the update rule needs.
        lr_min: Lower end of the interval that rates are drawn from, log-uniform.
        lr_max: Its upper end.
        frozen: The chance that a unit has the rate 0.
        seed: Of the draw.

    Raises:
        ValueError: an argument is out of its range, or the network has nothing to train.
    """

    def __init__(
        self,
        network: nn.Module,
        defaults: dict[str, Any],
        *,
        lr_min: float = 1e-5,
        lr_max: float = 10.0,
        frozen: float = 0.0,
        seed: int = 0,
    ) -> None:
        table = units(network, inside="model" if isinstance(network, Alrao) else "")
        named = {name: each for name, each in network.named_parameters() if each.requires_grad and each.numel()}
        if not named:
            raise ValueError("the network has no parameter that can be trained; give one that has")
        device = next(iter(named.values())).device
        rates = draw(len(table), lr_min, lr_max, frozen=frozen, seed=seed)
        for name, module in network.named_modules():
            if isinstance(module, Heads):
                rates[torch.tensor(table.layers[name])] = grid(module.count, lr_min, lr_max)
        self.layers = dict(table.layers)
        """The numbers of each layer's units."""
        self._network, self._table, self._names = network, table, list(named)
        self._index = [table.index[name].to(device) for name in named]
        lost = torch.zeros(len(rates), dtype=torch.bool, device=device)
        super().__init__(
            [{"params": list(named.values()), "rates": rates.to(device), "lost": lost}], {"lr": 1.0, **defaults}
        )
        self._spread()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all units; then the switch learns what the heads said before it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        for chunk in self._chunks(group):
            directions, carried, size = self._directions(group, chunk)
            size *= float(group["lr"])
            self._guard(group, chunk, directions, carried, size)
            torch._foreach_addcmul_(chunk.parameters, directions, chunk.rates, value=-size)
        if isinstance(self._network, Alrao):
            self._network.update()
        return loss

    @abstractmethod
    def _directions(self, group: dict[str, Any], chunk: Chunk) -> tuple[list[Tensor], list[list[Tensor]], float]:
        """(where each parameter goes, what is carried to the next step, a factor): p -= factor lr rate direction."""

    @property
    def rates(self) -> dict[str, Tensor]:
        """The rates of each layer's units, by the layer's name."""
        (group,) = self.param_groups
        return {name: group["rates"][numbers.start : numbers.stop] for name, numbers in self.layers.items()}

    @property
    def lost(self) -> Tensor:
        """How many units are lost: a scalar, where the parameters are."""
        (group,) = self.param_groups
        count: Tensor = group["lost"].sum()
        return count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave: rates and lost units, too."""
        device = self.param_groups[0]["rates"].device
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for key in ("rates", "lost"):
                group[key] = torch.as_tensor(group[key]).to(device, copy=True)
        self._spread()

    def redraw(self, rates: Tensor) -> None:
        """Give all units these rates, [units]; nobody is lost any more."""
        (group,) = self.param_groups
        group["rates"].copy_(rates)
        group["lost"].zero_()
        self._spread()

    def _spread(self) -> None:
        """For each parameter, the rates of its units in its shape (as far as they differ), and the largest."""
        (group,) = self.param_groups
        self._rates = [group["rates"][index] for index in self._index]
        self._top = torch.stack([rates.max() for rates in self._rates])

    def _chunks(self, group: dict[str, Any]) -> Iterator[Chunk]:
        """The parameters that have gradients, on a CPU a few at a time."""
        chosen, count = list[int](), 0
        whole = CHUNK if _at_hand(group["rates"]) else math.inf
        for place, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise RuntimeError("Alrao's optimisers take dense gradients only; make the embedding with sparse=False")
            if chosen and count + parameter.numel() > whole:
                yield self._chunk(group, chosen)
                chosen, count = [], 0
            chosen.append(place)
            count += parameter.numel()
        if chosen:
            yield self._chunk(group, chosen)

    def _chunk(self, group: dict[str, Any], places: list[int]) -> Chunk:
        parameters = [group["params"][place] for place in places]
        return Chunk(
            names=[self._names[place] for place in places],
            parameters=parameters,
            gradients=[parameter.grad for parameter in parameters],
            rates=[self._rates[place] for place in places],
            top=self._top[places[0] : places[-1] + 1] if places[-1] - places[0] < len(places) else self._top[places],
        )

    def _averages(self, chunk: Chunk, name: str) -> list[Tensor]:
        """A running average of each parameter, from zero."""
        for parameter in chunk.parameters:
            state = self.state[parameter]
            if name not in state:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [self.state[parameter][name] for parameter in chunk.parameters]

    # --- units that are lost ---------------------------------------------------------------------------

    def _guard(
        self, group: dict[str, Any], chunk: Chunk, directions: list[Tensor], carried: list[list[Tensor]], size: float
    ) -> None:
        """See to it that no step is LIMIT or more, or not finite."""
        norms = torch.stack(torch._foreach_norm(directions, math.inf))  # noqa: SLF001
        fine = (norms * chunk.top * size < LIMIT).all()
        if _at_hand(fine) and fine:
            return
        lost = torch.zeros_like(group["rates"])
        for place, name in enumerate(chunk.names):
            parameter, rates = chunk.parameters[place], chunk.rates[place]
            top = largest(self._table, name, directions[place])
            broken = ~top.isfinite()
            own = largest(self._table, name, parameter)
            # A head that is not finite has no gradient, but makes the trunk's NaN: it, too, must go.
            gone = torch.where(broken, ~(own < LIMIT), (top * rates * size >= LIMIT) | ~own.isfinite())
            for values in (directions[place], *(each[place] for each in carried)):
                values.masked_fill_(broken | gone, 0.0)
            index = self._index[self._names.index(name)]
            lost.index_add_(0, index.flatten(), gone.flatten().to(lost.dtype))
        now = lost > 0
        group["lost"].logical_or_(now)
        group["rates"].masked_fill_(now, 0.0)
        for parameter, parts, index in zip(group["params"], self._rates, self._index, strict=True):
            parameter.masked_fill_(now[index], 0.0)  # also what other chunks have of the unit
            parts.copy_(group["rates"][index])
        if isinstance(self._network, Alrao):
            heads = self.layers[f"model.{self._network.head}"]
            self._network.switch.lose(now[heads.start : heads.stop])


def _at_hand(values: Tensor) -> bool:
    """Can these be looked at without waiting for a device?"""
    return values.device.type == "cpu"
