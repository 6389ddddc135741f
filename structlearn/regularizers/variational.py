"""Variational inference: a Gaussian posterior over weights, by the reparametrisation trick (W 1.3 and 4.3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor, nn

from structlearn.checks import check_choice, check_count, check_positive
from structlearn.regularizers.regularizer import Regularizer, unhook
from structlearn.regularizers.shadow import chosen
from structlearn.scala import Scaled
from structlearn.structure.wide import wide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NAME: Final = "log_deviation"
"""What a layer's parameter is called beside its weight, which is the mean."""

KINDS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights can be drawn; scaled layers are among them."""


class Variational(Regularizer):
    """A Gaussian posterior over weights: w = mu + sigma xi, with mu and sigma learnt and xi drawn for each batch.

    The layer's `weight` is mu, its new parameter `log_deviation` is ln sigma: make the optimiser after this. What is
    added to the loss is `strength` times KL(posterior || prior), summed over all weights; with the mean loss of a
    mini-batch and a strength of 1 / n_data that is W eq. 4.2 over n_data. In evaluation the network answers with the
    mean over draws: of a classification the log of the mean probabilities. The draws are the same for each batch, and
    leave torch's own stream of random numbers alone. Biases and normalisations stay as they are.

    Args:
        model: The network.
        strength: The factor in the loss of a mini-batch.
        prior: "gaussian" or "laplace", with mean 0 (W example 1.3.4; a divergence in closed form); or a function that
            gives ln prior of each weight, up to a constant, for weights in units of `prior_deviation`: its mean is
            then estimated by the weights that were drawn.
        prior_deviation: The prior's standard deviation; None: 1 / sqrt(P) with P a unit's incoming weights, Glorot's
            condition (W 4.5.1), and 1 for scaled layers, whose weights are drawn so.
        deviation: sigma at the start, in units of the prior's.
        samples: How many draws a prediction is the mean of.
        task: "regression", or else the answer's last axis (with maps, axis 1) has classes.
        layers: Names of linear layers and convolutions; by default all of them. Alrao's heads and recurrent layers
            keep plain weights.

    Raises:
        ValueError: a number is out of range, the network has no such layer or a shared weight, or it is variational
            already. In evaluation: the network's answer is no tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float,
        prior: str | Callable[[Tensor], Tensor] = "gaussian",
        prior_deviation: float | None = None,
        deviation: float = 0.1,
        samples: int = 10,
        task: str = "classification",
        layers: Iterable[str] | None = None,
    ) -> None:
        super().__init__(model)
        self.strength = check_positive("strength", strength, zero=True)
        if not callable(prior):
            check_choice("prior", prior, ("gaussian", "laplace"))
        check_positive("deviation", deviation)
        if prior_deviation is not None:
            check_positive("prior_deviation", prior_deviation)
        check_count("samples", samples)
        check_choice("task", task, ("classification", "sequence", "regression"))
        self.prior = prior
        names = chosen(model, layers, KINDS, "variational inference", every=KINDS)
        _untied(model, names)
        if any(isinstance(getattr(hook, "__self__", None), _Draws) for hook in model._forward_hooks.values()):  # noqa: SLF001
            raise ValueError("this network is variational already; attach it once, with all layers")
        self._draws = _Draws(samples, regression=task == "regression")
        for name in names:
            layer = model.get_submodule(name)
            weight = layer.weight
            assert isinstance(weight, Tensor)
            glorot = 1.0 if isinstance(layer, Scaled) else weight[0].numel() ** -0.5
            scale = glorot if prior_deviation is None else prior_deviation
            start = torch.full_like(weight, math.log(deviation * scale), requires_grad=False)
            layer.register_parameter(NAME, nn.Parameter(start))
            layer.beside = {**getattr(layer, "beside", {}), "weight": (NAME,)}  # type: ignore[assignment]
            self._draws.layers.append((layer, scale))
        model.register_forward_pre_hook(self._draws.cast)
        model.register_forward_hook(self._draws.answer, with_kwargs=True, always_call=True)

    def loss(self, targets: Tensor | None = None) -> Tensor | None:
        """The divergence, times the strength; targets play no part. None if there was no forward pass in training."""
        drawn, self._draws.drawn = self._draws.drawn, None
        return None if drawn is None else self.strength * self._divergence(drawn)

    def divergence(self) -> Tensor:
        """KL(posterior || prior) in nats, a scalar that gradients flow from.

        Where the prior is a function it is estimated by a draw, and lacks that function's constant.
        """
        drawn = self._draws.draw()
        self._draws.lift()
        return self._divergence(drawn)

    def remove(self) -> None:
        """Take it away; the means stay as plain weights."""
        for layer, _ in self._draws.layers:
            if hasattr(layer, NAME):
                delattr(layer, NAME)
                del layer.beside
        unhook(self.model, _Draws)

    def _divergence(self, drawn: list[Tensor]) -> Tensor:
        parts = []
        for (layer, scale), weight in zip(self._draws.layers, drawn, strict=True):
            log_sigma = wide(layer.log_deviation) - math.log(scale)
            if callable(self.prior):
                parts.append(-self.prior(wide(weight) / scale).sum() - (log_sigma + _HALF_LOG_2PIE).sum())
            else:
                divergence = _gaussian if self.prior == "gaussian" else _laplace
                parts.append(divergence(wide(layer.weight) / scale, log_sigma))
        return torch.stack(parts).sum()


def _untied(model: nn.Module, names: list[str]) -> None:
    """Raises ValueError where two layers have one weight: it would be drawn, and counted, twice."""
    held: dict[int, str] = {}
    for name in names:
        other = held.setdefault(id(model.get_submodule(name).weight), name)
        if other != name:
            raise ValueError(
                f"{name} shares its weight with {other}, which has one posterior; name other layers, or untie them"
            )


_HALF_LOG_2PIE: Final = 0.5 * math.log(2 * math.pi * math.e)


def _gaussian(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)), summed (W corollary 7)."""
    squares = (2 * log_sigma).exp().sum() + mu.square().sum()
    return 0.5 * (squares - mu.numel()) - log_sigma.sum()


def _laplace(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL to the Laplace distribution of variance 1 (scale 1 / sqrt 2), summed; E|w| is that of a folded normal."""
    sigma = log_sigma.exp()
    ratio = mu / sigma
    size = sigma * math.sqrt(2 / math.pi) * (-0.5 * ratio.square()).exp() + mu * torch.erf(ratio / math.sqrt(2))
    constant = mu.numel() * (0.5 * math.log(2) - _HALF_LOG_2PIE)
    return math.sqrt(2) * size.sum() - log_sigma.sum() + constant


class _Draws:
    """Draws weights as the network is called, and answers with the mean over draws in evaluation.

    It is copied and pickled with the network, as methods of hooks are, and then has the copy's layers.
    """

    structural: ClassVar = False

    def __init__(self, samples: int, *, regression: bool) -> None:
        self.layers: list[tuple[Any, float]] = []
        """(a layer, the deviation of its prior)."""
        self.drawn: list[Tensor] | None = None
        """The weights of the last forward pass in training."""
        self._samples, self._regression = samples, regression
        self._generator: torch.Generator | None = None

    def cast(self, model: nn.Module, _: Any) -> None:
        """The network is called."""
        device = self.layers[0][0].weight.device
        self._generator = None if model.training else torch.Generator(device).manual_seed(0)
        drawn = self.draw()
        if model.training and torch.is_grad_enabled():
            self.drawn = drawn

    def answer(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        """The network has answered with the first draw, or failed (then there is no output)."""
        self.lift()
        if self._generator is None or output is None:
            return output
        if not isinstance(output, Tensor):
            raise ValueError(  # noqa: TRY004  it is what the network answers with that does not suit
                f"a variational network answers with a mean over draws, and this one answers with a "
                f"{type(output).__name__}; let it answer with one tensor"
            )
        answers = [output]
        try:
            for _ in range(self._samples - 1):
                self.draw()
                answers.append(model.forward(*inputs, **named))
                self.lift()
        finally:
            self.lift()
            self._generator = None
        return self._mean(torch.stack(answers))

    def _mean(self, answers: Tensor) -> Tensor:
        if self._regression:
            return answers.mean(0)
        axis = 2 if answers.dim() > 4 else -1  # maps; a sequence's classes are on the last axis
        return answers.log_softmax(axis).logsumexp(0) - math.log(len(answers))

    def draw(self) -> list[Tensor]:
        """New weights before those of the layers: an instance's own attribute is found before its parameter."""
        drawn = []
        for layer, _ in self.layers:
            mean = layer._parameters["weight"]  # noqa: SLF001  its own, whatever was drawn
            noise = torch.empty_like(mean, requires_grad=False).normal_(generator=self._generator)
            weight = torch.addcmul(layer.__dict__.get("weight", mean), layer.log_deviation.exp(), noise)
            layer.__dict__["weight"] = weight
            drawn.append(weight)
        return drawn

    def lift(self) -> None:
        """Each layer has its own weight again, the mean."""
        for layer, _ in self.layers:
            layer.__dict__.pop("weight", None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "drawn": None, "_generator": None}
