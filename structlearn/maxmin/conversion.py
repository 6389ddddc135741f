"""One call that gives any network MaxMin for ReLU, at equal width or with equally many parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from structlearn.checks import check_choice
from structlearn.maxmin.draw import draw as draw_anew
from structlearn.maxmin.follow import follow
from structlearn.maxmin.functions import run
from structlearn.maxmin.match import matched
from structlearn.models.activations import MaxMin
from structlearn.structure import Structure
from structlearn.structure.trace import copied
from structlearn.structure.tracker import tensors
from structlearn.structure.verify import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


@dataclass(frozen=True)
class Conversion:
    """A network with MaxMin.

    Attributes:
        model: The network, a new one.
        activations: The names of the activations that are now MaxMin.
        parameters_before: How many parameters the network had.
        parameters: How many it has.
        factor: On the widths of its hidden layers; 1 where they are as they were.
    """

    model: nn.Module
    activations: tuple[str, ...]
    parameters_before: int
    parameters: int
    factor: float


def convert(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    keep: Literal["width", "parameters"] = "width",
    activations: tuple[type[nn.Module], ...] = (nn.ReLU,),
    skip: Collection[str] = (),
    hold: Sequence[str] = (),
    draw: bool | None = None,
) -> Conversion:
    """A copy of any network, in which each ReLU is MaxMin: `concat(relu(x), relu(-x))` (B ch. 3).

    All that takes a MaxMin's channels is widened to twice as many: linear layers, also behind a flattening,
    convolutions, BatchNorms; a depthwise convolution gives twice as many, too. What these are is found by following an
    example, so any forward pass will do whose activations are modules.

    At equal width the network computes what it did, to rounding, since the weights of new channels are zero (B 3.3.4);
    they learn nevertheless, as their inputs are not. That is for networks that have been trained. To train from the
    start, as B does, give `draw=True`: MaxMin and ReLU then start alike.

    Args:
        model: The network. It is left alone.
        example: A batch, or a tuple of arguments, as the network is called with; on its device.
        keep: What stays equal: "width", each layer's units; or "parameters", how many there are in all (B table 3.1).
            Then all hidden widths are multiplied with one factor, and the layers drawn anew. The difference that is
            left is at most half of what one unit of some layer has.
        activations: Which modules become MaxMin. Only a ReLU's function can stay; with others all is drawn anew.
        skip: Names of modules that stay as they are, with all that is in them.
        hold: For "parameters": layers that keep their widths. B varies the numbers of convolutional filters, and holds
            those of the hidden linear layers' units.
        draw: Draw all layers anew (:func:`structlearn.maxmin.draw.draw`)? By default if the function cannot stay.

    Raises:
        ValueError: there is nothing to replace; an activation is called as a function; new channels go where nothing
            can be widened, as in the identity shortcut of a ResNet; there are no such widths.
    """
    check_choice("keep", keep, ("width", "parameters"))
    if keep == "width" and hold:
        raise ValueError(f"hold={tuple(hold)!r} is for keep='parameters': at equal width all layers keep theirs")
    same = activations == (nn.ReLU,)
    if draw is None:
        draw = keep == "parameters" or not same
    elif not draw and (keep == "parameters" or not same):
        why = "with other widths" if keep == "parameters" else "of activations other than nn.ReLU"
        raise ValueError(f"draw=False keeps the network's function, but {why} it cannot stay; leave draw out")
    arguments = example if isinstance(example, tuple) else (example,)
    _unregularised(model)
    trial = copied(model)
    names = _replaceable(trial, activations, skip)
    left = [name for name, _ in trial.named_modules() if _within(name, skip)]
    before = _steady(run, trial, arguments, activations, left)
    _replace(trial, names)
    after = _steady(follow, trial, arguments, names)
    _compare(tensors(before), tensors(after), function=same)
    factor, count = 1.0, _parameters(model)
    if draw or keep == "parameters":
        structure = Structure(trial, example)
        if keep == "parameters":
            plan, factor = matched(structure, count, hold)
            structure.apply(plan)
        draw_anew(trial, structure)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in trial.named_modules():
        module.training = modes[name]
    return Conversion(trial, tuple(names), count, _parameters(trial), factor)


def _unregularised(model: nn.Module) -> None:
    """Raises ValueError where regularisers hang on the network: their state has its present sizes."""
    for module in model.modules():
        for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:  # noqa: SLF001
            owner = getattr(hook, "__self__", hook)
            where = getattr(owner, "__module__", "")
            if where.startswith("structlearn.regularizers"):
                raise ValueError(
                    "regularisers are attached to this network, and MaxMin changes its sizes; convert it first, then "
                    "attach them"
                )


def _replaceable(model: nn.Module, activations: tuple[type[nn.Module], ...], skip: Collection[str]) -> list[str]:
    """The names of the activations that are to become MaxMin."""
    modules = dict(model.named_modules())
    for name in skip:
        check_choice("module to skip", name, modules)
    found = [name for name, module in modules.items() if name and isinstance(module, activations)]
    found = [name for name in found if not _within(name, skip)]
    if not found:
        kinds = ", ".join(f"nn.{kind.__name__}" for kind in activations)
        raise ValueError(
            f"the network has no activation to replace: no module in it is one of {kinds}; name those that it has: "
            f"activations=(nn.GELU,), say"
        )
    return found


def _within(name: str, wholes: Collection[str]) -> bool:
    return any(name == whole or (whole and name.startswith(f"{whole}.")) for whole in wholes)


def _replace(model: nn.Module, names: Sequence[str]) -> None:
    """Put MaxMin in the place of modules, wherever these are held."""
    new = {id(model.get_submodule(name)): MaxMin() for name in names}
    for parent in list(model.modules()):
        for key, child in parent._modules.items():  # noqa: SLF001  torch has no other list in which one twice is twice
            if id(child) in new:
                setattr(parent, key, new[id(child)].eval())


def _steady(function: Any, model: nn.Module, arguments: tuple[Any, ...], *more: Any) -> Any:
    """What a function answers, with the same random numbers each time."""
    where = [each.device for each in model.parameters() if each.device.type == "cuda"][:1]
    with torch.random.fork_rng(where):
        torch.manual_seed(0)
        return function(model, arguments, *more)


def _compare(before: list[Tensor], after: list[Tensor], *, function: bool) -> None:
    """Raise ValueError where the answer has another shape, or, if the function must have stayed, other numbers."""
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"the network's answer, of shape {tuple(one.shape)}, has the shape {tuple(other.shape)} with MaxMin: "
                f"it comes from an activation; leave that one as it is: skip=(its name,)"
            )
        if not function or not one.is_floating_point() or not one.numel():
            continue
        scale = float(one.abs().max())
        if not float((one - other).abs().max()) <= max(TOLERANCE, 32 * torch.finfo(one.dtype).eps) * scale:
            raise ValueError(
                "with MaxMin and zeros for all new weights the network's answer changes: its forward pass counts on "
                "its channels in a way that is not seen (numbers written down in it, parts chosen by their place); "
                "take sizes from tensors there, or leave activations as they are: skip=(their names,)"
            )


def _parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())
