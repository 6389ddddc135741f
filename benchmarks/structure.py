"""Networks that were cut: as quick as networks built in that size, and cut quicker than by Torch-Pruning.

    python benchmarks/structure.py [--rounds 9]

One core, one thread. Two questions:

- a training step (forward, backward, SGD with momentum) of a network that has lost half of its units while it was
  trained, over that of one whose layers were made in these sizes;
- choosing half of a network's units, the smallest norms first, and cutting them, over the same by Torch-Pruning
  (`pip install torch-pruning`): with the search for coupled units, where they are known, and the cut alone, of the same
  units of the same layers. Both must leave equally many parameters. Only parameters and buffers are there to be cut;
  a last line says what ours takes in the midst of training, with gradients and momentum (which Torch-Pruning leaves).
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning
from measure import interleave, one_core, parser, publish, ratio, spread
from torch import nn
from torch.nn.functional import cross_entropy

from structlearn import models
from structlearn.structure import Plan, Structure

NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int]] = {
    "sFC": ("mlp", {"widths": [1000, 1000, 10]}, (1, 28, 28), 128),
    "VGG19": ("vgg19", {}, (3, 32, 32), 32),
    "ResNet-18": ("resnet18", {}, (3, 32, 32), 16),
    "ResNet-50": ("resnet50", {}, (3, 224, 224), 1),
    "DenseNet-121": ("densenet121", {}, (3, 224, 224), 1),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network, and a batch for it."""
    torch.manual_seed(0)
    kind, options, shape, batch = NETWORKS[name]
    return models.build(kind, shape, 10, **options), torch.randn(batch, *shape)


def halved(structure: Structure) -> Plan:
    """Half of each set's units stay: those whose outgoing weights are largest."""
    norms = structure.norms("in")
    kept = {name: each.topk(max(1, len(each) // 2)).indices.sort().values for name, each in norms.items()}
    return Plan({name: tuple(units.tolist()) for name, units in kept.items()})


def rebuilt(model: nn.Module) -> nn.Module:
    """The same network of new layers, each made by its constructor in the size that it has."""
    new = copy.deepcopy(model)
    for parent in new.modules():
        for name, layer in parent.named_children():
            bias = getattr(layer, "bias", None) is not None
            if isinstance(layer, nn.Linear):
                setattr(parent, name, nn.Linear(layer.in_features, layer.out_features, bias=bias))
            elif isinstance(layer, nn.Conv2d):
                made = nn.Conv2d(
                    layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                    groups=layer.groups, bias=bias,
                )  # fmt: skip
                setattr(parent, name, made)
            elif isinstance(layer, nn.BatchNorm2d):
                setattr(parent, name, nn.BatchNorm2d(layer.num_features))
    return new


def stepper(model: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer, times: int) -> Callable[[], float]:
    """Seconds of a training step."""
    y = torch.randint(10, (len(x),))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(times):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        return (time.perf_counter() - start) / times

    return run


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9, fused=True)


def step_row(name: str, rounds: int, times: int) -> str:
    """A network that is cut while it is trained, beside one that never was larger."""
    model, x = build(name)
    optimizer = sgd(model)
    full = stepper(model, x, optimizer, 1)
    full()
    before = sum(parameter.numel() for parameter in model.parameters())
    seconds = min(full() for _ in range(3))
    structure = Structure(model, x[:2])
    structure.apply(halved(structure), optimizer)
    fresh = rebuilt(model)
    after = sum(parameter.numel() for parameter in model.parameters())
    assert after == sum(parameter.numel() for parameter in fresh.parameters())
    sides = {"cut": stepper(model, x, optimizer, times), "fresh": stepper(fresh, x, sgd(fresh), times)}
    for run in sides.values():
        run()
    found = interleave(sides, rounds)
    return (
        f"| {name}, batch {len(x)} | {before:,} | {after:,} | {1e3 * seconds:.4g} | "
        f"{spread([1e3 * each for each in found['cut']])} | {spread([1e3 * each for each in found['fresh']])} | "
        f"{ratio(found['cut'], found['fresh'])} |"
    )


# --- Torch-Pruning -------------------------------------------------------------------------------------------


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Cutting:
    """Both libraries on copies of one network; each measure is in seconds."""

    def __init__(self, name: str) -> None:
        self.model, self.x = build(name)
        self.model.eval()
        structure = Structure(self.model, self.x)
        self.widths, self.plan = structure.widths, halved(structure)
        self.left: dict[str, int] = {}
        """How many parameters each has left."""

    def _timed(self, who: str, model: nn.Module, cut: Callable[[], Any]) -> float:
        start = time.perf_counter()
        cut()
        seconds = time.perf_counter() - start
        self.left[who] = parameters(model)
        return seconds

    def ours(self) -> float:
        """Coupling, plan and cut."""
        model = copy.deepcopy(self.model)

        def cut() -> None:
            structure = Structure(model, self.x)
            structure.apply(halved(structure))

        return self._timed("ours", model, cut)

    def theirs(self) -> float:
        """The same by Torch-Pruning."""
        model = copy.deepcopy(self.model)
        return self._timed("theirs", model, lambda: self._pruner(model).step())

    def our_plan(self) -> float:
        """Plan and cut, where the coupling is known."""
        model = copy.deepcopy(self.model)
        structure = Structure(model, self.x)
        return self._timed("ours", model, lambda: structure.apply(halved(structure)))

    def their_plan(self) -> float:
        """The same by Torch-Pruning."""
        model = copy.deepcopy(self.model)
        return self._timed("theirs", model, self._pruner(model).step)

    def our_cut(self) -> float:
        """The cut alone, of a plan that is there."""
        model = copy.deepcopy(self.model)
        structure = Structure(model, self.x)
        return self._timed("ours", model, lambda: structure.apply(self.plan))

    def their_cut(self) -> float:
        """The same units of the same layers."""
        model = copy.deepcopy(self.model)
        graph = torch_pruning.DependencyGraph().build_dependency(model, self.x)
        layers = dict(model.named_modules())

        def cut() -> None:
            for layer, kept in self.plan.keep.items():
                gone = sorted(set(range(self.widths[layer])) - set(kept))
                graph.get_pruning_group(layers[layer], torch_pruning.prune_conv_out_channels, gone).prune()

        return self._timed("theirs", model, cut)

    def in_training(self) -> float:
        """Plan and cut of parameters, gradients and momentum."""
        model = copy.deepcopy(self.model)
        optimizer = sgd(model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        structure = Structure(model, self.x)
        return self._timed("ours", model, lambda: structure.apply(halved(structure), optimizer))

    def _pruner(self, model: nn.Module) -> Any:
        importance = torch_pruning.importance.GroupMagnitudeImportance()
        return torch_pruning.pruner.BasePruner(
            model, self.x, importance, pruning_ratio=0.5, ignored_layers=[model.head]
        )

    def rows(self, name: str, rounds: int) -> list[str]:
        """The three questions, a line each; and what ours takes in training."""
        found = []
        for question, one, other in (
            ("coupling, plan and cut", self.ours, self.theirs),
            ("plan and cut", self.our_plan, self.their_plan),
            ("the cut alone", self.our_cut, self.their_cut),
        ):
            one()
            other()
            seconds = interleave({"ours": one, "theirs": other}, rounds)
            ours, theirs = ([1e3 * each for each in seconds[side]] for side in ("ours", "theirs"))
            found.append(
                f"| {name}: {question} | {self.left['ours']:,} | {self.left['theirs']:,} | {spread(ours)} | "
                f"{spread(theirs)} | {ratio(theirs, ours)} |"
            )
        self.in_training()
        milliseconds = [1e3 * self.in_training() for _ in range(rounds)]
        what = "plan and cut, with gradients and momentum"
        found.append(f"| {name}: {what} | {self.left['ours']:,} | – | {spread(milliseconds)} | – | – |")
        print(*found, sep="\n", flush=True)
        return found


def main() -> None:
    rounds = parser(__doc__, 9).parse_args().rounds
    one_core()
    lines = [
        f"Half of all units are cut. {rounds} rounds, medians [quartiles], in ms.",
        "",
        "| training step | parameters before | after | before | cut | built in this size | cut over built |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, times in (("sFC", 20), ("VGG19", 2), ("ResNet-18", 2)):
        lines.append(step_row(name, rounds, times))
        print(lines[-1], flush=True)
    lines += [
        "",
        "| what | parameters left: ours | Torch-Pruning's | ours | Torch-Pruning's | theirs over ours |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("ResNet-50", "DenseNet-121"):
        lines += Cutting(name).rows(name, rounds)
    publish("structure", "Cut networks, and cutting them", lines)


if __name__ == "__main__":
    main()
