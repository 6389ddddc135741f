"""K copies of an output layer in one: one product forward, and two kinds of gradients backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from structlearn.checks import check_count


class Heads(nn.Module):
    """K copies of a linear layer (or of a 1x1 convolution), side by side.

    The copies' answers stand along the batch axis, as if the batch were K times as large, so that whatever the network
    does with its output layer's answer it does with each copy's: (batch, ...) becomes (K batch, ...). In training
    there are two of each answer, (2 K batch, ...), equal in value: the gradient of the first half goes to the features
    and that of the second half to the copies' weights. So one forward pass serves the mixture's loss, from which the
    features learn, and each copy's own loss, from which the copy learns (W Alg. 1, lines 10 and 11).

    Args:
        layer: The output layer. Copy 0 starts as this layer is; the others are drawn again by its own
            `reset_parameters`, or started from the same values where `same` is set.
        count: K.
        same: Start all copies from the layer's own values.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, count: int, *, same: bool = False) -> None:
        super().__init__()
        self.count = check_count("heads", count)
        self.convolution = isinstance(layer, nn.Conv2d)
        weights, biases = [], []
        original = [parameter.detach().clone() for parameter in layer.parameters()]
        for copy in range(count):
            if copy and not same:
                layer.reset_parameters()
            weights.append(layer.weight.detach().flatten(1).clone())
            if layer.bias is not None:
                biases.append(layer.bias.detach().clone())
        with torch.no_grad():
            for parameter, values in zip(layer.parameters(), original, strict=True):
                parameter.copy_(values)
        self.weight = nn.Parameter(torch.stack(weights))
        self.bias = nn.Parameter(torch.stack(biases)) if biases else None

    def forward(self, z: Tensor) -> Tensor:
        """Features (batch, ..., D), or (batch, D, H, W), to (2 K batch, ..., C) or (2 K batch, C, H, W).

        Without gradients, or in evaluation, (K batch, ...).
        """
        if self.convolution:
            z = z.movedim(1, -1)
        twice = self.training and torch.is_grad_enabled()
        outputs: Tensor = _Stacked.apply(  # type: ignore[no-untyped-call]
            z, self.weight, self.bias, 2 if twice else 1
        )
        return outputs.movedim(-1, 1) if self.convolution else outputs

    def plain(self, copy: int) -> nn.Linear | nn.Conv2d:
        """Copy number `copy` as a plain layer."""
        _, outputs, features = self.weight.shape
        layer: nn.Linear | nn.Conv2d
        if self.convolution:
            layer = nn.Conv2d(features, outputs, 1, bias=self.bias is not None)
        else:
            layer = nn.Linear(features, outputs, bias=self.bias is not None)
        layer = layer.to(self.weight)
        with torch.no_grad():
            layer.weight.copy_(self.weight[copy].view_as(layer.weight))
            if self.bias is not None and layer.bias is not None:
                layer.bias.copy_(self.bias[copy])
        return layer

    def extra_repr(self) -> str:
        """Sizes."""
        count, outputs, features = self.weight.shape
        return f"copies={count}, in_features={features}, out_features={outputs}, bias={self.bias is not None}"


class _Stacked(torch.autograd.Function):
    """One product of the features with all copies at once; gradients as :class:`Heads` says.

    All K copies are one matrix (K C, D); a batched product (bmm) would read the features K times.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor | None, times: int) -> Tensor:
        count, classes, features = weight.shape
        with torch.autocast(z.device.type, enabled=False):
            rows = z.reshape(-1, features).to(weight.dtype)
            answers = linear(rows, weight.view(-1, features), None if bias is None else bias.view(-1))
        ctx.save_for_backward(rows, weight)
        ctx.shape, ctx.dtype, ctx.biased, ctx.times = z.shape, z.dtype, bias is not None, times
        stacked = answers.new_empty(times, count, len(rows), classes)
        stacked.copy_(answers.view(1, -1, count, classes).transpose(1, 2))
        return stacked.view(times * count * z.shape[0], *z.shape[1:-1], classes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        count, classes, features = weight.shape
        (gradient,) = gradients
        mixture, own = gradient.reshape(ctx.times, count, -1, classes).expand(2, -1, -1, -1)
        to_features = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            flat = mixture.transpose(0, 1).reshape(-1, count * classes)
            # A head that is not finite has no gradient, but 0 times it is nan: then the features wait a step.
            to_features = (flat @ weight.view(-1, features)).nan_to_num_(0.0, 0.0, 0.0).view(ctx.shape).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = own.transpose(1, 2).reshape(count * classes, -1) @ rows
            to_weight = to_weight.view(weight.shape)
        if ctx.biased and ctx.needs_input_grad[2]:
            to_bias = own.sum(1)
        return to_features, to_weight, to_bias, None
