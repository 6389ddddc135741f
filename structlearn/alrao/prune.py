"""Which learning rates a layer can do without: pruning by rate after training (W 2.6.4, Alg. 2, fig. 2.4)."""

from __future__ import annotations

from math import isfinite, isnan
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from structlearn.checks import check_choice, check_interval
from structlearn.flow import last_layer
from structlearn.units import Units, units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Filling = Literal["zero", "noise", "initial"]


class Kept(NamedTuple):
    """The layer with only those units whose rates are in [low, high]; the others are pruned."""

    low: float
    high: float
    performance: float
    """As the caller's `evaluate` said; it may be nan."""
    units: int
    """How many are left."""


def narrow(
    model: nn.Module,
    rates: Mapping[str, Tensor],
    layer: str,
    evaluate: Callable[[], float],
    *,
    filling: Filling = "zero",
    initial: Mapping[str, Tensor] | None = None,
    interval: tuple[float, float] = (1e-5, 10.0),
    factor: float = 2.0,
    seed: int = 0,
) -> list[Kept]:
    """Narrow one layer's interval of rates step by step, from the end that costs less performance (W Alg. 2).

    Here for the whole of training::

        initial = copy.deepcopy(model.state_dict())
        net, optimizer = adopt(model)
        ...                                           # training
        plain = net.best().eval()
        for low, high, accuracy, left in narrow(plain, optimizer.rates, "features.0", lambda: accuracy_of(plain)): ...

    A unit is pruned with all its incoming parameters, as :mod:`structlearn.units` says: its weights, its bias, the
    scale and shift of the normalisation that follows. Running statistics stay those of the trained unit, for W says
    nothing of them; an `evaluate` may take them anew: each call of it starts from the trained ones. Afterwards all
    parameters and buffers are as before, bit for bit, also if `evaluate` raised.

    What W leaves open, and where Alg. 2 is not right as printed:

    - Equally good ends: the upper one falls, as in Alg. 2's "else". A performance of nan is worse than any other, so
      that an end is never given up for it; by the letter of Alg. 2 a nan of M_max would be taken.
    - "while a_min < a_max" ends one step beyond the last interval: where high / low is no power of `factor` the last
      row has low > high, and no unit. It is reported: so much is lost without the layer's units.
    - The first row, which W does not report, is the whole interval. Units with the rate 0, frozen or lost, lie outside
      it and are pruned there.
    - Alg. 2 reports once more what it has measured; here the same units are never measured twice. So that this is right
      a unit's noise is drawn once, not at each step.

    Args:
        model: The trained network, usually of :meth:`structlearn.alrao.Alrao.best`; `evaluate` must use this one.
        rates: For each layer by name the rates of its units: an optimiser's `rates`, with the names of the model or of
            the Alrao that it was taken from.
        layer: The layer's name in the table of units. Not the output layer of a plain network that was an Alrao: its
            units share one rate.
        evaluate: The performance; higher is better. It leaves the parameters alone.
        filling: What a pruned unit's parameters become. "zero": 0. "initial": what they were before training. "noise":
            normal, with the mean and the deviation that all initial entries of the same parameter have: another draw of
            the initialisation, and for what was started alike (biases; scales with 1) that value again.
        initial: Each parameter's value before training, by its name in the model; for "noise" and "initial". A copy of
            the model's `state_dict()` will do.
        interval: (a_min, a_max) at the start.
        factor: W's da.
        seed: Of the noise.

    Raises:
        ValueError: an unknown layer or filling, no rates or initial values for it, an interval that is none.
    """
    low, high = check_interval("interval", *interval)
    if not (factor > 1 and isfinite(factor)):
        raise ValueError(f"factor must be above 1 and finite, got {factor!r}; use 2, as the source does")
    check_choice("filling", filling, ("zero", "noise", "initial"))
    table = units(model)
    check_choice("layer", layer, table.layers)
    own = _rates(model, table, rates, layer)
    trial = _Trial(model, table, layer, _fillings(model, table, layer, filling, initial, seed))
    known: dict[tuple[int, int], float] = {}

    def measured(low: float, high: float) -> Kept:
        # In the rates' own precision: a rate that was drawn as 1e-5 is not below 1e-5.
        below, above = own < own.new_tensor(low), own > own.new_tensor(high)
        inside = ~(below | above)
        key = (int(below.sum()), int(inside.sum()))  # in the order of rates, those inside have no gaps
        if key[1] == 0:
            key = (0, 0)
        if key not in known:
            trial.prune(~inside)
            known[key] = float(evaluate())
        return Kept(low, high, known[key], key[1])

    try:
        rows = [measured(low, high)]
        while rows[-1].low < rows[-1].high:
            last = rows[-1]
            less, more = measured(last.low * factor, last.high), measured(last.low, last.high / factor)
            rows.append(less if _better(less.performance, more.performance) else more)
    finally:
        trial.restore()
    return rows


def _better(one: float, other: float) -> bool:
    """Strictly; nan is worse than all."""
    return not isnan(one) and (isnan(other) or one > other)


class _Trial:
    """A network whose units of one layer are pruned in place, and brought back."""

    def __init__(self, model: nn.Module, table: Units, layer: str, fillings: dict[str, Tensor]) -> None:
        self._model, self._fillings = model, fillings
        self._numbers, self._count = table.layers[layer], len(table)
        named = dict(model.named_parameters())
        self._parameters = {name: named[name] for name in fillings}
        self._index = {name: table.index[name].to(named[name].device) for name in fillings}
        self._trained = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    @torch.no_grad()
    def prune(self, gone: Tensor) -> None:
        """Fill the units of `gone`, [units of the layer], bool; the others are as trained."""
        marks = gone.new_zeros(self._count)
        marks[self._numbers.start : self._numbers.stop] = gone
        for name, parameter in self._parameters.items():
            pruned = marks.to(parameter.device)[self._index[name]]
            parameter.copy_(torch.where(pruned, self._fillings[name], self._trained[name]))
        self._reset_buffers()

    @torch.no_grad()
    def restore(self) -> None:
        """All as it was."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._trained[name])
        self._reset_buffers()

    def _reset_buffers(self) -> None:
        for name, buffer in self._model.named_buffers():
            buffer.copy_(self._buffers[name])


def _rates(model: nn.Module, table: Units, rates: Mapping[str, Tensor], layer: str) -> Tensor:
    """The rates of a layer's units, [units]."""
    of_alrao = all(f"model.{name}" in rates for name in table.layers)
    if of_alrao and layer == last_layer(model, (nn.Linear, nn.Conv2d)):
        raise ValueError(f"the units of the output layer {layer!r} share one rate, that of their head; take another")
    name = f"model.{layer}" if of_alrao else layer
    if name not in rates:
        raise ValueError(f"there are no rates for the layer {layer!r}; give those of the optimiser that trained it")
    count = len(table.layers[layer])
    if rates[name].shape != (count,):
        raise ValueError(
            f"the layer {layer!r} has {count} units, but its rates have the shape {tuple(rates[name].shape)}; give "
            f"those of the optimiser that trained this network"
        )
    return rates[name].detach()


def _fillings(
    model: nn.Module, table: Units, layer: str, filling: Filling, initial: Mapping[str, Tensor] | None, seed: int
) -> dict[str, Tensor]:
    """For each parameter that has entries of the layer's units: what would fill it if all were pruned."""
    numbers = table.layers[layer]
    generator = torch.Generator().manual_seed(seed)
    fillings = {}
    for name, parameter in model.named_parameters():
        index = table.index[name]
        if not ((index >= numbers.start) & (index < numbers.stop)).any():
            continue
        if filling == "zero":
            fillings[name] = torch.zeros_like(parameter)
            continue
        start = (initial or {}).get(name)
        if start is None or start.shape != parameter.shape:
            got = "nothing" if start is None else f"the shape {tuple(start.shape)}"
            raise ValueError(
                f"filling {filling!r} needs the initial values of {name}, shape {tuple(parameter.shape)}, got {got}; "
                f"give initial=copy.deepcopy(model.state_dict()) of before training"
            )
        start = start.detach()
        if filling == "noise":
            noise = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(start.device)
            start = start.double().mean() + start.double().std(correction=0) * noise
        fillings[name] = start.to(parameter)
    return fillings
