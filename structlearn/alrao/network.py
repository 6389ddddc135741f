"""A network with K output layers, mixed by the switch."""

from __future__ import annotations

import copy
import math
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from structlearn.alrao.hand import at_hand, is_at_hand, library
from structlearn.alrao.heads import Heads
from structlearn.alrao.losses import Task, mixture_loss, weights_of
from structlearn.alrao.switch import Switch
from structlearn.checks import check_choice
from structlearn.flow import last_layer
from structlearn.scala import Scaled, fold

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND: Final = {"classification": 4.0, "regression": 100.0}
"""A loss so many times that of knowing nothing is no loss that training goes through: something has exploded."""


class Alrao(nn.Module):
    """A network whose output layer stands there K times, each copy with a learning rate of its own (W 2.4.2).

    What it answers is the mixture of its heads, each weighted by how far the switch trusts it. In a training loop::

        net = Alrao(net)
        optimizer = SGD(net)                      # of structlearn.alrao
        for x, y in batches:
            net.loss(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        net.eval()
        net(x)                                    # log-probabilities (batch, C)
        plain = net.best()                        # the network as it was, with its best head

    The optimisers of this package call :meth:`update` after each step; with another one, call it yourself.

    Args:
        model: Any network whose answer comes from a linear layer or a 1x1 convolution. It is taken over: the output
            layer is replaced within it. Its first axis is the batch, and what follows the output layer (pooling,
            reshaping) treats the batch's examples apart.
        task: "classification" (the loss is cross-entropy) or "regression" (normal densities of variance 1).
        heads: K.
        head: The output layer's name within the model; by default it is found.
        theta: As :class:`Switch` says.
        per: As :class:`Switch` says.
        same: Start all heads alike, where they are else drawn one by one.

    Raises:
        ValueError: there is no such output layer, or its weights are shared with another layer.
    """

    _evidence: Tensor
    first: Tensor
    """The very first loss; 0 before."""

    def __init__(
        self,
        model: nn.Module,
        *,
        task: Task = "classification",
        heads: int = 10,
        head: str | None = None,
        theta: float = 0.999,
        per: Literal["batch", "example"] = "batch",
        same: bool = False,
    ) -> None:
        super().__init__()
        check_choice("task", task, ("classification", "regression"))
        self.task: Task = task
        self.head, layer = _output_layer(model, head)
        if isinstance(layer, Scaled):
            fold(layer)  # a scaling is there for one rate to suit all; heads have a rate each
        self.model = model
        new = Heads(layer, heads, same=same).to(layer.weight)
        new.train(layer.training)
        parent, _, leaf = self.head.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)
        self.__dict__["_heads"] = new  # also here, but not once more among the parts: to look it up takes 5 us a step
        self.switch = Switch(heads, theta=theta, per=per).to(layer.weight.device)
        self.register_buffer("_evidence", torch.zeros(heads + 2, dtype=torch.float64), persistent=False)
        self._evidence = self._evidence.to(layer.weight.device)
        self.register_buffer("first", torch.zeros((), dtype=torch.float64))
        self.first = self.first.to(layer.weight.device)
        self._observed = False
        self.train(model.training)

    @property
    def heads(self) -> Heads:
        """The output layers."""
        heads: Heads = self.__dict__["_heads"]
        return heads

    @property
    def evidence(self) -> Tensor:
        """[K + 2], float64: what has been seen since the last update, as sums that ranks in step add up before it.

        The examples' log-likelihoods under each head; the examples; the losses beyond all bounds: not finite, or BOUND
        times 1 + that of knowing nothing (all classes alike; the answer 0) and twice the very first loss.
        """
        return self._evidence

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Alrao:
        """As every module; what is summed up stays float64, as the switch does."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._evidence, self.first = self._evidence.double(), self.first.double()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """In evaluation the prediction, as :meth:`predict`; in training all heads' answers, for :meth:`loss`.

        Those are (2, K, batch, ...): gradients with respect to the first half reach the features, with respect to the
        second the heads' own weights (:class:`Heads`). Without gradients (1, K, batch, ...).
        """
        stacked = self.model(x)
        times = 2 if self.heads.training and torch.is_grad_enabled() else 1
        if not isinstance(stacked, Tensor) or stacked.shape[:1] != (times * self.switch.count * x.shape[0],):
            got = f"shape {tuple(stacked.shape)}" if isinstance(stacked, Tensor) else type(stacked).__name__
            raise ValueError(
                f"the network answers {x.shape[0]} examples with {got}; Alrao needs one tensor whose first axis is the "
                f"batch, each example treated apart from the output layer on"
            )
        outputs = stacked.unflatten(0, (times, self.switch.count, x.shape[0]))
        return outputs if self.training else self.predict(outputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean negative log of the mixture; its backward gives all gradients of W Alg. 1.

        A loss beyond all bounds is given as the bound, so that one such step does not make a mean useless.

        Args:
            outputs: What training's forward gave, or a part of it: (2, K, ...), with the examples' axes next.
            targets: Classes (...), int64, or for regression the values, shaped as an answer. Several places of an
                example (a sequence) count as so many examples.
        """
        outputs, targets = self._flat(outputs, targets)
        loss, likelihoods = mixture_loss(self.task, outputs, targets, self.switch.posterior())
        if self.training and outputs.requires_grad:
            seen, said, value = at_hand(self._evidence), at_hand(likelihoods), at_hand(loss.detach())
            bound = self._bound(outputs, targets, value)
            seen[:-2] += said * outputs.shape[2]
            seen[-2] += outputs.shape[2]
            seen[-1] += ~(value < bound)
            self._observed = True
            if not is_at_hand(loss) or seen[-1]:
                loss.data.nan_to_num_(nan=torch.inf).clamp_(max=float(bound) if is_at_hand(loss) else bound)
        return loss

    def predict(self, outputs: Tensor) -> Tensor:
        """The network's answer, (batch, ...) from (times, K, batch, ...).

        Classification: log-probabilities of the mixture. Regression: what the head says that the switch trusts most.
        The mixture's mean would follow heads that diverge: the switch leaves each of them some 1 / (t K) of the trust,
        and they may answer 1e9 (experiments/alrao_pendulum has both).
        """
        own = outputs[0]
        if self.task == "classification":
            own = own.log_softmax(self._class_axis(own.dim()))
            finite = ~own.isnan().flatten(1).any(1)  # a probability may be 0
        else:
            finite = own.isfinite().flatten(1).all(1)
        out, log_a = weights_of(finite, self.switch.posterior().to(own.dtype))
        if self.task == "regression":
            return own.index_select(0, log_a.argmax()[None]).squeeze(0)
        aside = [-1, *[1] * (own.dim() - 1)]
        own = own.masked_fill((out | (log_a == -torch.inf)).view(aside), 0.0)  # a lost head may answer nan
        return (own + log_a.view(aside)).logsumexp(0)

    def update(self) -> None:
        """Let the switch see what the heads said since the last update. Nothing happens if they said nothing."""
        if not self._observed:
            return
        seen = self._evidence
        self.switch.update(seen[:-2] / seen[-2], seen[-2], seen[-1] > 0)
        seen.zero_()
        self._observed = False

    def drop(self, best: int | None = None) -> None:
        """Trust nobody but one head from here on (W 2.9.2): by default the one that the switch trusts most."""
        alive = self.switch.alive
        chosen = self.switch.posterior().argmax() if best is None else best
        alive.copy_(torch.arange(len(alive), device=alive.device) == chosen)

    def best(self) -> nn.Module:
        """The plain network, with the head that the switch trusts most as its output layer: a copy."""
        plain = copy.deepcopy(self.model)
        parent, _, leaf = self.head.rpartition(".")
        layer = self.heads.plain(int(self.switch.posterior().argmax()))
        setattr(plain.get_submodule(parent), leaf, layer.train(self.training))
        return plain

    def _bound(self, outputs: Tensor, targets: Tensor, loss: Any) -> Any:
        """BOUND times 1 + the loss of knowing nothing, or twice the first loss: inputs may be far from normal."""
        xp, first, factor = library(outputs), at_hand(self.first), BOUND[self.task]
        if self.task == "classification":
            bound = factor * (1 + math.log(outputs.shape[-1]))
        else:
            bound = at_hand(factor * (1 + 0.5 * targets.square().sum(-1).mean()))
        first[...] = xp.where((first == 0) & xp.isfinite(loss), loss, first)
        return xp.where(2 * first > bound, 2 * first, bound)

    def _class_axis(self, dim: int) -> int:
        """Where the classes are in (K, batch, ...): torch has them second for images, our sequences have them last."""
        return 2 if self.heads.convolution else dim - 1

    def _flat(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(times, K, N, C) and (N) or (N, C)."""
        times, count, *shape = outputs.shape
        regression = self.task == "regression"
        if regression and len(shape) == 1:
            outputs = outputs.unsqueeze(-1)
            targets = targets.unsqueeze(-1)
        axis = self._class_axis(outputs.dim() - 1) + 1
        wanted = list(outputs.shape[2:])
        if not regression:
            del wanted[axis - 2]
        if list(targets.shape) != wanted:
            raise ValueError(
                f"the targets have the shape {tuple(targets.shape)}, but the answers {tuple(shape)} for {self.task} "
                f"need {tuple(wanted)}"
            )
        outputs = outputs.movedim(axis, -1)
        if regression:
            targets = targets.movedim(axis - 2, -1)
        examples = prod(outputs.shape[2:-1])
        flat = outputs.reshape(times, count, examples, outputs.shape[-1])
        return flat, targets.reshape(examples, *[-1] * regression)


def _output_layer(model: nn.Module, name: str | None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The name of the output layer, and the layer."""
    found = name if name is not None else last_layer(model, (nn.Linear, nn.Conv2d))
    layers = dict(model.named_modules())
    layer = layers.get(found or "")
    if not found or not (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and _small(layer))):
        raise ValueError(
            f"the output layer must be a Linear or a 1x1 Conv2d inside the network, got "
            f"{f'{found}: {type(layer).__name__}' if found else 'a network in which none was found'}; "
            f"name it: head='classifier.6', say"
        )
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if any(parameter is mine for mine in layer.parameters()) and not other.startswith(f"{found}."):
            raise ValueError(
                f"the output layer {found} shares its weights with {other}, but Alrao copies it; give it weights of "
                f"its own"
            )
    return found, layer


def _small(layer: nn.Conv2d) -> bool:
    """Is it a linear layer at each place?"""
    return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
