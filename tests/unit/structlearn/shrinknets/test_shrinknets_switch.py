"""The switch layer, and the rules by which its channels die: brute force, channel by channel."""

import copy

import pytest
import torch
from torch import nn

from structlearn.shrinknets import RULES, Switch, rule


def walk(steps: int, channels: int, seed: int) -> torch.Tensor:
    """Random walks of theta, some of which cross zero now and then."""
    chance = torch.Generator().manual_seed(seed)
    start = torch.randn(channels, generator=chance, dtype=torch.float64) * 3
    return start + (torch.randn(steps, channels, generator=chance, dtype=torch.float64) * 0.1).cumsum(0)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_each_channel_has_its_factor(shape) -> None:
    switch, x = Switch(3), torch.randn(shape)
    switch.alive[1] = 0
    theta = switch.theta.detach()
    expected = x * (theta * torch.tensor([1.0, 0.0, 1.0])).view(1, -1, *[1] * (len(shape) - 2))
    torch.testing.assert_close(switch(x), expected)


def test_channels_may_be_last() -> None:
    switch, x = Switch(3, axis=-1), torch.randn(2, 5, 3)
    torch.testing.assert_close(switch(x), x * switch.theta)


def test_a_dead_channel_has_no_gradient() -> None:
    switch = Switch(3)
    switch.alive[0] = 0
    switch(torch.randn(4, 3)).square().sum().backward()
    assert switch.theta.grad[0] == 0
    assert (switch.theta.grad[1:] != 0).all()


def test_starting_values_are_drawn_as_said() -> None:
    torch.manual_seed(0)
    positive, uniform, normal = (Switch(10_000, init=init).theta.detach() for init in ("positive", "uniform", "normal"))
    assert 0 < positive.min() < 0.01
    assert 0.99 < positive.max() <= 1
    assert -1 <= uniform.min() < -0.99
    assert 0.99 < uniform.max() < 1
    assert normal.mean().abs() < 0.05
    assert (normal.std() - 1).abs() < 0.05


def test_it_starts_alive_with_the_mean_of_its_sign() -> None:
    switch = Switch(50, init="normal")
    assert switch.living.all()
    assert torch.equal(switch.mean, switch.theta.detach().sign())
    assert torch.equal(switch.variance, torch.zeros(50))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Switch(0), "at least 1"),
        (lambda: Switch(3, init="ones"), "use one of: positive, uniform, normal"),
        (lambda: Switch(3, axis=2), "axis must be 1"),
        (lambda: Switch(3)(torch.zeros(2, 4)), r"needs \(batch, 3, ...\)"),
        (lambda: Switch(1)(torch.zeros(2, 4, 4)), r"needs \(batch, 1, ...\)"),
        (lambda: Switch(3, axis=-1)(torch.zeros(2, 3, 5)), r"needs \(..., 3\)"),
        (lambda: rule("sign_varience"), "did you mean 'sign_variance'"),
        (lambda: rule("sign_change", memory=0.9), "option of sign_change"),
        (lambda: rule("sign_variance", memory=1.0), "below 1"),
        (lambda: rule("threshold", level=0.0), "above 0"),
    ],
)
def test_a_mistake_is_told(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_state_is_whole() -> None:
    """Saved in the middle and loaded into a new switch, all goes on as it would have."""
    thetas, g = walk(80, 7, seed=0), rule("sign_variance", memory=0.9)
    one = Switch(7).double()
    one.mean.copy_(thetas[0].sign())
    for step, theta in enumerate(thetas):
        if step == 40:
            other = Switch(7).double()
            other.load_state_dict(one.state_dict())
        for switch in [one, other] if step >= 40 else [one]:
            switch.theta.data.copy_(theta)
            g([switch])
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert 0 < one.living.sum() < 7


# --- rules ---------------------------------------------------------------------------------------------


def brute_force(name: str, thetas: torch.Tensor, sizes: tuple[int, ...], **options: float) -> list[list[bool]]:
    """For each step, which channels live: numbers, one after the other, as METHODS says them."""

    def sign(x: float) -> int:
        return (x > 0) - (x < 0)

    first = [sign(theta) for theta in thetas[0].tolist()]
    m, v, alive, steps = [float(s) for s in first], [0.0] * len(first), [True] * len(first), []
    for row in thetas.tolist():
        before = list(alive)
        for k, theta in enumerate(row):
            value = theta if before[k] else 0.0
            s = sign(value)
            if name == "threshold":
                dies = abs(value) < options["level"]
            elif name == "sign_change":
                dies = s != first[k]
            else:
                g = options["memory"]
                d = s - m[k]
                v[k] = g * v[k] + (1 - g) * d**2
                m[k] = g * m[k] + (1 - g) * s
                dies = v[k] > 0.5
            alive[k] = before[k] and not dies
        start = 0
        for size in sizes:  # no switch loses its last channel
            members = range(start, start + size)
            if not any(alive[k] for k in members):
                alive[max(members, key=lambda k: abs(row[k]) * before[k])] = True
            start += size
        steps.append(list(alive))
    return steps


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("threshold", {"level": 0.05}),
        ("sign_change", {}),
        ("sign_variance", {"memory": 0.99}),
        ("sign_variance", {"memory": 0.9}),
        ("sign_variance", {"memory": 0.0}),
    ],
)
def test_a_rule_kills_whom_brute_force_kills(name, options, seed) -> None:
    thetas = walk(300, 24, seed)
    sizes = (5, 1, 2, 16)
    switches = [Switch(size).double() for size in sizes]
    for switch, part in zip(switches, thetas[0].split(sizes), strict=True):
        switch.mean.copy_(part.sign())
    expected = brute_force(name, thetas, sizes, **options)
    assert 0 < sum(expected[-1]) < 24
    kill = rule(name, **options)
    living = [True] * 24
    for theta, following in zip(thetas, expected, strict=True):
        theta, living = theta * torch.tensor(living), following  # noqa: PLW2901
        for switch, part in zip(switches, theta.split(sizes), strict=True):
            switch.theta.data.copy_(part)
        kill(switches)
        assert torch.cat([switch.living for switch in switches]).tolist() == living
        factors = torch.cat([switch.theta.detach() for switch in switches])
        assert torch.equal(factors, theta * torch.tensor(living))


@pytest.mark.parametrize(("memory", "steps"), [(0.99, 16), (0.9, 2), (0.0, 1)])
def test_one_lasting_change_of_sign_kills_after_so_many_steps(memory, steps) -> None:
    """METHODS 4; with g = 0 at the first crossing."""
    switch, kill = Switch(2), rule("sign_variance", memory=memory)
    for _ in range(200):
        kill([switch])
    assert switch.living.all()
    taken = 0
    while switch.living[0]:
        switch.theta.data[0] = -0.1
        kill([switch])
        taken += 1
    assert taken == steps
    assert switch.living.tolist() == [False, True]


def test_a_short_excursion_does_not_kill() -> None:
    switch, kill = Switch(2), rule("sign_variance", memory=0.99)
    for step in range(100):
        switch.theta.data[0] = -0.1 if 20 <= step < 35 else 0.1
        kill([switch])
    assert switch.living.all()


@pytest.mark.parametrize("name", RULES)
def test_the_dead_stay_dead(name) -> None:
    switch, kill = Switch(4), rule(name)
    switch.alive[2] = 0
    for _ in range(50):
        switch.theta.data.copy_(torch.ones(4))  # as momentum might
        kill([switch])
        assert switch.theta[2] == 0
    assert switch.living.tolist() == [True, True, False, True]


def test_what_one_rank_has_killed_is_dead_in_the_mean() -> None:
    ranks = [Switch(3) for _ in range(4)]
    ranks[1].alive[0] = 0
    mean = copy.deepcopy(ranks[0])
    mean.load_state_dict(
        {key: torch.stack([rank.state_dict()[key] for rank in ranks]).mean(0) for key in mean.state_dict()}
    )
    assert mean.living.tolist() == [False, True, True]
    rule("sign_variance")([mean])
    assert mean.alive.tolist() == [0.0, 1.0, 1.0]
    assert mean.factor[0] == 0


@pytest.mark.parametrize(("name", "theta"), [("threshold", 1e-4), ("sign_change", -1.0), ("sign_variance", -1.0)])
def test_the_last_channel_is_held(name, theta) -> None:
    switch, other, kill = Switch(4), Switch(3), rule(name)
    assert switch.held == 0
    for _ in range(40):
        switch.theta.data[:] = theta * torch.tensor([1.0, 2.0, 3.0, 2.0]) * switch.living
        kill([switch, other])
    assert switch.living.tolist() == [False, False, True, False]
    assert (switch.held, other.held) == (1, 0)
    assert other.living.all()


def test_ranks_that_held_different_channels_hold_one_together() -> None:
    mean = Switch(3)
    mean.alive.copy_(torch.tensor([0.5, 0.5, 0.0]))
    mean.theta.data.copy_(torch.tensor([0.1, 0.2, 0.0]))
    rule("sign_variance")([mean])
    assert mean.living.tolist() == [False, True, False]


def test_no_rule_waits_for_the_device() -> None:
    """On the meta device there are no numbers to look at."""
    with torch.device("meta"):
        switches = [Switch(size) for size in (5, 1, 7)]
    for name in RULES:
        rule(name)(switches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", RULES)
def test_on_a_gpu_it_does_the_same_without_waiting(name) -> None:
    thetas = walk(100, 12, seed=0).float()
    answers = []
    for device in ("cpu", "cuda"):
        switches, kill = [Switch(size).to(device) for size in (5, 7)], rule(name)
        steps = [theta.to(device).split((5, 7)) for theta in thetas]
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            for step in steps:
                for switch, part in zip(switches, step, strict=True):
                    switch.theta.data.copy_(part)
                kill(switches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        answers.append(torch.cat([switch.alive.cpu() for switch in switches]))
    assert torch.equal(*answers)


def test_rules_do_not_need_a_switch() -> None:
    rule("sign_variance")([])


def test_a_switch_is_a_module_like_others() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Switch(4), nn.ReLU())
    assert {name for name, _ in net[1].named_buffers()} == {"alive", "mean", "variance", "held"}
    assert repr(net[1]) == "Switch(4, axis=1)"
