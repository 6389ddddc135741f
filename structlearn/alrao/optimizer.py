"""What all optimisers with one learning rate a unit share: rates, steps, and units that are lost."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from structlearn.alrao.hand import at_hand, is_at_hand
from structlearn.alrao.heads import Heads
from structlearn.alrao.network import Alrao
from structlearn.alrao.rates import draw, grid
from structlearn.units import Units, largest, units

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.structure import Cut

SHARE: Final = 0.5
"""Where the loss is beyond all bounds, those units are to blame whose weights have grown this much of what the fastest
have, if they are more than 1 / SHARE times as large as at the start. (Measured where nothing is normalised:
experiments/alrao_robustness.)"""


class PerUnit(Optimizer):
    """An optimiser with one learning rate for every unit, drawn once, at the start (W 2.4.3).

    A parameter group's ``rates`` holds the rates of all units as one vector, in the order of
    :func:`structlearn.units.units`; ``lr`` is a factor on all of them, 1 at the start, so that any learning-rate
    schedule multiplies them all. A head of :class:`Alrao` is one unit; heads have their rates from a grid.

    For an :class:`Alrao` network, a unit that explodes does not spoil the others. It shows in the next loss: where that
    is beyond all bounds (:attr:`Alrao.evidence`), the gradients, which it has spoilt, count as zero, and the units
    whose largest weights have grown the most since the start are *lost*: their parameters become 0, and their rates;
    and running statistics (BatchNorm's) are again what they were.
    (To watch the weights themselves takes one more pass through them, 0.6 of a whole step without momentum.) On a CPU
    the loss is a number at hand; elsewhere, where to look at it would be to wait for it, the gradients are zeroed
    without looking, and the units seen to when the number has come.

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

    averages: tuple[str, ...] = ()
    """The names of the running averages in the state."""

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
        table = units(network)
        named = {name: each for name, each in network.named_parameters() if each.requires_grad and each.numel()}
        if not named:
            raise ValueError("the network has no parameter that can be trained; give one that has")
        device = next(iter(named.values())).device
        rates = draw(len(table), lr_min, lr_max, frozen=frozen, seed=seed)
        for name, module in network.named_modules():
            if isinstance(module, Heads):
                rates[torch.tensor(table.layers[name])] = grid(module.count, lr_min, lr_max)
        self._whole = network
        self._network = network if isinstance(network, Alrao) else None
        self._names = list(named)
        self._number(table, device)
        self._late = None if is_at_hand(rates.to(device)) else Late()
        lost = torch.zeros(len(rates), dtype=torch.bool, device=device)
        group = {"params": list(named.values()), "rates": rates.to(device), "lost": lost}
        super().__init__([group], {"lr": 1.0, **defaults})
        self._spread()
        self._find_statistics()
        self.param_groups[0]["start"] = self._sizes().clamp_(min=1e-3)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all units; then the switch learns what the heads said before it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        places = [place for place, parameter in enumerate(group["params"]) if parameter.grad is not None]
        parameters = [group["params"][place] for place in places]
        gradients = [parameter.grad for parameter in parameters]
        if any(gradient.is_sparse for gradient in gradients):
            raise RuntimeError("Alrao takes dense gradients only; make the embedding with sparse=False")
        if self._network is not None:
            self._look_after(self._network, gradients)
        if parameters:
            directions, factor = self._directions(group, parameters, gradients)
            rates = [self._rates[place] for place in places]
            torch._foreach_addcmul_(parameters, directions, rates, value=-factor * float(group["lr"]))
        if self._network is not None:
            self._network.update()
        return loss

    @abstractmethod
    def _directions(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[Tensor], float]:
        """(directions, a factor on all of them): a parameter p becomes p - factor lr rate direction."""

    @property
    def rates(self) -> dict[str, Tensor]:
        """The rates of each layer's units, by the layer's name."""
        (group,) = self.param_groups
        return {name: group["rates"][numbers.start : numbers.stop] for name, numbers in self.layers.items()}

    @property
    def lost(self) -> Tensor:
        """How many units are lost, heads among them: a scalar, where the parameters are."""
        (group,) = self.param_groups
        count: Tensor = group["lost"].sum()
        return count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave: rates and lost units, too."""
        device, count = self.param_groups[0]["rates"].device, len(self._table)
        if (saved := len(state_dict["param_groups"][0]["rates"])) != count:
            raise ValueError(f"the state is of a network of {saved} units, but this one has {count}")
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for key in ("rates", "lost", "start"):
                group[key] = torch.as_tensor(group[key]).to(device, copy=True)
        self._spread()
        self._keep_statistics()

    def redraw(self, rates: Tensor) -> None:
        """Give all units these rates, [units]; nobody is lost any more."""
        (group,) = self.param_groups
        group["rates"].copy_(rates)
        group["lost"].zero_()
        self._spread()

    def restructure(self, cut: Cut) -> None:
        """Units were cut from the network, or have changed places: each that is left keeps its rate.

        Args:
            cut: What :meth:`structlearn.structure.Structure.apply` has done; it calls this.
        """
        (group,) = self.param_groups
        table = units(self._whole)
        before = torch.zeros(len(table), dtype=torch.int64)
        for name, index, parameter in zip(self._names, self._index, group["params"], strict=True):
            now = table.index[name]
            before[now] = cut.select(cut.name_of[parameter], index.cpu()).expand(now.shape)
        for key in ("rates", "lost", "start"):
            group[key] = group[key][before.to(group[key].device)]
        self._number(table, group["rates"].device)
        self._spread()
        self._find_statistics()

    def _number(self, table: Units, device: torch.device) -> None:
        """Take over a numbering of the units."""
        self._table = table
        self.layers = dict(table.layers)
        """The numbers of each layer's units."""
        self._heads = self.layers[f"model.{self._network.head}"] if self._network is not None else range(0)
        self._index = [table.index[name].to(device) for name in self._names]

    def _find_statistics(self) -> None:
        self._statistics = [
            buffer
            for module in self._whole.modules()
            if isinstance(module, _NormBase) and self._network is not None
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        self._before = [buffer.clone() for buffer in self._statistics]
        """Running statistics, as they were after the last step whose loss was within bounds."""

    def _spread(self) -> None:
        """For each parameter, the rates of its units, in a shape that broadcasts to its own."""
        (group,) = self.param_groups
        self._rates = [group["rates"][index] for index in self._index]

    def _average(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """A running average of each parameter's, from zero."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [self.state[parameter][name] for parameter in parameters]

    # --- units that are lost ---------------------------------------------------------------------------

    def _look_after(self, network: Alrao, gradients: list[Tensor]) -> None:
        """Before a step: was the loss beyond all bounds, and is a head lost?"""
        (group,) = self.param_groups
        heads = self._heads
        known, alive = group["lost"][heads.start : heads.stop], network.switch.alive
        if self._late is None:
            if at_hand(network.evidence)[-1] > 0:
                torch._foreach_zero_(gradients)
                self._lose(self._exploded())
                self._restore_statistics()
            else:
                self._keep_statistics()
            if not (at_hand(alive) | at_hand(known)).all():
                self._lose(self._at(heads, ~alive))
            return
        strange = network.evidence[-1] > 0
        for gradient in gradients:
            gradient.masked_fill_(strange, 0.0)
        for now, before in zip(self._statistics, self._before, strict=True):
            torch.where(strange, before, now, out=now)
            before.copy_(now)
        for happened in self._late.seen(torch.stack([strange, ~(alive | known).all()])):
            self._lose(self._exploded() if happened[0] else self._at(heads, ~alive))

    def _keep_statistics(self) -> None:
        if self._statistics:
            torch._foreach_copy_(self._before, self._statistics)

    def _restore_statistics(self) -> None:
        """A unit that explodes is in the running statistics before it is in the loss: out of them again."""
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._before)

    def _at(self, numbers: range, which: Tensor) -> Tensor:
        """[units], bool: true for those of a layer's units."""
        (group,) = self.param_groups
        chosen = torch.zeros_like(group["lost"])
        chosen[numbers.start : numbers.stop] = which
        return chosen

    @torch.no_grad()
    def _sizes(self) -> Tensor:
        """[units]: the largest weight of each, inf where one is no number."""
        (group,) = self.param_groups
        sizes = torch.zeros_like(group["rates"])
        for name, parameter, index in zip(self._names, group["params"], self._index, strict=True):
            tops = largest(self._table, name, parameter).nan_to_num(nan=torch.inf, posinf=torch.inf).to(sizes.dtype)
            sizes.scatter_reduce_(0, index.flatten(), tops.flatten(), "amax")
        return sizes

    def _exploded(self) -> Tensor:
        """[units], bool: who has grown most. Heads only if nobody else has: likelihoods say what they are worth."""
        (group,) = self.param_groups
        heads = self._heads
        grown = (self._sizes() / group["start"]).masked_fill_(group["rates"] == 0, 0.0)
        others = grown.clone()
        others[heads.start : heads.stop] = 0.0
        grown = torch.where(others.max() > 1 / SHARE, others, grown)
        fastest: Tensor = grown >= SHARE * grown.max()
        return fastest.logical_and_(grown > 1 / SHARE)

    def _lose(self, units: Tensor) -> None:
        """Give up these units, [units], bool."""
        (group,) = self.param_groups
        group["lost"].logical_or_(units)
        group["rates"].masked_fill_(units, 0.0)
        for place, (parameter, index) in enumerate(zip(group["params"], self._index, strict=True)):
            gone = units[index]
            kept = [self.state[parameter][name] for name in self.averages if name in self.state[parameter]]
            for values in (parameter, *kept):
                values.masked_fill_(gone, 0.0)
            self._rates[place].masked_fill_(gone, 0.0)
        if self._network is not None:
            self._network.switch.lose(units[self._heads.start : self._heads.stop])


class Late:
    """Reads numbers of a CUDA device LAG steps later, when they have come by themselves. Of other devices, never.

    A fixed number of steps, so that ranks that train one network see to the same units at the same step.
    """

    LAG: Final = 4

    def __init__(self) -> None:
        self._under_way: list[tuple[Any, Tensor]] = []

    def seen(self, flags: Tensor) -> list[list[bool]]:
        """Send for these flags; those of LAG steps ago, if one of them is true."""
        if flags.device.type != "cuda":
            return []
        there = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        there.copy_(flags, non_blocking=True)
        self._under_way.append((torch.cuda.current_stream(flags.device).record_event(), there))
        if len(self._under_way) <= self.LAG:
            return []
        event, come = self._under_way.pop(0)
        event.synchronize()  # it was over steps ago
        if not come.any():
            return []
        self._under_way.clear()  # what was seen since was the same explosion
        return [come.tolist()]
