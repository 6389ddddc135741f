"""One forward pass without numbers, in which every operator says what it does to channels."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from structlearn.structure.labels import FREE, Labels, Same
from structlearn.structure.operators import rule_of
from structlearn.structure.tracker import Axes, Call, Role, Tracker, tensors
from structlearn.structure.writes import write

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class Traced:
    """What a forward pass has shown.

    Attributes:
        labels: For each parameter and buffer, by name, the labels of each axis that may be cut, by the axis.
        roles: For each axis that was used, what it is for its units; in the order of use.
        same: Which labels are one.
        why: Why something is never cut, by its label.
    """

    labels: dict[str, dict[int, Labels]] = field(default_factory=dict)
    roles: Mapping[tuple[str, int], Role] = field(default_factory=dict)
    same: Same = field(default_factory=Same)
    why: list[str] = field(default_factory=list)


class Watching(TorchDispatchMode):
    """Sees every operator, and has its rule say what its results are."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracker = tracker

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = _in_short(func, args)
        if answer is None:
            answer = func(*args, **kwargs)
        tracker, name, results = self.tracker, str(func.overloadpacket), tensors(answer)
        if not results:
            return answer
        changed = args[0] if args and isinstance(args[0], Tensor) and results[0] is args[0] else None
        if changed is not None:
            write(tracker, name, changed, tensors(args[1:], kwargs))
        call = Call(name, args, kwargs, results)
        for result, axes in zip(results, rule_of(func)(tracker, call), strict=True):
            tracker.put(result, axes)
        return answer


_SAME: Final = frozenset(
    f"aten.{name}" for name in ("relu", "hardtanh", "sigmoid", "tanh", "silu", "gelu", "elu", "neg")
)
_NORM: Final = frozenset({"aten.native_batch_norm", "aten.cudnn_batch_norm"})


def _in_short(func: Any, args: Any) -> Any:
    """What common operators answer on the meta device: torch takes a millisecond for it, more than for all the rest."""
    name = str(func.overloadpacket)
    if name not in _SAME | _NORM or args[0].device.type != "meta":
        return None
    same = torch.empty_like(args[0])
    return same if name in _SAME else (same, args[0].new_empty(0), args[0].new_empty(0))


def trace(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Traced:
    """Follow the channels of a network through one forward pass, in evaluation.

    The pass is made on the meta device, by a copy without numbers: it costs milliseconds whatever the network's size.
    A network that looks at numbers on its way is run as it is. One with parameters or buffers that it does not use in
    evaluation (an auxiliary output, a running centre) is followed through training, too.

    Args:
        model: Any network. It is left alone.
        example: What it is called with: a tensor, or a tuple of arguments.

    Raises:
        ValueError: the network cannot be copied, or not be run with the example, or answers without a tensor.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    where = next((each.device for each in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    with torch.random.fork_rng([where] if where.type == "cuda" else []):  # training draws numbers
        try:
            return _follow(copied(model, "meta"), moved(arguments, "meta"))
        except Exception:  # noqa: BLE001  whatever a forward pass does with a tensor that holds no numbers
            trial = copied(model)
        try:
            return _follow(trial, moved(arguments, where))
        except Exception as error:
            problem = f"the network cannot be run with the example: {error}; give a batch as it takes it"
            raise ValueError(problem) from error


def _follow(model: nn.Module, arguments: tuple[Any, ...]) -> Traced:
    tracker = Tracker(Same())
    found: dict[str, Axes] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = tracker.own(name, tensor)
    _tie_together(tracker, model, found)
    for each in tensors(*arguments):
        tracker.put(each, Axes([None] * each.dim(), data=True))
    _pass(tracker, model, arguments)
    used = _used(tracker, found)
    if not all(used.values()):
        _pass(tracker, model.train(), arguments)
        used = _used(tracker, found)
    labels: dict[str, dict[int, Labels]] = {}
    for (name, axis), yes in used.items():
        if yes and (own := found[name].labels[axis]) is not None:
            labels.setdefault(name, {})[axis] = own
    return Traced(labels, tracker.roles, tracker.same, tracker.why)


def _used(tracker: Tracker, found: dict[str, Axes]) -> dict[tuple[str, int], bool]:
    """Has a forward pass used the axes that could be cut?

    An axis without a role is used where its units are: a learned initial state, which meets weights alone.
    """
    with_roles = [own for name, axis in tracker.roles if (own := found[name].labels[axis]) is not None]
    used = np.zeros(len(tracker.same), bool)
    used[tracker.same.find(np.concatenate([np.arange(FREE), *with_roles]))] = True
    answer = {}
    for name, axes in found.items():
        for axis, own in enumerate(axes.labels):
            if (name, axis) in tracker.roles:
                answer[name, axis] = True
            elif own is not None and tracker.free(own):  # a kernel's height is not
                answer[name, axis] = bool(used[tracker.same.find(own)].all())
    return answer


def _pass(tracker: Tracker, model: nn.Module, arguments: tuple[Any, ...]) -> None:
    with torch.no_grad(), Watching(tracker):
        answer = tensors(model(*arguments))
    if not answer:
        raise ValueError("there is no tensor in its answer")
    for each in answer:
        tracker.tie(tracker.get(each).labels, "they are the network's answer")


def _tie_together(tracker: Tracker, model: nn.Module, found: dict[str, Axes]) -> None:
    """What a forward pass does not show: recurrent layers have one number of cells; buffers that go along."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            prefix = f"{name}." if name else ""
            own = {key: found[prefix + key].labels for key, _ in module.named_parameters(recurse=False)}
            _tie_cells(tracker, module, own)
    for buffer, tensor in _beside(model).items():
        for goes, along in zip(found[buffer].labels, found[tensor].labels, strict=False):
            if goes is not None and along is not None:
                tracker.same.unite(goes, along)


def _tie_cells(tracker: Tracker, module: nn.RNNBase | nn.RNNCellBase, own: dict[str, list[Labels | None]]) -> None:
    cells, outputs, projected = list[Labels](), list[Labels](), getattr(module, "proj_size", 0)
    for key, (rows, *columns) in own.items():
        if "_ih" not in key:  # a state of zeros hides that the weights of states are used
            tracker.mark(rows, "out")
            tracker.mark(columns[0] if columns else None, "in")
        if rows is not None:
            gates = rows.reshape(-1, module.hidden_size) if "_hr" not in key else rows[None]
            (outputs if "_hr" in key else cells).extend(gates)  # gates of all cells, one after the other
        across = columns[0] if columns else None
        if across is not None and "_ih" not in key:
            (outputs if projected and "_hh" in key else cells).append(across)
    for each in (cells, outputs):
        for labels in each[1:]:
            tracker.same.unite(each[0], labels)
    if projected:
        tracker.tie(cells, "torch wants more cells than they are projected to")


def _beside(model: nn.Module) -> dict[str, str]:
    """What is cut as another tensor is though no forward pass may use it: a module's `beside` names it.

    Its axes are the first of the tensor's.
    """
    found = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for tensor, buffers in getattr(module, "beside", {}).items():
            found.update({prefix + buffer: prefix + tensor for buffer in buffers})
    return found


def copied(model: nn.Module, device: str | None = None) -> nn.Module:
    """A copy of a network, in evaluation; on the meta device, one that never had the numbers.

    Hooks that are methods of an object with a false attribute `structural` are left out: what they do in training is
    nothing to the structure.

    Raises:
        ValueError: it has none.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # what a hook has computed, as a weight with its mask
            elif type(value) in (dict, OrderedDict) and not value:
                memo[id(value)] = type(value)()  # a module has a dozen, which is where half of the time would go
    if device is not None:
        for parameter in model.parameters():
            empty = torch.empty_like(parameter, device=device)
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
        for buffer in model.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device=device)
    try:
        other = copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise ValueError(
            f"the network cannot be copied, and only a copy of it is tried out: {error}; make what has no copy (a "
            f"lock, an open file, a generator) in the forward pass, or keep it outside of the network"
        ) from error
    for module in other.modules():
        _without_training(module._forward_pre_hooks)  # noqa: SLF001  torch has no other list of them
        _without_training(module._forward_hooks)  # noqa: SLF001
    return other


def _without_training(hooks: dict[int, Any]) -> None:
    for number, hook in list(hooks.items()):
        if not getattr(getattr(hook, "__self__", None), "structural", True):
            del hooks[number]


def moved(arguments: tuple[Any, ...], device: Any) -> tuple[Any, ...]:
    """The arguments, their tensors on a device."""
    return tuple(each.to(device) if isinstance(each, Tensor) else each for each in arguments)
