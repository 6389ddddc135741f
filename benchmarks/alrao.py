"""What Alrao adds to a training step: beside torch's SGD, and beside Alrao as it was published.

    python benchmarks/alrao.py [--rounds 15]

One core, one thread. Three questions:

- the optimiser's step: ``alrao.SGD`` with a rate for every unit and ten heads, over ``torch.optim.SGD(foreach=True)``
  on the plain network;
- the whole training step: forward, loss, backward, optimiser and switch, over the plain network with cross-entropy;
- the part that Alrao changes (output layer, loss, their backward, optimiser, switch), given features and the trunk's
  gradients: ours, and "as published": K separate linear layers, each run a second time on detached features for its
  own loss, with an optimiser each; rates as tensors of the parameters' size; a Python loop over the trunk's
  parameters, with the momentum of the authors' program (the buffer falls by 1 - 0.9 clamp(sqrt(rate), 0, 1 / 0.9));
  and the looks at numbers that it takes in a step (is each loss finite, is each likelihood a number).

Looks: how often a step copies a number to the host (``aten::_local_scalar_dense``, ``aten::nonzero``), by torch's
profiler. On a CUDA device each is a wait.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import interleave, one_core, parser, publish, ratio, spread
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, nll_loss
from torch.profiler import ProfilerActivity, profile

from structlearn import alrao, models
from structlearn.alrao import Switch
from structlearn.units import units

HEADS = 10
BATCH = 32
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "sFC": ("mlp", {"widths": [1000, 1000, 10]}, (1, 28, 28)),
    "GoogLeNet": ("googlenet", {}, (3, 32, 32)),
    "VGG19": ("vgg19", {}, (3, 32, 32)),
}
UPDATES: dict[str, dict[str, float]] = {
    "plain": {},
    "momentum 0.9": {"momentum": 0.9},
    "momentum 0.9, decay 5e-4": {"momentum": 0.9, "weight_decay": 5e-4},
}
RATES = {"lr_min": 1e-8, "lr_max": 1e-6}  # small: a benchmark trains for ever on one batch
LOOKS = ("aten::_local_scalar_dense", "aten::nonzero")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, options, shape = NETWORKS[name]
    return models.build(kind, shape, 10, **options)


def batch(name: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, *NETWORKS[name][2]), torch.randint(10, (size,))


def timed(call: Callable[[], Any], times: int) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times

    return measure


def looks(call: Callable[[], Any], times: int = 10) -> float:
    """Numbers that a call copies to the host."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(times):
            call()
    return sum(event.count for event in seen.key_averages() if event.key in LOOKS) / times


# --- sides ---------------------------------------------------------------------------------------------------


def optimisers(name: str, update: dict[str, float]) -> dict[str, Callable[[], Any]]:
    plain, net = build(name), alrao.Alrao(build(name), heads=HEADS)
    theirs = torch.optim.SGD(plain.parameters(), lr=1e-6, foreach=True, **update)
    ours = alrao.SGD(net, **RATES, **update)
    for parameter in (*plain.parameters(), *net.parameters()):
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return {"torch": theirs.step, "alrao": ours.step}


def steps(name: str, size: int) -> dict[str, Callable[[], Any]]:
    plain, net = build(name), alrao.Alrao(build(name), heads=HEADS)
    theirs = torch.optim.SGD(plain.parameters(), lr=1e-6, momentum=0.9, foreach=True)
    ours = alrao.SGD(net, **RATES, momentum=0.9)
    x, y = batch(name, size)

    def step(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "torch": lambda: step(theirs, lambda: cross_entropy(plain(x), y)),
        "alrao": lambda: step(ours, lambda: net.loss(net(x), y)),
    }


class Published:
    """Alrao in the way of its first publication: written for this comparison, from its description."""

    def __init__(self, trunk: list[nn.Parameter], rates: list[torch.Tensor], features: int) -> None:
        self.trunk, self.rates = (
            trunk,
            [rate.expand_as(each).contiguous() for rate, each in zip(rates, trunk, strict=True)],
        )
        self.heads = [nn.Linear(features, 10) for _ in range(HEADS)]
        grid = alrao.grid(HEADS, RATES["lr_min"], RATES["lr_max"]).tolist()
        self.optimizers = [
            torch.optim.SGD(h.parameters(), lr=lr, momentum=0.9) for h, lr in zip(self.heads, grid, strict=True)
        ]
        self.buffers = [torch.zeros_like(parameter) for parameter in trunk]
        self.switch = Switch(HEADS)

    def step(self, z: torch.Tensor, y: torch.Tensor) -> None:
        """One step, given features."""
        assert torch.isfinite(z).all()
        posterior = self.switch.posterior().float()
        answers = [log_softmax(head(z), 1) for head in self.heads]
        mixture = torch.stack([answer + a for answer, a in zip(answers, posterior, strict=True)]).logsumexp(0)
        nll_loss(mixture, y).backward()
        said = [-nll_loss(answer.detach(), y) for answer in answers]
        for head, optimizer in zip(self.heads, self.optimizers, strict=True):
            optimizer.zero_grad()
            own = nll_loss(log_softmax(head(z.detach()), 1), y)
            if torch.isfinite(own):
                own.backward()
            optimizer.step()
        with torch.no_grad():
            for parameter, rate, buffer in zip(self.trunk, self.rates, self.buffers, strict=True):
                assert parameter.grad is not None
                buffer.mul_(1 - 0.9 * rate.sqrt().clamp(0, 1 / 0.9)).add_(parameter.grad)
                parameter.add_(-rate * buffer)
        if any(math.isnan(each) for each in said):
            raise ValueError("a likelihood is no number")
        self.likelihoods = [float(each) for each in said]  # the authors' program keeps a running mean of these
        self.losses = [-float(each) for each in said]  # and of the losses
        self.switch.update(torch.tensor(self.likelihoods, dtype=torch.float64), torch.tensor(BATCH))


def parts(name: str) -> dict[str, Callable[[], Any]]:
    """Features and the trunk's gradients are given."""
    model, net = build(name), alrao.Alrao(build(name), heads=HEADS)
    ours = alrao.SGD(net, **RATES, momentum=0.9)
    heads = {id(parameter) for parameter in net.heads.parameters()}
    features = net.heads.weight.shape[-1]
    for parameter in (*net.parameters(), *model.parameters()):
        parameter.grad = torch.randn_like(parameter) * 1e-3 if id(parameter) not in heads else None
    trunk = [(key, each) for key, each in model.named_parameters() if not key.startswith("head.")]
    table = units(model)
    rates = alrao.draw(len(table), RATES["lr_min"], RATES["lr_max"])
    published = Published([each for _, each in trunk], [rates[table.index[key]] for key, _ in trunk], features)
    y = torch.randint(10, (BATCH,))

    def fresh() -> torch.Tensor:
        return torch.randn(BATCH, features).requires_grad_()

    def step() -> None:
        for parameter in net.heads.parameters():
            parameter.grad = None
        outputs = net.heads(fresh()).unflatten(0, (2, HEADS, BATCH))
        net.loss(outputs, y).backward()
        ours.step()

    return {"as published": lambda: published.step(fresh(), y), "alrao": step}


# --- the table -----------------------------------------------------------------------------------------------


def row(question: str, sides: dict[str, Callable[[], Any]], rounds: int, times: int) -> str:
    """Both sides in turn; ours over the other, but for the published one, which is over ours."""
    for call in sides.values():
        call()
    found = interleave({name: timed(call, times) for name, call in sides.items()}, rounds)
    (other, theirs), (_, ours) = found.items()
    over = ratio(theirs, ours) if other == "as published" else ratio(ours, theirs)
    counts = {name: f"{looks(call):g}" for name, call in sides.items()}
    ms = {name: spread([1e3 * each for each in values]) for name, values in found.items()}
    return f"| {question} | {other} | {ms[other]} | {ms['alrao']} | {over} | {counts[other]}, {counts['alrao']} |"


def main() -> None:
    rounds = parser(__doc__, 15).parse_args().rounds
    one_core()
    lines = [
        f"{HEADS} heads, batches of {BATCH} unless it says another, {rounds} rounds. Medians [quartiles], in ms.",
        "The ratio is alrao's time over the other's; of the published form, its time over alrao's.",
        "",
        "| what | beside | its time | alrao's | ratio | looks a step |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("VGG19", "GoogLeNet"):
        for label, update in UPDATES.items():
            lines.append(row(f"optimiser's step, {name}, {label}", optimisers(name, update), rounds, 5))
            print(lines[-1], flush=True)
    for name, size, times in (("sFC", 32, 20), ("sFC", 128, 10), ("GoogLeNet", 32, 1)):
        lines.append(row(f"whole step, {name}, batch {size}", steps(name, size), rounds, times))
        print(lines[-1], flush=True)
    for name in ("sFC", "GoogLeNet"):
        lines.append(row(f"optimiser and heads, {name}", parts(name), rounds, 5))
        print(lines[-1], flush=True)
    publish("alrao", "Alrao beside torch's SGD, and beside its published form", lines)


if __name__ == "__main__":
    main()
