"""Deep Q-learning without a learning rate to tune: Alrao with heads for regression (W 2.5.2, 2.9.3).

    pip install "structlearn[rl]"
    python examples/deep_q_learning.py --environment pendulum --method alrao
    python examples/deep_q_learning.py --environment lunar_lander --method sgd --lr 0.01

A network with two hidden layers says what each action is worth; with Alrao each of its ten output layers is a normal
distribution of variance 1 around its answer, and the switch mixes them. The plain sides (`sgd`, `adam`) are the same
network with one output layer, and half the squared error for a loss: that distribution's negative log, but for a
constant. Everything else is common to all methods. The network that did best on validation episodes is tested on new
ones. As a module: ``train(Settings(environment="pendulum", seed=1))``.

What W does not say, and what it is here: the pendulum's torque is one of a few values, evenly spaced; the hidden layers
have tanh; rewards are scaled; the target network is updated after each step of the optimiser. W's "soft target update
with tau = 0.9" is read as what the target *keeps*: target <- tau target + (1 - tau) online. In the notation of W's
reference (Lillicrap and others 2015) tau is what is taken, there 0.001: ``--tau 0.1`` is that reading. The target's
switch is a copy of the online one's.

Nor does W say which number a mixture of normal distributions answers. Here it is that of the head which the switch
trusts most; ``--answer mean`` takes the mixture's mean, which does not learn to swing up the pendulum
(experiments/alrao_pendulum). A head whose rate is far too high keeps about 1 / (t K) of the trust after t updates, and
answers 1e5 before it is lost: the mean follows it, and with the mean the targets that all heads learn from. The loss is
that of the mixture either way.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from q_learning_parts import GAMES, SCALES, Learner, Memory, World

from hpc.seeding import generator, seed_for
from structlearn.checks import check_choice, check_count, check_interval, check_share
from structlearn.models.activations import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

METHODS: Final = ("alrao", "sgd", "adam")
ANSWERS: Final = ("best", "mean")


def option(default: Any, text: str) -> Any:
    """A field of the settings with its line in the help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What a run is; the command line has an option for each.

    Raises:
        ValueError: one of them is out of its range.
    """

    environment: str = option("pendulum", f"one of {', '.join(GAMES)}")
    method: str = option("alrao", f"one of {', '.join(METHODS)}")
    lr: float = option(0.001, "learning rate of sgd and adam; alrao has none")
    lr_min: float = option(1e-5, "alrao: lower end of the interval of rates")
    lr_max: float = option(10.0, "alrao: its upper end")
    heads: int = option(10, "alrao: output layers")
    answer: str = option("best", "alrao: what it answers: its best head's values, or the mixture's mean")
    seed: int = option(0, "of everything that is drawn")
    episodes: int = option(80, "episodes to learn from")
    hidden: int = option(128, "units in each of the two hidden layers")
    activation: str = option("tanh", f"after them, one of {', '.join(ACTIVATIONS)}")
    torques: int = option(5, "pendulum: values that the torque can have")
    batch_size: int = option(32, "transitions in an update")
    update_every: int = option(1, "steps of the environment to one update")
    warm_up: int = option(1000, "steps before the first update")
    memory: int = option(1_000_000, "transitions that are remembered at most")
    discount: float = option(0.99, "what a reward one step later is worth")
    tau: float = option(0.9, "what the target network keeps of itself in an update")
    explore_start: float = option(1.0, "chance of a random action at first")
    explore_end: float = option(0.05, "and at last")
    explore_steps: int = option(10_000, "steps over which it goes from one to the other, in a line")
    reward_scale: float = option(0.0, f"factor on rewards in learning; 0: the environment's ({SCALES})")
    validate_every: int = option(5, "episodes from one validation to the next")
    validation_episodes: int = option(10, "episodes in a validation, the same ones each time")
    test_episodes: int = option(100, "new episodes that the best network is tested on")

    def __post_init__(self) -> None:
        check_choice("environment", self.environment, GAMES)
        check_choice("method", self.method, METHODS)
        check_choice("answer", self.answer, ANSWERS)
        check_choice("activation", self.activation, ACTIVATIONS)
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(each.default, int) and each.name not in {"seed", "warm_up"}:
                check_count(each.name, value)
        for name, value in (("seed", self.seed), ("warm_up", self.warm_up), ("reward_scale", self.reward_scale)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, got {value!r}")
        if self.validate_every > self.episodes:
            raise ValueError(f"validate_every must be at most episodes ({self.episodes}), got {self.validate_every}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be above 0, got {self.lr!r}")
        if self.torques < 2:
            raise ValueError(f"torques must be at least 2, got {self.torques}")
        check_interval("the learning rates", self.lr_min, self.lr_max)
        check_share("tau", self.tau, zero=True)
        for name in ("discount", "explore_start", "explore_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)!r}")


@dataclass
class Result:
    """What a run found.

    Attributes:
        validation: (episodes learnt from, mean return of the validation episodes), in order.
        best: The first of the pair with the highest return; 0 if there is none.
        test: Returns of the test episodes, played by the best network; empty if there is none.
        failed: The learning diverged: a loss or a weight was not finite. The run ends there.
        episodes: Episodes that were learnt from.
        lost: Alrao's lost units.
    """

    validation: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    test: list[float] = field(default_factory=list)
    failed: bool = False
    episodes: int = 0
    lost: int = 0

    @property
    def test_return(self) -> float:
        """The mean return of the test episodes; nan if there are none."""
        return float(np.mean(self.test)) if self.test else math.nan


def play(learner: Learner, worlds: Sequence[World], seeds: Sequence[int]) -> list[float]:
    """The return of one episode from each seed under the actions that are worth most; `worlds` go side by side."""
    returns: list[float] = []
    for start in range(0, len(seeds), len(worlds)):
        chosen = list(zip(worlds, seeds[start : start + len(worlds)], strict=False))
        seen, sums = [world.reset(seed) for world, seed in chosen], [0.0] * len(chosen)
        running = list(range(len(chosen)))
        while running:
            actions = learner.values(torch.from_numpy(np.stack([seen[place] for place in running]))).argmax(-1).tolist()
            for place, action in zip(tuple(running), actions, strict=True):
                seen[place], reward, terminated, truncated = chosen[place][0].step(action)
                sums[place] += reward
                if terminated or truncated:
                    running.remove(place)
        returns += sums
    return returns


class Run:
    """One run: the learner, what it remembers, and where it stands."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.steps = settings, 0
        self.world = World(settings.environment, settings.torques)
        self.worlds = [World(settings.environment, settings.torques) for _ in range(settings.validation_episodes)]
        self.learner = Learner(settings, self.world.inputs, self.world.actions)
        self.memory = Memory(settings.memory, self.world.inputs)
        self.draw = generator(settings.seed, "order", 0)

    def seeds(self, purpose: Any, count: int) -> list[int]:
        """Where so many episodes start: the same for every method."""
        return [int(seed) for seed in generator(self.settings.seed, purpose).integers(2**31, size=count)]

    def explore(self) -> float:
        """The chance of a random action."""
        told = self.settings
        share = min(1.0, self.steps / told.explore_steps)
        return told.explore_start + share * (told.explore_end - told.explore_start)

    def act(self, observation: NDArray[np.float32]) -> int:
        """An action: at random now and then, else the one that is worth most."""
        if self.draw.random() < self.explore():
            return int(self.draw.integers(self.world.actions))
        return int(self.learner.values(torch.from_numpy(observation)[None]).argmax())

    def episode(self) -> bool:
        """Learn from one episode; False if the learning diverged."""
        told = self.settings
        seen, over = self.world.reset(seed_for(told.seed, "order", 1) % 2**31 if self.steps == 0 else None), False
        while not over:
            action = self.act(seen)
            after, reward, terminated, truncated = self.world.step(action)
            self.memory.add(seen, action, reward, after, terminated)
            seen, over, self.steps = after, terminated or truncated, self.steps + 1
            due = self.steps > told.warm_up and self.steps % told.update_every == 0
            if due and not math.isfinite(self.learner.learn(self.memory.sample(told.batch_size, self.draw))):
                return False
        return self.learner.finite()


def train(settings: Settings, report: Callable[[int, float], None] | None = None) -> Result:
    """A run from its settings to its test: the same settings give the same result.

    Args:
        settings: As they are.
        report: Told of each validation, (episodes, mean return).

    Raises:
        ImportError: gymnasium, or Box2D for the lunar lander, is not installed.
    """
    run, result = Run(settings), Result()
    learner, best = run.learner, None
    seeds = run.seeds("split", settings.validation_episodes)
    for number in range(1, settings.episodes + 1):
        result.failed = not run.episode()
        if result.failed:
            break
        result.episodes = number
        if number % settings.validate_every == 0:
            mean = float(np.mean(play(learner, run.worlds, seeds)))
            if best is None or mean > max(earlier for _, earlier in result.validation):
                best, result.best = copy.deepcopy(learner.network.state_dict()), number
            result.validation.append((number, mean))
            if report is not None:
                report(number, mean)
    result.lost = learner.lost()
    if best is not None:
        learner.network.load_state_dict(best)
        result.test = play(learner, run.worlds, run.seeds("test", settings.test_episodes))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for each in fields(Settings):
        name, text = f"--{each.name}", f"{each.metadata['help']} (default: {each.default})"
        parser.add_argument(name, type=type(each.default), default=each.default, help=text.replace("%", "%%"))
    try:
        settings = Settings(**vars(parser.parse_args(arguments)))
        result = train(
            settings, lambda number, mean: print(f"episode {number}: validation return {mean:.1f}", flush=True)
        )
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    if result.failed:
        print(f"failed: the learning diverged in episode {result.episodes + 1}")
    if result.test:
        print(f"test return {result.test_return:.1f} ({len(result.test)} new episodes, the network of {result.best})")


if __name__ == "__main__":
    main()
