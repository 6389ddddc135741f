"""How unlikely samples are under two Gaussians fitted to them, with the gradient in closed form (B 5.3.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOOR: Final = 1e-6
"""The least variance of a mode: a coordinate that never moves would else have an infinite density."""

CACHED: Final = 1 << 16
"""Values of a part that are worked on together on a CPU: a dozen passes over them then stay in its cache."""

_ROOM: Final = 1 << 24
"""The same elsewhere, where only memory is scarce."""


class Modes(NamedTuple):
    """A mixture for each coordinate, [D] each (B eq. 5.11)."""

    share1: Tensor
    """alpha, of the mode M = 1."""
    mean1: Tensor
    variance1: Tensor
    share0: Tensor
    """1 - alpha, summed up by itself: where alpha is nearly 1, a difference would have no digits left."""
    mean0: Tensor
    variance0: Tensor


def negative_log_density(
    x: Tensor, noise: Tensor, basis: Tensor | None = None, *, mixture: bool = True
) -> tuple[Tensor, Modes]:
    """(minus the mean over samples of sum_i log q(z_i), the q that it is taken under).

    Samples are z = V (x_n + noise_{s,n}), for all rows n and all draws s. q is fitted to these samples: the M-step with
    the responsibilities sigmoid(z) of mode 1 (B 5.3.2), or one Gaussian with their mean and variance. No gradient flows
    to its parameters (B does not say: this is a choice, as of SHADE's means; the samples' own gradient is what makes
    them likelier). Variances are at least :data:`FLOOR`.

    With v the narrower mode of a coordinate and w the wider, log q = a_w + softplus(d), where d = a_v - a_w is a
    quadratic in z: nothing cancels there, far from the narrow mode. a_w and its gradient need sums alone; what is left
    is worked on in parts that stay in a CPU's cache, and z is kept nowhere. The gradient, summed over draws, is made in
    the same pass.

    Args:
        x: [N, r].
        noise: [S, N, r]; constant.
        basis: V, [D, r]; constant. None: the identity.
        mixture: Two modes, or one Gaussian (which is then mode 0, and mode 1 has no share).
    """
    loss, *modes = _Density.apply(x, noise, basis, mixture)  # type: ignore[no-untyped-call]
    return loss, Modes(*modes)


class _Density(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Tensor, basis: Tensor | None, mixture: bool) -> tuple[Tensor, ...]:
        loss, slope, modes = _density(x, noise, basis, mixture)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(*modes)
        ctx.set_materialize_grads(False)
        return loss, *modes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("this density has first derivatives only; call backward without create_graph")
        (slope,) = ctx.saved_tensors
        return slope * gradients[0], None, None, None


def _density(x: Tensor, noise: Tensor, basis: Tensor | None, mixture: bool) -> tuple[Tensor, Tensor, Modes]:
    """(the loss, its gradient by x, the modes)."""
    draws, rows = noise.shape[:2]
    samples = draws * rows
    middle = x.mean(0) + noise.mean((0, 1))
    centred = noise + (x - middle)
    centre = middle if basis is None else basis @ middle
    squares = _squares(centred, basis)  # of z - centre, [D]; z - centre adds up to 0
    modes = _fit(centred, basis, centre, samples) if mixture else _one(squares / samples, centre)
    if not mixture:
        wide, narrow = (modes.share0, modes.mean0 - centre, modes.variance0), None
    else:
        first = modes.variance1 > modes.variance0
        ones, zeros = (modes.share1, modes.mean1, modes.variance1), (modes.share0, modes.mean0, modes.variance0)
        pairs = [(torch.where(first, a, b), torch.where(first, b, a)) for a, b in zip(ones, zeros, strict=True)]
        (share_w, share_v), (mean_w, mean_v), (variance_w, variance_v) = pairs
        wide, narrow = (share_w, mean_w - centre, variance_w), (share_v, mean_v - centre, variance_v)
    share, mean, variance = wide
    top = share.log() - 0.5 * (2 * math.pi * variance).log()
    total = (samples * top - 0.5 * (squares + samples * mean.square()) / variance).sum()
    summed = centred.sum(0)
    slope = (draws * mean - (summed if basis is None else summed @ basis.mT)) / variance
    if narrow is not None:
        total = total + _narrow(centred, basis, wide, narrow, slope)
    if basis is not None:
        slope = slope @ basis
    return -total / samples, slope.div_(-samples), modes


_Mode = tuple[Tensor, Tensor, Tensor]
"""Share, mean and variance, [D] each."""


def _narrow(centred: Tensor, basis: Tensor | None, wide: _Mode, narrow: _Mode, slope: Tensor) -> Tensor:
    """The sum of softplus(d); its gradient is added to `slope`, [N, D]."""
    (share_w, mean_w, variance_w), (share_v, mean_v, variance_v) = wide, narrow
    square = 0.5 * (1 / variance_w - 1 / variance_v)
    linear = mean_v / variance_v - mean_w / variance_w
    constant = (share_v / share_w).log() + 0.5 * (variance_w / variance_v).log()
    constant = constant + 0.5 * (mean_w.square() / variance_w - mean_v.square() / variance_v)
    sums = []
    for place, z, part, d in _parts(centred, basis):
        torch.addcmul(linear, z, square, out=part)
        torch.addcmul(constant, part, z, out=d)
        part.addcmul_(z, square)  # the derivative of d by z
        sums.append(torch.nn.functional.softplus(d).sum())
        weight, rows = d.sigmoid_(), place.stop - place.start
        if len(z) == rows:
            slope[place].addcmul_(weight, part)
        else:
            slope[place].add_(weight.mul_(part).view(-1, rows, len(linear)).sum(0))
    return torch.stack(sums).sum()


def _fit(centred: Tensor, basis: Tensor | None, centre: Tensor, samples: int) -> Modes:
    """The M-step with responsibilities sigmoid(z)."""
    found = []
    for _, z, share, product in _parts(centred, basis):
        for sign, start in ((1, centre), (-1, -centre)):  # sigmoid(z), sigmoid(-z)
            torch.add(start, z, alpha=sign, out=share)
            torch.mul(share.sigmoid_(), z, out=product)
            found += [share.sum(0), product.sum(0), product.mul_(z).sum(0)]
    mass1, first1, second1, mass0, first0, second0 = torch.stack(found).view(-1, 6, len(centre)).double().sum(0)
    modes = []
    for mass, first, second in ((mass1, first1, second1), (mass0, first0, second0)):
        least = mass.clamp(min=torch.finfo(centred.dtype).tiny)
        mean = first / least
        variance = (second / least - mean.square()).clamp(min=FLOOR)
        modes += [(least / samples).clamp(min=torch.finfo(centred.dtype).tiny), mean + centre, variance]
    return Modes(*(each.to(centred.dtype) for each in modes))


def _one(variance: Tensor, centre: Tensor) -> Modes:
    """One Gaussian."""
    ones = torch.ones_like(centre)
    return Modes(torch.zeros_like(ones), torch.zeros_like(ones), ones, ones, centre, variance.clamp(min=FLOOR))


def _squares(centred: Tensor, basis: Tensor | None) -> Tensor:
    """Sums over samples of (z - centre)^2, [D]; with a basis by the second moments of its coordinates."""
    flat = centred.flatten(0, 1)
    if basis is None:
        return flat.square().sum(0)
    return (basis @ (flat.mT @ flat)).mul_(basis).sum(1).clamp_(min=0.0)


def _parts(centred: Tensor, basis: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """(which rows, z - centre [some draws of these rows, D], room for two more like it), part by part.

    All in the same memory: fresh memory for each would cost a CPU more than what is done in it.
    """
    draws, rows, columns = centred.shape
    dimension = columns if basis is None else len(basis)
    room = CACHED if centred.device.type == "cpu" else _ROOM
    height = max(1, min(rows, room // dimension))
    depth = 1 if height < rows else max(1, min(draws, room // (height * dimension)))
    memory = centred.new_empty(3, height * depth, dimension)
    for start in range(0, rows, height):
        place = slice(start, min(start + height, rows))
        for draw in range(0, draws, depth):
            part = centred[draw : draw + depth, place].flatten(0, 1)
            z, *others = memory[:, : len(part)]
            if basis is None:
                z.copy_(part)
            else:
                torch.mm(part, basis.mT, out=z)
            yield place, z, others[0], others[1]
