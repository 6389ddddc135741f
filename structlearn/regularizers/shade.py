"""SHADE: the entropy of units given the class, bounded by their variance given a latent detector (B ch. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from structlearn.checks import check_positive
from structlearn.regularizers.memory import Room
from structlearn.regularizers.rectified import Functions, calls
from structlearn.regularizers.regularizer import Regularizer, unhook
from structlearn.regularizers.variance import Moments, latent_variance
from structlearn.structure.wide import wide

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlearn.regularizers.rectified import Calls

NAME: Final = "shade"
"""What a rectifier's running averages are called: `features.1` has `features.1.shade.0.mean1`."""

MEMORY: Final = 0.8
"""lambda of B Alg. 5: the part of a running average that stays when a batch comes."""

_TINY: Final = 1e-12


class Averages(nn.Module):
    """The running averages of the units before one rectifier (B Alg. 5), and their part of the loss.

    Args:
        units: C, how many there are.
        axis: Where they are: 1 or -1.
    """

    present: Tensor
    """[C]: p^1, the probability of B = 1; that of B = 0 is 1 minus it."""
    mean0: Tensor
    """[C]: mu^0, E[Y | B = 0]."""
    mean1: Tensor
    """[C]: mu^1, E[Y | B = 1]."""

    def __init__(self, units: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self._room = Room()
        self.register_buffer("present", torch.full((units,), 0.5))
        self.register_buffer("mean0", torch.full((units,), -1.0))
        self.register_buffer("mean1", torch.full((units,), 1.0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Averages:
        """As every module; but sums over a batch need float32 at least, in a half-precision network, too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in list(self.named_buffers()):
            setattr(self, name, wide(value))
        return self

    def forward(self, y: Tensor, strength: float, *, overwritten: bool) -> tuple[Tensor, Tensor]:
        """What to go on with, and the part of the loss by the averages of before this batch, which they take in."""
        seen = latent_variance(
            y, self.axis, self.mean0, self.mean1, scale=strength, overwritten=overwritten, room=self._room
        )
        self._take(seen.moments, y.numel() / len(self.present))
        return seen.y, seen.loss

    @torch.no_grad()
    def _take(self, sums: Moments, samples: float) -> None:
        """B Alg. 5. Where a unit never finds its pattern p^1 goes to 0, and so does its mean: 0 / 0 would be none.

        Of units that are not finite nothing is taken in: unlike BatchNorm's, these averages act in training.
        """
        p0, p0_y, p1_y = (each / samples for each in sums)
        finite = (p0 + p0_y + p1_y).isfinite()
        self.present.lerp_(torch.where(finite, 1 - p0, self.present), 1 - MEMORY)
        absent = p0_y / (1 - self.present).clamp(min=_TINY)
        self.mean0.lerp_(torch.where(finite, absent, self.mean0), 1 - MEMORY)
        present = p1_y / self.present.clamp(min=_TINY)
        self.mean1.lerp_(torch.where(finite, present, self.mean1), 1 - MEMORY)


class Sites(nn.ModuleList):
    """The averages of one rectifier, one for each of its calls in a forward pass, and the terms that they gave."""

    def __init__(self, places: list[tuple[int, int]], strength: float) -> None:
        super().__init__(Averages(units, axis) for units, axis in places)
        self.strength = strength
        self._call = 0
        self._terms: dict[int, Tensor] = {}

    def see(self, y: Tensor, *, overwritten: bool) -> Tensor:
        """The rectifier is called with y, which it may overwrite; what it is to take instead."""
        if self._call == len(self):
            raise ValueError(
                f"a rectifier is called more often than the {len(self)} time(s) of SHADE's example in one forward "
                f"pass of the network: give an example of the same length, or a rectifier of its own to each call"
            )
        seen: Tensor
        seen, term = self[self._call](y, self.strength, overwritten=overwritten)
        if torch.is_grad_enabled():
            self._terms[self._call] = term
        self._call += 1
        return seen

    def begin(self) -> None:
        """Another forward pass begins, however the last one ended."""
        self._call = 0

    def take(self) -> list[Tensor]:
        """The terms of the last forward pass with gradients."""
        terms = list(self._terms.values())
        self._terms = {}
        self._call = 0
        return terms

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_terms": {}}  # their graphs are not copied with the network


class Shade(Regularizer):
    """SHADE (B ch. 4): makes units say no more than whether they have found their pattern.

    For each unit Y before a rectifier a latent detector B has p(B=1 | y) = 1 - exp(-relu(y)). What is added to the loss
    is `strength` times

        sum over layers and units of the mean over samples of sum_b p(b | y) (y - mu^b)^2        (B eq. 4.11)

    with running averages mu^b of E[Y | b] that no gradient flows to (Alg. 5). Positions of maps and sequences are
    samples, too. The averages used are those of before the batch.

    B takes strengths from {1, 5} 10^-i by validation.

    Args:
        model: Any network that rectifies, by modules or by functions: ReLU and its relatives, and MaxMin.
        example: A batch, or a tuple of arguments, as the network is called with. Only shapes matter; of sequences the
            length, too, where a rectifier is called once a step.
        strength: The factor in the loss of a mini-batch.

    Raises:
        ValueError: the strength is below 0, the network cannot be run with the example, nothing in it rectifies, or it
            has SHADE already. In a forward pass: a rectifier is called more often than with the example.
        RuntimeError: in a backward pass: what came into a rectifier was changed in place after it (the rectifier itself
            may do so), or second derivatives of SHADE's own term are asked for.
    """

    def __init__(self, model: nn.Module, example: Tensor | tuple[Any, ...], *, strength: float) -> None:
        super().__init__(model)
        self._strength = check_positive("strength", strength, zero=True)
        found = calls(model, example)
        if not found.modules and not found.functions:
            raise ValueError(
                "SHADE is for units before a ReLU (or a relative of it), and this network calls none; give the network "
                "such an activation, or leave SHADE out"
            )
        if self.sites:
            raise ValueError("this network has SHADE already; attach it once")
        self._attach(found)

    def loss(self, targets: Tensor | None = None) -> Tensor | None:
        """The term of the last forward pass; targets play no part. None if there was none in training."""
        terms = [term for sites in self.sites.values() for term in sites.take()]
        return torch.stack(terms).sum() if terms else None

    @property
    def strength(self) -> float:
        """The factor in the loss; it may be changed."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        self._strength = check_positive("strength", strength, zero=True)
        for sites in self.sites.values():
            sites.strength = self._strength

    @property
    def sites(self) -> dict[str, Sites]:
        """The running averages by the name of the rectifier; "" has those of functions."""
        return {
            name.removesuffix(NAME).removesuffix("."): module
            for name, module in self.model.named_modules()
            if isinstance(module, Sites)
        }

    def remove(self) -> None:
        """Take hooks and averages away."""
        for name in self.sites:
            layer = self.model.get_submodule(name)
            delattr(layer, NAME)
            unhook(layer, _look)
        for module in self.model.modules():
            unhook(module, _Watch)

    def _attach(self, found: Calls) -> None:
        """Hooks are of modules, or of what is copied and pickled with them."""
        like = next((each for each in self.model.parameters() if each.is_floating_point()), torch.zeros(()))
        watch = _Watch()
        for name, places in [*found.modules.items(), *([("", found.functions)] if found.functions else [])]:
            layer = self.model.get_submodule(name)
            sites = Sites(places, self.strength).to(like.device, like.dtype)
            layer.add_module(NAME, sites)
            watch.sites.append(sites)
            if name:
                layer.register_forward_pre_hook(_look)
        self.model.register_forward_pre_hook(watch.begin)
        if found.functions:
            self.model.register_forward_hook(watch.end, always_call=True)
            for name in found.modules:
                layer = self.model.get_submodule(name)
                layer.register_forward_pre_hook(watch.enter)
                layer.register_forward_hook(watch.leave, always_call=True)


def _look(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    if not layer.training:
        return inputs
    sites = layer.get_submodule(NAME)
    assert isinstance(sites, Sites)
    return sites.see(inputs[0], overwritten=getattr(layer, "inplace", False)), *inputs[1:]


class _Watch:
    """Sees forward passes begin; shows the averages what functions rectify, but not those that a module calls."""

    def __init__(self) -> None:
        self.sites: list[Sites] = []
        self._mode: Functions | None = None
        self._inside = 0

    def begin(self, model: nn.Module, _: Any) -> None:
        """The network is called."""
        self._inside = 0
        for sites in self.sites:
            sites.begin()
        if model.training and isinstance(own := getattr(model, NAME, None), Sites):
            self._mode = Functions(lambda y, over: y if self._inside else own.see(y, overwritten=over))
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def end(self, *_: Any) -> None:
        """The network has answered, or failed."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def enter(self, *_: Any) -> None:
        """A rectifying module is called."""
        self._inside += 1

    def leave(self, *_: Any) -> None:
        """It has answered."""
        self._inside -= 1
