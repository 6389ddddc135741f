"""Noise on inputs, weights and labels in training (M)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from structlearn.alrao import Heads
from structlearn.checks import check_count, check_positive
from structlearn.regularizers.output import output_layer
from structlearn.regularizers.regularizer import Regularizer, unhook
from structlearn.regularizers.shadow import WEIGHED, Shadow, Shadowed, chosen

if TYPE_CHECKING:
    from collections.abc import Iterable


class InputNoise(Regularizer):
    """Normal noise on what the network is given.

    Args:
        model: The network. All tensors that it is called with, by place, must be of floating-point numbers.
        deviation: The noise's standard deviation, in the inputs' own units.

    Raises:
        ValueError: the deviation is below 0, or the network has this already; as the network is called: an input is of
            whole numbers.
    """

    def __init__(self, model: nn.Module, deviation: float) -> None:
        super().__init__(model)
        self.deviation = check_positive("deviation", deviation, zero=True)
        hooks = model._forward_pre_hooks.values()  # noqa: SLF001
        if any(isinstance(getattr(hook, "__self__", None), _Added) for hook in hooks):
            raise ValueError("this network has noise on its inputs already; attach it once")
        model.register_forward_pre_hook(_Added(self.deviation).before)

    def remove(self) -> None:
        """Take the hook away."""
        unhook(self.model, _Added)


class _Added:
    def __init__(self, deviation: float) -> None:
        self._deviation = deviation

    def before(self, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The network is called."""
        return tuple(self._noisy(each) for each in inputs) if model.training else None

    def _noisy(self, given: Any) -> Any:
        if not isinstance(given, Tensor):
            return given
        if not given.is_floating_point():
            raise ValueError(
                f"noise on inputs is for floating-point numbers, and this network is given {given.dtype} (symbols, "
                f"say); use dropout or noise on weights instead"
            )
        return torch.randn_like(given).mul_(self._deviation).add_(given)


class WeightNoise(Shadowed):
    """Normal noise on weights: new for each batch, the same for all of its examples.

    The gradient with respect to the noisy weight is the weight's own; evaluation sees the weight without noise.

    Args:
        model: The network.
        deviation: The noise's standard deviation: as a share of the root mean square of each layer's weight, since
            sizes of weights differ by layers. No gradient flows through that.
        relative: Unset it for a deviation in the weights' own units.
        layers: Names of linear layers, convolutions, or Alrao's heads; by default all of these.

    Raises:
        ValueError: the deviation is below 0, or a layer's weight cannot be changed.
    """

    def __init__(
        self, model: nn.Module, deviation: float, *, relative: bool = True, layers: Iterable[str] | None = None
    ) -> None:
        self.deviation = check_positive("deviation", deviation, zero=True)
        self.relative = relative
        names = chosen(model, layers, WEIGHED, "noise on weights")
        super().__init__(model, names, _Jitter(self.deviation, relative))


class _Jitter(Shadow):
    def __init__(self, deviation: float, relative: bool) -> None:
        super().__init__()
        self._deviation, self._relative = deviation, relative

    def changed(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """With noise."""
        noise = torch.randn_like(weight, requires_grad=False).mul_(self._deviation)
        if self._relative:
            squares = weight.detach().square()  # of Alrao's heads each by itself: one may be lost
            noise.mul_(squares.mean((1, 2), keepdim=True).sqrt() if isinstance(layer, Heads) else squares.mean().sqrt())
        return weight + noise


class LabelNoise(Regularizer):
    """Noise on targets in training.

    Classes: with a chance a label becomes another class, each other one with the same chance (so a rate of 0.1 is
    exactly that share of wrong labels). Negative labels, which losses ignore, stay. Regression: normal noise.

    Args:
        model: The network.
        rate: The chance that a label of a class is wrong.
        deviation: The standard deviation of the noise on targets of a regression, in their own units. Give either this
            or the rate.
        classes: How many classes there are; by default as many as the output layer has answers.

    Raises:
        ValueError: not one of rate and deviation is given, or it is out of range, or there are fewer than two classes;
            as targets come: they are of the other kind.
    """

    def __init__(
        self,
        model: nn.Module,
        rate: float | None = None,
        *,
        deviation: float | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__(model)
        if (rate is None) == (deviation is None):
            raise ValueError(
                f"noise on labels needs either a rate (for classes) or a deviation (for regression), got {rate} and "
                f"{deviation}"
            )
        self.rate, self.deviation, self.classes = 0.0, 0.0, 0
        if deviation is not None:
            self.deviation = check_positive("deviation", deviation, zero=True)
        if rate is not None:
            if not 0 <= rate <= 1:
                raise ValueError(f"rate must be from 0 to 1, got {rate!r}")
            self.rate = float(rate)
            self.classes = check_count("classes", output_layer(model).classes if classes is None else classes)
            if self.classes < 2:
                raise ValueError(
                    f"noise on labels needs at least 2 classes, got {self.classes}; use a deviation instead"
                )

    def targets(self, targets: Tensor) -> Tensor:
        """A noisy copy in training, else the targets themselves."""
        if not self.model.training:
            return targets
        if targets.is_floating_point() == bool(self.classes):
            wanted = "whole numbers, the right classes" if self.classes else "floating-point numbers"
            other = "a deviation instead of a rate" if self.classes else "a rate instead of a deviation"
            raise ValueError(f"this noise on labels is for targets of {wanted}, got {targets.dtype}; give {other}")
        if not self.classes:
            return torch.randn_like(targets).mul_(self.deviation).add_(targets)
        shift = torch.randint(1, self.classes, targets.shape, device=targets.device, dtype=targets.dtype)
        wrong = torch.rand(targets.shape, device=targets.device) < self.rate
        return torch.where(wrong & (targets >= 0), (targets + shift) % self.classes, targets)

    def remove(self) -> None:
        """There is nothing in the network; it is its own state that ends."""
        self.rate, self.deviation = 0.0, 0.0
