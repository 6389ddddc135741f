"""A penalty on the layers of any network, in any training loop."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal

from structlearn.checks import check_choice, check_positive
from structlearn.penalties.factors import RULES, Rule, of_magnitudes, of_norms, of_squares
from structlearn.penalties.group_lasso import GroupLasso
from structlearn.penalties.l1 import L1
from structlearn.penalties.l2 import L2
from structlearn.penalties.layers import Layer, Side, batch_norms, grouped, linear_maps, per_group
from structlearn.penalties.proximal import check_proximal, shrink_after
from structlearn.penalties.sparse_group_lasso import SparseGroupLasso

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from structlearn.penalties.base import Penalty

Name = Literal["l2", "l1", "group_lasso", "reversed_group_lasso", "sparse_group_lasso", "bn_lasso"]
NAMES: Final = ("l2", "l1", "group_lasso", "reversed_group_lasso", "sparse_group_lasso", "bn_lasso")
Factors = Rule | Mapping[str, float]


class NetworkPenalty:
    """`strength` times the sum over layers of a factor times a penalty on the layer's weights (W 4.6).

    :func:`penalise` makes one. Where a network is cut, the factors follow: a layer that has lost inputs has fewer
    weights a unit, and the prior is one on a unit as it is now. (W cuts, too, and does not say.)

    Attributes:
        name: Of the penalty.
        strength: lambda, on the mean loss of a batch.
        proximal: Are its steps proximal?
    """

    def __init__(
        self, model: nn.Module, name: Name, *, factors: Factors, strength: float, mix: float, proximal: bool
    ) -> None:
        self.name, self.strength, self.proximal = name, strength, proximal
        self._model, self._factors, self._mix = model, factors, mix
        self._penalty, self._built_of = self._build()

    @property
    def layers(self) -> list[str]:
        """The names of the layers that are penalised."""
        return list(dict.fromkeys(layer.name for layer in self._layers()))

    def value(self) -> Tensor:
        """What is added to the mean loss of a batch: a differentiable scalar, the strength included."""
        return self.strength * self._current().value()

    def regularise(self) -> None:
        """After backward and before the optimiser's step: add the gradient of :meth:`value` to .grad. No wait.

        A weight without gradient takes no part in this step, and is left alone. With `proximal` nothing happens here.
        """
        if not self.proximal:
            self._current().add_gradient(self.strength)

    def after_step(self, optimizer: Optimizer) -> None:
        """With `proximal`, the proximal step, as long as the optimiser's; without, nothing. No wait.

        Raises:
            ValueError: the optimiser is not SGD with one learning rate and one momentum.
        """
        if self.proximal:
            shrink_after(optimizer, self._current(), self.strength)

    def _current(self) -> Penalty:
        """Of the network as it is now: sizes change where it is cut, devices where it is moved."""
        if self._built_of != _state(self._model):
            self._penalty, self._built_of = self._build()
        return self._penalty

    def _build(self) -> tuple[Penalty, list[Any]]:
        return self._of(self._layers()), _state(self._model)

    def _layers(self) -> list[Layer]:
        layers = batch_norms(self._model) if self.name == "bn_lasso" else linear_maps(self._model)
        if isinstance(self._factors, str):
            return layers
        return [layer for layer in layers if layer.name in self._factors]

    def _of(self, layers: list[Layer]) -> Penalty:
        tensors = [layer.tensor for layer in layers]
        if self.name == "l2":
            return L2(tensors, [self._factor(layer, of_squares) for layer in layers])
        if self.name in {"group_lasso", "reversed_group_lasso"}:
            return self._lasso(layers, "out" if self.name == "group_lasso" else "in")
        l1 = L1(tensors, [self._factor(layer, of_magnitudes) for layer in layers])
        return SparseGroupLasso(l1, self._lasso(layers, "out"), self._mix) if "group" in self.name else l1

    def _factor(self, layer: Layer, formula: Any) -> float:
        return float(formula(self._factors, layer.inputs) if isinstance(self._factors, str) else self._given(layer))

    def _lasso(self, layers: list[Layer], side: Side) -> GroupLasso:
        groups = grouped(layers, side)
        if isinstance(self._factors, str):
            inputs = per_group(layers, side, [layer.inputs for layer in layers])
            factors = of_norms(self._factors, inputs, groups.sizes)
        else:
            factors = per_group(layers, side, [self._given(layer) for layer in layers])
        return GroupLasso([layer.tensor for layer in layers], groups, factors)

    def _given(self, layer: Layer) -> float:
        assert not isinstance(self._factors, str)
        return float(self._factors[layer.name])


def penalise(
    model: nn.Module,
    name: Name,
    *,
    strength: float,
    factors: Factors = "bayesian",
    mix: float | None = None,
    proximal: bool = False,
) -> NetworkPenalty:
    """A penalty on the weights of a network.

    In a training loop::

        penalty = penalise(model, "group_lasso", strength=1 / len(training_set))
        for x, y in batches:
            loss(model(x), y).backward()      # the mean over the batch
            penalty.regularise()
            optimizer.step()

    or, for the same, `(loss(model(x), y) + penalty.value()).backward()`, which takes longer.

    | name | the penalty of a layer |
    |---|---|
    | "l2" | sum w^2 |
    | "l1" | sum of abs(w) |
    | "group_lasso" | sum over units of the 2-norm of the incoming weights |
    | "reversed_group_lasso" | sum over inputs of the 2-norm of the weights that go out of it |
    | "sparse_group_lasso" | `mix` times l1 plus 1 - `mix` times group_lasso, each with its own factor |
    | "bn_lasso" | sum of abs(gamma) over the scales of a BatchNorm, and nothing on linear maps |

    Which layers there are: :func:`structlearn.penalties.layers.linear_maps`. Biases and normalisations are not
    penalised, but for the last.

    Args:
        model: Any network.
        name: See above.
        strength: lambda, on the mean loss of a batch. A penalty that stands for a prior belongs to the loss of all
            samples together, so by W it is 1 / their number (W remark 6); what W finds best is 10 to 100 times less
            (W table 4.2).
        factors: Of each layer: "bayesian" or "usual", by its size (:mod:`structlearn.penalties.factors`), or a number
            for each layer by its name; layers that are not named are not penalised. With numbers both parts of the
            sparse group Lasso have that of the layer.
        mix: W's alpha, for the sparse group Lasso only; 0.5 by default.
        proximal: Take the penalty by proximal steps, after the optimiser's and as long as these, and not as a part of
            the gradient: only these make exact zeros. Then call `penalty.after_step(optimizer)` after each step. For
            torch.optim.SGD, and not for "l2".

    Raises:
        ValueError: an unknown name, rule or layer, a number out of its range, or there is nothing to penalise.
    """
    check_choice("penalty", name, NAMES)
    check_positive("strength", strength, zero=True)
    check_proximal(name, proximal=proximal)
    if mix is not None and name != "sparse_group_lasso":
        raise ValueError(f"mix is of the penalty sparse_group_lasso, not of {name}; leave it out")
    if mix is not None and not 0 <= mix <= 1:
        raise ValueError(f"mix is the share of the L1 penalty, from 0 to 1, got {mix!r}; use 0.5, as the source does")
    if isinstance(factors, str):
        check_choice("rule for factors", factors, RULES)
    _check_layers(model, name, factors)
    share = 0.5 if mix is None else float(mix)
    return NetworkPenalty(model, name, factors=factors, strength=float(strength), mix=share, proximal=proximal)


def _check_layers(model: nn.Module, name: Name, factors: Factors) -> None:
    """Is there something to penalise, and all that is named?"""
    found = list(dict.fromkeys(each.name for each in (batch_norms if name == "bn_lasso" else linear_maps)(model)))
    if not found and name == "bn_lasso":
        raise ValueError(
            "bn_lasso is on the scales of BatchNorm layers (affine=True, and trained), and this network has none; use "
            "another penalty, or put BatchNorm layers into the network"
        )
    if not found:
        raise ValueError(
            "this network has no linear layer, convolution, recurrent layer or embedding whose weights are trained, so "
            "there is nothing to penalise"
        )
    if isinstance(factors, str):
        return
    if not factors:
        raise ValueError(f"factors names no layer, so nothing would be penalised; name some of: {', '.join(found)}")
    for layer, factor in factors.items():
        if layer not in found:
            near = get_close_matches(layer, found, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"factors names the layer {layer!r}{hint}, which {name} does not have here; it has: {', '.join(found)}"
            )
        check_positive(f"the factor of {layer!r}", factor, zero=True)


def _state(model: nn.Module) -> list[Any]:
    """All that a penalty's tensors, indices and factors depend on: layers may be frozen, replaced, cut, or moved."""
    return [(id(each), each.requires_grad, each.shape, each.device, each.dtype) for each in model.parameters()]
