"""What deep Q-learning is made of: a memory, targets, a learner with its two networks, environments.

``deep_q_learning.py`` puts it together and says what is read out of the source, and how.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from hpc.seeding import seed_for
from structlearn import alrao
from structlearn.checks import check_count
from structlearn.models import mlp

if TYPE_CHECKING:
    from deep_q_learning import Settings
    from numpy.typing import NDArray

GAMES: Final = {"pendulum": "Pendulum-v1", "lunar_lander": "LunarLander-v3"}
SCALES: Final = {"pendulum": 0.1, "lunar_lander": 0.01}
"""Rewards are multiplied by this for the network, of every method, so that one step's are of the order of the deviation
of a head, 1, or below. Returns are reported as they are."""
TORQUE: Final = 2.0  # the most that the pendulum takes, either way


class Memory:
    """The last `capacity` transitions. It grows as it fills: what is not remembered takes no room."""

    def __init__(self, capacity: int, inputs: int) -> None:
        self.capacity, self.size, self._next = check_count("memory", capacity), 0, 0
        kinds = [("before", "f4", (inputs,)), ("action", "i8"), ("reward", "f4"), ("after", "f4", (inputs,))]
        self._kind = np.dtype([*kinds, ("terminated", "?")])
        self._rows = np.zeros(min(self.capacity, 1024), self._kind)

    def add(self, before: Any, action: int, reward: float, after: Any, terminated: bool) -> None:
        """Remember a transition, in place of the oldest if the memory is full."""
        if self._next == len(self._rows):
            more = min(len(self._rows), self.capacity - len(self._rows))
            self._rows = np.concatenate([self._rows, np.zeros(more, self._kind)])
        self._rows[self._next] = (before, action, reward, after, terminated)
        self.size = max(self.size, self._next + 1)
        self._next = (self._next + 1) % self.capacity

    def sample(self, count: int, draw: np.random.Generator) -> dict[str, Tensor]:
        """`count` transitions, drawn evenly with replacement, as a tensor for each part."""
        rows = self._rows[draw.integers(self.size, size=count)]
        return {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in self._kind.names or ()}


def q_targets(rewards: Tensor, terminated: Tensor, following: Tensor, discount: float) -> Tensor:
    """What Q should be, [B]: r + discount max_a Q(s', a); only r where s' is terminal.

    An episode that is cut off (truncated) could have gone on: it is no end, and its last step looks ahead as any other.

    Args:
        rewards: [B].
        terminated: [B], bool.
        following: [B, A], what the target network says of s'.
        discount: Of one step.
    """
    return rewards + discount * following.amax(-1).masked_fill(terminated, 0.0)


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move all weights, target <- tau target + (1 - tau) online; buffers (the switch's state) are copied."""
    for mine, new in zip(target.parameters(), online.parameters(), strict=True):
        mine.lerp_(new, 1 - tau)
    for mine, new in zip(target.buffers(), online.buffers(), strict=True):
        mine.copy_(new)


class Learner:
    """A Q-network, its target and its optimiser. All methods start from the same weights for the same seed."""

    def __init__(self, settings: Settings, inputs: int, actions: int) -> None:
        self.settings = settings
        self.scale = settings.reward_scale or SCALES[settings.environment]
        seed = seed_for(settings.seed, "init")
        self.network: nn.Module
        self.optimizer: torch.optim.Optimizer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = (settings.hidden, settings.hidden, actions)
            self.network = mlp((inputs,), actions, widths=widths, activation=settings.activation)
            if settings.method == "alrao":
                rates: dict[str, Any] = {"lr_min": settings.lr_min, "lr_max": settings.lr_max, "seed": seed}
                self.network, self.optimizer = alrao.adopt(
                    self.network, task="regression", heads=settings.heads, **rates
                )
            else:
                rule = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[settings.method]
                self.optimizer = rule(self.network.parameters(), lr=settings.lr)
        self.target = copy.deepcopy(self.network)

    @torch.no_grad()
    def values(self, observations: Tensor, *, target: bool = False) -> Tensor:
        """What each action is worth, [B, A]: Alrao answers as its most trusted head, or as the mixture's mean."""
        network = self.target if target else self.network
        answers: Tensor = network(observations)
        if not isinstance(network, alrao.Alrao):
            return answers
        if self.settings.answer == "mean":
            return network.predict(answers)
        return answers[0, network.switch.posterior().argmax()]

    def learn(self, batch: dict[str, Tensor]) -> float:
        """One update from transitions; the loss before it."""
        following = self.values(batch["after"], target=True)
        wanted = q_targets(batch["reward"] * self.scale, batch["terminated"], following, self.settings.discount)
        answers = self.network(batch["before"])[..., torch.arange(len(wanted)), batch["action"]]
        if isinstance(self.network, alrao.Alrao):
            loss = self.network.loss(answers, wanted)
        else:
            loss = 0.5 * (answers - wanted).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        soft_update(self.target, self.network, self.settings.tau)
        return float(loss.detach())

    def finite(self) -> bool:
        """Are all weights?"""
        return all(bool(weights.isfinite().all()) for weights in self.network.parameters())

    def lost(self) -> int:
        """Alrao's lost units."""
        return int(self.optimizer.lost) if isinstance(self.optimizer, alrao.SGD) else 0


class World:
    """An environment with numbered actions.

    Raises:
        ImportError: gymnasium, or Box2D for the lunar lander, is not installed.
    """

    def __init__(self, name: str, torques: int) -> None:
        try:
            # Box2D's module warns when it is imported, and crashes where warnings are errors.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import gymnasium

                self.game: Any = gymnasium.make(GAMES[name])
        except ImportError as error:
            raise ImportError(f'{GAMES[name]} needs more packages: pip install "structlearn[rl]" ({error})') from error
        self.inputs = int(self.game.observation_space.shape[0])
        grid = np.linspace(-TORQUE, TORQUE, torques, dtype=np.float32)[:, None]
        self._torques = grid if name == "pendulum" else None
        self.actions = len(self._torques) if self._torques is not None else int(self.game.action_space.n)

    def reset(self, seed: int | None = None) -> NDArray[np.float32]:
        """A new episode's first observation."""
        observation: NDArray[np.float32] = self.game.reset(seed=seed)[0]
        return observation

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool]:
        """(observation, reward, terminated, truncated) after an action."""
        chosen = self._torques[action] if self._torques is not None else action
        observation, reward, terminated, truncated, _ = self.game.step(chosen)
        return observation, float(reward), bool(terminated), bool(truncated)
