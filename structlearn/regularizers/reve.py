"""REVE: the entropy, given the class, of what the output layer sees of its input, by a variational bound (B ch. 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from structlearn.alrao.losses import mixture_loss
from structlearn.checks import check_choice, check_count, check_positive
from structlearn.regularizers.mixture import negative_log_density
from structlearn.regularizers.output import output_layer
from structlearn.regularizers.projection import Projection
from structlearn.regularizers.regularizer import Regularizer, unhook

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.alrao import Alrao

NAME: Final = "reve"
"""What its part of the network is called."""


class Reve(Regularizer):
    """REVE (B ch. 5): compresses the part Z of the last features Y that predictions are made of.

    Y is the output layer's input with noise of the given variance; Z = V V^T Y is its projection on the complement of
    the kernel of the layer's weight W_d. What is added to the loss is `strength` times

        - mean over examples and draws of [log softmax(W_d z + b)_c + sum_i log q(z_i)]        (B eq. 5.13)

    with a mixture q of two Gaussians for each coordinate, fitted to the batch. The network's own answer and loss stay
    without noise. Places of maps and sequences are samples of q, too (a mean as over examples). V and q are constants
    to the gradient; W_d and b learn from this loss as from the network's own. Y is what reaches the layer, so a dropout
    before it has acted, if it was there first.

    For a 1x1 convolution the scores of Z are pooled as the network pools its own, by `after`. With Alrao's heads W_d is
    the stack of all heads, and r(c|z) their mixture as the switch trusts them; each head learns from its own loss.

    B found strengths about 1e-4 and variances about 1e-2 by validation.

    Args:
        model: Any network whose answer comes from a linear layer or a 1x1 convolution, for classes.
        strength: The factor in the loss of a mini-batch.
        variance: Of the noise on Y.
        samples: S, draws of the noise for each example.
        refresh: V is worked out anew after so many batches.
        mixture: q is a mixture of two Gaussians; else it is one, which B found to do less.
        on: "z", or "y": without the projection, which B found to do less. Then the noise has as many dimensions as Y,
            and memory for all draws of Y is held until backward.
        head: The output layer's name; by default it is found.
        after: What the network does with the output layer's answer: a module or a function, of the shape that this
            answer has. By default the attribute `pool` beside a convolution, and nothing for a linear layer.

    Raises:
        ValueError: a number is out of range, there is no such output layer, `after` is missing, the network learns no
            classes, or it has REVE already.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 1e-4,
        variance: float = 1e-2,
        samples: int = 12,
        refresh: int = 1,
        mixture: bool = True,
        on: str = "z",
        head: str | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model)
        self.strength = check_positive("strength", strength, zero=True)
        self.variance = check_positive("variance", variance)
        self.samples = check_count("samples", samples)
        check_choice("variable", on, ("z", "y"))
        self.on, self.mixture = on, mixture
        self.output = output_layer(model, head)
        if self.output.alrao is not None and self.output.alrao.task != "classification":
            raise ValueError(
                "REVE compresses features given a class, and this network's task is regression; leave it out"
            )
        if hasattr(model, NAME):
            raise ValueError(f"this network has REVE already, or another part called {NAME!r}; attach it once")
        self._after = after if after is not None else self._pool()
        self.part = Part(refresh)
        model.add_module(NAME, self.part)
        self.output.layer.register_forward_pre_hook(self.part.seen.see)

    def loss(self, targets: Tensor) -> Tensor | None:
        """The term of the last forward pass; None if there was none in training.

        Args:
            targets: Classes, int64, shaped as the network's own loss takes them.
        """
        y = self.part.seen.take()
        if y is None:
            return None
        if targets.is_floating_point() or targets.is_complex():
            raise ValueError(
                f"REVE compresses features given a class and needs targets of whole numbers, got {targets.dtype}; "
                f"leave REVE out for regression"
            )
        with torch.autocast(y.device.type, enabled=False):
            return self.strength * self._bound(y, targets)

    def restructured(self) -> None:
        """The features were cut or permuted: V no longer fits."""
        self.part.projection.forget()

    def remove(self) -> None:
        """Take hook and state away."""
        unhook(self.output.layer, Seen)
        if hasattr(self.model, NAME):
            delattr(self.model, NAME)

    def _bound(self, y: Tensor, targets: Tensor) -> Tensor:
        weight, bias = self.output.weight(), self.output.layer.bias
        precise = torch.promote_types(weight.dtype, torch.float32)
        weight, y = weight.to(precise), y.to(precise)
        bias = None if bias is None else bias.to(precise)
        if self.output.convolution:
            y = y.movedim(1, -1)
        x, basis = y.reshape(-1, y.shape[-1]), None
        if self.on == "z":
            basis = self.part.projection(self._stack(weight))
            x, weight = x @ basis, weight @ basis
        # V (V^T eps) has a normal V^T eps of the same variance: its few dimensions are drawn.
        noise = torch.randn(self.samples, *x.shape, dtype=x.dtype, device=x.device).mul_(self.variance**0.5)
        unlikely, _ = negative_log_density(x, noise, basis, mixture=self.mixture)
        drawn = (x + noise).view(self.samples * y.shape[0], *y.shape[1:-1], -1)
        return self._unpredictable(drawn, weight, bias, targets) + unlikely

    def _unpredictable(self, drawn: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """- mean log r(c | z), z and W_d in whatever basis both are in."""
        repeated = targets.repeat(self.samples, *[1] * (targets.dim() - 1))
        alrao = self.output.alrao
        if alrao is None:
            scores = self._answer(linear(drawn, weight, bias))
            return cross_entropy(scores.reshape(-1, scores.shape[-1]), self._flat(repeated, scores))
        return self._mixed(alrao, drawn, weight, bias, repeated)

    def _mixed(self, alrao: Alrao, drawn: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """The same of heads [K, C, r]; the switch's evidence does not see it.

        As in :class:`structlearn.alrao.Heads`, the mixture's gradient goes to the features, each head's own to it.
        """
        count, classes, _ = weight.shape
        matrix, shift = weight.flatten(0, 1), None if bias is None else bias.flatten()
        own = linear(drawn.detach(), matrix, shift)
        # 0 times nan is nan: a head that is not finite has no gradient, and must be kept from the features.
        kept = matrix.detach().nan_to_num(0.0, 0.0, 0.0)
        shared = linear(drawn, kept, None if shift is None else shift.detach())
        halves = [each.unflatten(-1, (count, classes)).movedim(-2, 0) for each in (shared, own)]
        both = torch.stack(halves)
        scores = self._answer(both.flatten(0, 2))
        outputs = scores.unflatten(0, both.shape[:3]).flatten(2, -2)
        loss, _ = mixture_loss("classification", outputs, self._flat(targets, outputs[0, 0]), alrao.switch.posterior())
        return loss

    def _answer(self, scores: Tensor) -> Tensor:
        """What the network makes of its output layer's answer (batch, ..., C), again with the classes last."""
        if self._after is None:
            return scores
        if not self.output.convolution:
            return self._after(scores)
        answer = self._after(scores.movedim(-1, 1))
        return answer.movedim(1, -1) if answer.dim() > 1 else answer

    def _flat(self, targets: Tensor, scores: Tensor) -> Tensor:
        """One class for each row of scores."""
        rows = scores.numel() // scores.shape[-1]
        if targets.numel() != rows:
            raise ValueError(
                f"REVE got {targets.numel() // self.samples} targets for {rows // self.samples} answers of the output "
                f"layer; give what the network does after it: after=lambda scores: ..."
            )
        return targets.reshape(-1)

    def _stack(self, weight: Tensor) -> Tensor:
        """The matrix whose rows are what is seen of Y, [C, D].

        Heads that are lost see nothing, and each other one counts alike, whatever its size: with a rate of its own, a
        head may grow so large that the others' singular values would be its rounding errors.
        """
        alrao = self.output.alrao
        if alrao is None:
            return weight.detach()
        heads = weight.detach().flatten(1)
        size = heads.norm(dim=1, keepdim=True)
        sound = size.isfinite() & (size > 0) & alrao.switch.alive[:, None]
        return torch.where(sound, heads / size, 0.0).view(-1, weight.shape[-1])

    def _pool(self) -> Callable[[Tensor], Tensor] | None:
        if not self.output.convolution:
            return None
        parent = self.output.name.rpartition(".")[0]
        pool = getattr(self.model.get_submodule(parent), "pool", None)
        if pool is None:
            raise ValueError(
                f"the output layer {self.output.name} is a convolution, and what the network makes of its scores is "
                f"not known; say it: after=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), say"
            )
        found: Callable[[Tensor], Tensor] = pool
        return found


class Part(nn.Module):
    """What REVE has in a network: a projection, which is state, and what the output layer has just seen."""

    projection: Projection

    def __init__(self, refresh: int) -> None:
        super().__init__()
        self.projection = Projection(refresh)
        self.seen = Seen()

    def forward(self, x: Tensor) -> Tensor:
        """What comes in: a Sequential calls all of its parts, and this becomes the last one."""
        return x


class Seen:
    """An output layer's last input in training. It is not copied with the network."""

    def __init__(self) -> None:
        self._y: Tensor | None = None

    def see(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The layer is called."""
        if layer.training and torch.is_grad_enabled() and not inputs[0].is_meta:
            self._y = inputs[0]

    def take(self) -> Tensor | None:
        """Once."""
        y, self._y = self._y, None
        return y

    def __deepcopy__(self, memo: Any) -> Seen:
        return Seen()

    def __reduce__(self) -> tuple[type[Seen], tuple[()]]:
        return Seen, ()
