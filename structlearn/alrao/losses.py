"""The loss of a mixture of heads, with the gradients of the mixture and of each head's own loss in closed form."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import torch
from torch import Tensor

from structlearn.alrao.hand import at_hand, is_at_hand

Task = Literal["classification", "regression"]

FAR: Final = 1e15
"""A head whose examples are this unlikely (e to the -FAR) does not come back."""


def mixture_loss(task: Task, outputs: Tensor, targets: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor]:
    """(-mean log of the mixture, [K] mean log-likelihood of an example under each head).

    With r_j the responsibility a_j p_j / sum_i a_i p_i of head j for an example, the gradient of the mixture's loss
    with respect to head j's answer is r_j times that of the head's own loss: so both come from the same numbers. A head
    whose answers are not finite takes no part.

    Args:
        task: "classification": answers are logits, targets the right classes (int64). "regression": a head is a normal
            distribution with its answer as mean and variance 1, the density taken over all outputs together.
        outputs: [2, K, N, C], as :class:`structlearn.alrao.heads.Heads` gives them: the mixture's gradient is that of
            the first half, the heads' own that of the second. Without gradients [1, K, N, C] will do.
        targets: [N], or [N, C] for regression.
        posterior: [K], the log weight of each head; -inf: it takes no part.
    """
    kind = _Classes if task == "classification" else _Gaussians
    loss, likelihoods = kind.apply(outputs, targets, posterior)  # type: ignore[no-untyped-call]
    return loss, likelihoods


class _Classes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax and one right class."""
        log_p = outputs[0].log_softmax(-1)
        right = targets.expand(len(log_p), -1).unsqueeze(-1)
        loss, likelihoods, shares, out = _mix(log_p.gather(-1, right).squeeze(-1), posterior)
        if ctx.needs_input_grad[0]:
            own = log_p.exp_()
            own.scatter_add_(-1, right, own.new_full((), -1.0).expand(right.shape))
            _keep(ctx, own, shares, out)
        ctx.mark_non_differentiable(likelihoods)
        return loss, likelihoods

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _slopes(ctx, gradients[0]), None, None


class _Gaussians(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor]:
        """Normal densities of variance 1 around each answer."""
        errors = outputs[0] - targets
        log_p = -0.5 * errors.square().sum(-1) - 0.5 * errors.shape[-1] * math.log(2 * math.pi)
        loss, likelihoods, shares, out = _mix(log_p, posterior)
        if ctx.needs_input_grad[0]:
            _keep(ctx, errors, shares, out)
        ctx.mark_non_differentiable(likelihoods)
        return loss, likelihoods

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _slopes(ctx, gradients[0]), None, None


def _mix(log_p: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(loss, mean log-likelihoods [K], responsibilities [K, N], who takes no part [K]) from log-likelihoods [K, N].

    If no head's are finite the trouble is not theirs, and the loss says so. Where it is seen at once that all take
    part, there is nothing to leave out.
    """
    likelihoods = log_p.mean(1)
    out, weights = None, posterior.to(log_p.dtype)
    seen = is_at_hand(likelihoods)
    if not (seen and (sound(at_hand(likelihoods)) & (at_hand(posterior) > -math.inf)).all()):
        out, weights = weights_of(sound(likelihoods), weights)
        log_p = log_p.masked_fill(out[:, None], 0.0)
    joint = log_p + weights[:, None]
    top = joint.amax(0)
    shares = joint.sub_(top).exp_()
    total = shares.sum(0)
    return -(total.log() + top).mean(), likelihoods, shares.div_(total), out


def sound(likelihoods: Any) -> Any:
    """Is a mean log-likelihood finite, and not so far off that the head's weights are about to leave float32?"""
    return abs(likelihoods) < FAR


def weights_of(finite: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor]:
    """(who takes no part, the others' log weights), both [K]: those whose answers are not finite, unless nobody's are.

    Args:
        finite: [K], are a head's answers finite?
        posterior: [K], log weights; -inf: it takes no part.
    """
    part = finite & (posterior > -math.inf)
    out = ~part & part.any()
    return out, posterior.masked_fill(out, -math.inf).log_softmax(0)


def _keep(ctx: Any, own: Tensor, shares: Tensor, out: Tensor | None) -> None:
    """Save both gradients of the mean loss: the mixture's, and each head's own."""
    if out is not None:
        own.masked_fill_(out[:, None, None], 0.0)
    both = own.new_empty(2, *own.shape)
    torch.div(own, own.shape[1], out=both[1])
    torch.mul(both[1], shares.unsqueeze(-1), out=both[0])
    ctx.save_for_backward(both)


def _slopes(ctx: Any, gradient: Tensor) -> Tensor:
    """What was saved, times the gradient from above; with create_graph=True it would silently lack second parts."""
    if torch.is_grad_enabled():
        raise RuntimeError("the mixture's loss has first derivatives only; call backward without create_graph")
    saved: Tensor = ctx.saved_tensors[0]
    if is_at_hand(gradient) and at_hand(gradient) == 1.0:  # as always where the loss is the loss
        return saved
    return saved * gradient
