"""A network under Alrao: against K separate output layers, mixed by hand, with gradients by autograd."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from structlearn.alrao import SGD, Alrao, adopt
from structlearn.models import build

EXACT = {"rtol": 1e-12, "atol": 1e-12}
K = 3


class ByHand(nn.Module):
    """The plain way: K copies of the whole network's output layer, the mixture's loss and each head's own."""

    def __init__(self, net: Alrao) -> None:
        super().__init__()
        self.net = copy.deepcopy(net.model)
        self.name, self.task = net.head, net.task
        self.heads = nn.ModuleList(net.heads.plain(j) for j in range(K))
        self.axis = 1 if net.heads.convolution else -1

    def answers(self, x: Tensor, *, trunk: bool) -> list[Tensor]:
        """Of all heads; gradients go to the trunk, with the heads fixed, or to the heads, with the features fixed."""
        found = []
        parent, _, leaf = self.name.rpartition(".")
        for head in self.heads:
            fixed = copy.deepcopy(head).requires_grad_(False)
            layer = fixed if trunk else nn.Sequential(Detach(), head)
            setattr(self.net.get_submodule(parent), leaf, layer)
            found.append(self.net(x))
        return found

    def log_p(self, answer: Tensor, y: Tensor) -> Tensor:
        if self.task == "classification":
            return -cross_entropy(answer.movedim(self.axis, 1), y, reduction="none").flatten()
        squares = (answer - y).square().movedim(self.axis, -1)
        return (-0.5 * squares - 0.5 * math.log(2 * math.pi)).sum(-1).flatten()

    def loss(self, x: Tensor, y: Tensor, log_a: Tensor) -> Tensor:
        """The mixture's; all gradients are taken."""
        said = torch.stack([self.log_p(each, y) for each in self.answers(x, trunk=True)])
        loss = -(said + log_a[:, None]).logsumexp(0).mean()
        loss.backward()
        sum(-self.log_p(each, y).mean() for each in self.answers(x, trunk=False)).backward()
        return loss.detach()


class Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def maps() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 1))


def perceptron(*, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5, bias=bias))


CASES = {
    "classes": ("classification", perceptron, (4,), ()),
    "classes without bias": ("classification", lambda: perceptron(bias=False), (4,), ()),
    "sequences": ("classification", lambda: build("lstm", (6,), 5, width=0.04, dropout=0), None, (6,)),
    "1x1 convolution and pooling": ("classification", convolutional, (3, 4, 5), ()),
    "maps of classes": ("classification", maps, (3, 4, 5), (2, 3)),
    "log-probabilities": ("classification", lambda: nn.Sequential(perceptron(), nn.LogSoftmax(-1)), (4,), ()),
    "values": ("regression", perceptron, (4,), (5,)),
    "values without bias": ("regression", lambda: perceptron(bias=False), (4,), (5,)),
    "sequences of values": ("regression", perceptron, (3, 4), (3, 5)),
    "maps of values": ("regression", maps, (3, 4, 5), (5, 2, 3)),
}


def case(name: str, **options: object) -> tuple[Alrao, Tensor, Tensor]:
    torch.manual_seed(0)
    task, make, shape, answer = CASES[name]
    net = Alrao(make().double(), task=task, heads=K, **options)
    x = torch.randint(5, (7, 6)) if shape is None else torch.randn(7, *shape, dtype=torch.float64)
    y = torch.randn(7, *answer).double() if task == "regression" else torch.randint(5, (7, *answer))
    return net, x, y


@pytest.mark.parametrize("name", CASES)
def test_loss_and_all_gradients_are_those_by_hand(name: str) -> None:
    net, x, y = case(name)
    net.switch.update(torch.tensor([-1.0, -0.2, -2.0]), torch.ones(()))
    hand = ByHand(net)
    expected = hand.loss(x, y, net.switch.posterior())
    loss = net.loss(net(x), y)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected, **EXACT)
    theirs = dict(hand.net.named_parameters())
    for key, parameter in net.model.named_parameters():
        if not key.startswith(net.head + "."):
            torch.testing.assert_close(parameter.grad, theirs[key].grad, **EXACT)
    for j, head in enumerate(hand.heads):
        torch.testing.assert_close(net.heads.weight.grad[j], head.weight.grad.flatten(1), **EXACT)
        if head.bias is not None:
            torch.testing.assert_close(net.heads.bias.grad[j], head.bias.grad, **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_it_predicts_the_mixture_or_the_value_of_the_best_head(name: str) -> None:
    net, x, _ = case(name)
    net.switch.update(torch.tensor([-1.0, -0.2, -2.0]), torch.ones(()))
    answers = torch.stack(ByHand(net).answers(x, trunk=True))
    a = net.switch.posterior().exp().view(-1, *[1] * (answers.dim() - 1))
    axis = 2 if net.heads.convolution else -1
    expected = answers[1] if net.task == "regression" else (a * answers.softmax(axis)).sum(0).log()
    outputs = net(x)
    assert outputs.shape[:3] == (2, K, 7)
    torch.testing.assert_close(net.predict(outputs), expected, **EXACT)
    torch.testing.assert_close(net.eval()(x), expected, **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_the_best_head_alone_is_a_plain_network(name: str) -> None:
    net, x, _ = case(name)
    net.switch.update(torch.tensor([-9.0, -9.0, 0.0]), torch.ones(()))
    plain = net.best()
    assert not [module for module in plain.modules() if "structlearn.alrao" in type(module).__module__]
    torch.testing.assert_close(plain(x), ByHand(net).answers(x, trunk=True)[2], **EXACT)
    net.drop()
    mixed = plain(x) if net.task == "regression" else plain(x).log_softmax(1 if net.heads.convolution else -1)
    torch.testing.assert_close(net.eval()(x), mixed, **EXACT)
    assert plain.training
    assert not net.best().training


def test_after_drop_the_others_are_never_trusted_again_and_still_learn() -> None:
    net, x, y = case("classes")
    net.switch.update(torch.tensor([-9.0, 0.0, -9.0]), torch.ones(()))
    net.drop()
    optimizer = SGD(net)
    for _ in range(3):
        net.loss(net(x), y).backward()
        optimizer.step()
        assert net.switch.posterior().exp().tolist() == [0.0, 1.0, 0.0]


def test_evidence_is_summed_over_losses_until_the_update() -> None:
    net, x, y = case("classes")
    whole = copy.deepcopy(net)
    for part in (slice(0, 5), slice(5, 7)):
        net.loss(net(x[part]), y[part]).backward()
    whole.loss(whole(x), y).backward()
    torch.testing.assert_close(net.evidence, whole.evidence, **EXACT)
    assert net.evidence[-2:].tolist() == [7, 0]
    for each in (net, whole):
        each.update()
    torch.testing.assert_close(net.switch.logw, whole.switch.logw, **EXACT)
    assert not net.evidence.any()
    net.update()  # nothing was said since
    assert net.switch.steps == 1


def test_the_switch_is_told_what_was_said_before_the_step() -> None:
    net, x, y = case("classes", per="example")
    said = [-7 * cross_entropy(each, y).item() for each in ByHand(net).answers(x, trunk=True)]
    other = copy.deepcopy(net.switch)
    other.update(torch.tensor(said, dtype=torch.float64) / 7, torch.tensor(7.0))
    optimizer = SGD(net)
    net.loss(net(x), y).backward()
    optimizer.step()
    torch.testing.assert_close(net.switch.logw, other.logw, **EXACT)


def test_losses_without_training_are_no_evidence() -> None:
    net, x, y = case("classes")
    with torch.no_grad():
        net.loss(net(x), y)
    net.eval()
    net.loss(net.model(x).unflatten(0, (1, K, 7)), y)
    assert not net.evidence.any()


def test_one_number_for_an_example_may_lack_an_axis() -> None:
    net = Alrao(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), task="regression", heads=K, head="0")
    x, y = torch.randn(7, 4), torch.randn(7)
    kept = Alrao(nn.Sequential(nn.Linear(4, 1)), task="regression", heads=K)
    kept.load_state_dict(net.state_dict())
    torch.testing.assert_close(net.loss(net(x), y), kept.loss(kept(x), y[:, None]))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("classes", (6,)),
        ("classes", (7, 5)),
        ("sequences", (7,)),
        ("values", (7,)),
        ("values", (7, 1)),
        ("maps of values", (7, 2, 3, 5)),
    ],
)
def test_targets_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    net, x, _ = case(name)
    with pytest.raises(ValueError, match="the targets have the shape"):
        net.loss(net(x), torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("training", [True, False])
def test_an_answer_whose_first_axis_is_not_the_batch_is_refused(training: bool) -> None:
    class Joined(nn.Module):
        def __init__(self, way: str) -> None:
            super().__init__()
            self.head, self.way = nn.Linear(4, 3), way

        def forward(self, x: Tensor) -> object:
            if self.way == "places as examples":
                return self.head(x.flatten(0, 1))
            y = self.head(x)
            return {"mean": y.mean(0, keepdim=True), "two": (y, y)}[self.way]

    for way in ("places as examples", "mean", "two"):
        net = Alrao(Joined(way), heads=K, head="head").train(training)
        with pytest.raises(ValueError, match="whose first axis is the batch"):
            net(torch.randn(5, 2, 4))


def test_what_cannot_be_copied_is_refused() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"shares its weights with 0\.weight"):
        Alrao(tied)
    for model in (nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.ReLU()), nn.Linear(3, 4)):
        with pytest.raises(ValueError, match="must be a Linear or a 1x1 Conv2d inside"):
            Alrao(model)
    with pytest.raises(ValueError, match="unknown task"):
        Alrao(perceptron(), task="ranking")
    with pytest.raises(ValueError, match="unknown optimizer"):
        adopt(perceptron(), optimizer="lion")


def test_with_low_precision_it_is_close() -> None:
    net, x, y = case("classes")
    net = net.float()
    expected = net.loss(net(x.float()), y)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net.loss(net(x.float()), y)
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)
    low = net.bfloat16()
    low.loss(low(x.bfloat16()), y).backward()
    assert low.switch.logw.dtype == low.evidence.dtype == torch.float64


@pytest.mark.parametrize("name", ["classes", "values"])
@pytest.mark.parametrize("value", [1e308, math.inf, math.nan])
def test_a_head_that_overflows_is_masked_and_harms_no_other(name: str, value: float) -> None:
    net, x, y = case(name)
    sound = copy.deepcopy(net)
    with torch.no_grad():
        sound.switch.lose(torch.tensor([False, True, False]))
        net.heads.weight[1] = value
    for training in (True, False):
        for each in (net, sound):
            each.train(training)
        pair = [each.predict(each(x)) if training else each(x) for each in (net, sound)]
        torch.testing.assert_close(*pair, **EXACT)
    losses = [each.train().loss(each(x), y) for each in (net, sound)]
    torch.testing.assert_close(*losses, **EXACT)
    for loss in losses:
        loss.backward()
    if math.isfinite(value):  # else the optimiser sees to it that the trunk does not move: test_alrao_lost
        torch.testing.assert_close(net.model[0].weight.grad, sound.model[0].weight.grad, **EXACT)
    assert not net.heads.bias.grad[1].any()
    net.update()
    assert net.switch.alive.tolist() == [True, False, True]


def test_features_that_overflow_are_not_the_heads_fault() -> None:
    net, x, y = case("classes")
    optimizer = SGD(net, lr_max=0.1)
    before = copy.deepcopy(net.state_dict())
    net.loss(net(x * math.nan), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert net.switch.alive.all()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items() if key.startswith("model"))
    assert net.loss(net(x), y).isfinite()


def test_adopting_gives_a_network_and_its_optimiser() -> None:
    net, optimizer = adopt(perceptron(), optimizer="adam", task="regression", heads=4, lr_max=0.1)
    assert (net.task, net.switch.count, len(optimizer.rates["model.2"])) == ("regression", 4, 4)
