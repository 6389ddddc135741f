"""The example of deep Q-learning: its parts against plain ones, short runs, and what it says of what is wrong."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from structlearn import alrao

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module", autouse=True)
def _path():
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def example(_path):
    import deep_q_learning

    return deep_q_learning


@pytest.fixture(scope="module")
def parts(_path):
    import q_learning_parts

    return q_learning_parts


def needs(*packages):
    # Looked for and not imported: where warnings are errors, as here, importing Box2D crashes.
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


PENDULUM = pytest.param({"environment": "pendulum", "episodes": 2}, marks=needs("gymnasium"))
LANDER = pytest.param({"environment": "lunar_lander", "episodes": 4}, marks=needs("gymnasium", "Box2D", "pygame"))
SHORT = {
    "hidden": 16,
    "warm_up": 100,
    "update_every": 2,
    "validate_every": 2,
    "validation_episodes": 2,
    "test_episodes": 3,
}


@pytest.mark.parametrize("capacity", [1, 7, 1024, 1500, 10_000])
def test_the_memory_holds_what_a_list_of_the_last_transitions_holds(parts, capacity):
    memory, plain = parts.Memory(capacity, 3), []
    draw = np.random.default_rng(0)
    for number in range(2600):
        row = (draw.random(3, np.float32), number, float(number), draw.random(3, np.float32), number % 5 == 0)
        memory.add(*row)
        plain = [*plain[-capacity + 1 :], row] if capacity > 1 else [row]
    assert memory.size == len(plain) == min(capacity, 2600)
    by_action = {row[1]: row for row in plain}
    batch = memory.sample(20 * memory.size, np.random.default_rng(1))
    assert set(batch["action"].tolist()) <= set(by_action)
    assert len(set(batch["action"].tolist())) > 0.99 * memory.size
    for place in range(0, len(batch["action"]), 97):
        before, action, reward, after, terminated = by_action[int(batch["action"][place])]
        assert batch["action"][place] == action
        assert batch["reward"][place] == reward
        assert bool(batch["terminated"][place]) == terminated
        assert torch.equal(batch["before"][place], torch.from_numpy(before))
        assert torch.equal(batch["after"][place], torch.from_numpy(after))


def test_a_memory_for_millions_takes_no_room_before_it_fills(parts):
    memory = parts.Memory(10**9, 3)
    assert memory._rows.nbytes < 10**6
    for number in range(1025):
        memory.add(np.zeros(3), number, 0.0, np.zeros(3), False)
    assert len(memory._rows) == 2048


def test_targets_look_ahead_where_an_episode_is_cut_off_and_not_where_it_ends(parts):
    rewards, following = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[4.0, 6.0], [-1.0, -3.0], [9.0, 5.0]])
    terminated = torch.tensor([False, False, True])
    found = parts.q_targets(rewards, terminated, following, 0.5)
    assert found.tolist() == [1 + 0.5 * 6, 2 - 0.5 * 1, 3.0]


def test_a_terminal_state_counts_as_nothing_even_where_the_target_answers_nan(parts):
    following = torch.full((1, 2), torch.nan)
    assert parts.q_targets(torch.ones(1), torch.tensor([True]), following, 0.9).tolist() == [1.0]


def test_soft_updates_towards_a_fixed_network_shrink_the_distance_by_tau_each_time(parts):
    target, online = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    first = target.weight.detach().clone()
    for _ in range(7):
        parts.soft_update(target, online, 0.9)
    torch.testing.assert_close(target.weight, online.weight + 0.9**7 * (first - online.weight))


def test_a_soft_update_copies_the_state_of_the_switch(parts):
    torch.manual_seed(0)
    networks = [alrao.Alrao(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), task="regression") for _ in range(2)]
    target, online = networks
    online.switch.update(torch.arange(10.0), torch.tensor(1.0))
    online.switch.alive[0] = False
    parts.soft_update(target, online, 0.9)
    assert target.switch.posterior().equal(online.switch.posterior())
    assert target.switch.steps == 1


def test_all_methods_start_from_the_same_weights(example, parts):
    learners = [parts.Learner(example.Settings(method=method, seed=3), 3, 5) for method in example.METHODS]
    hidden = [learner.network.get_parameter("features.1.weight") for learner in learners[1:]]
    assert hidden[0].equal(hidden[1])
    assert hidden[0].equal(learners[0].network.model.features[1].weight)
    assert learners[0].network.heads.weight[0].equal(learners[1].network.head.weight)


def test_a_plain_update_is_a_step_down_half_the_squared_error_of_the_chosen_actions(example, parts):
    settings = example.Settings(method="sgd", lr=0.1, tau=0.0, reward_scale=0.5)
    learner = parts.Learner(settings, 3, 5)
    twin = parts.Learner(settings, 3, 5).network
    before, after = torch.randn(2, 4, 3)
    actions, terminated = torch.tensor([0, 4, 2, 2]), torch.tensor([False, True, False, True])
    batch = {"before": before, "after": after, "action": actions, "reward": torch.arange(4.0), "terminated": terminated}
    with torch.no_grad():
        wanted = torch.stack([0.5 * n + 0.99 * twin(after)[n].max() * (not terminated[n]) for n in range(4)])
    loss = sum(0.5 * (twin(before)[n, actions[n]] - wanted[n]) ** 2 for n in range(4)) / 4
    loss.backward()
    assert learner.learn(batch) == pytest.approx(loss.item())
    for found, start in zip(learner.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, start - 0.1 * start.grad)
    for found, target in zip(learner.network.parameters(), learner.target.parameters(), strict=True):
        torch.testing.assert_close(found, target)


def test_alrao_answers_as_its_most_trusted_head_or_as_the_mean_of_all(example, parts):
    learners = [parts.Learner(example.Settings(answer=answer), 3, 5) for answer in example.ANSWERS]
    seen = torch.randn(6, 3)
    for learner in learners:
        learner.network.switch.update(torch.arange(10.0), torch.tensor(1.0))
    best, mean = (learner.values(seen) for learner in learners)
    torch.testing.assert_close(best, learners[0].network.best()(seen))
    network = learners[1].network
    answers = torch.stack(
        [nn.functional.linear(network.model.features(seen), network.heads.weight[k]) for k in range(10)]
    )
    answers += network.heads.bias[:, None]
    weights = network.switch.posterior().exp().float()
    torch.testing.assert_close(mean, (weights[:, None, None] * answers).sum(0))


@pytest.mark.parametrize("change", [PENDULUM, LANDER])
@pytest.mark.parametrize("method", ["alrao", "adam"])
def test_a_short_run_ends_and_the_same_seed_gives_the_same(example, change, method):
    settings = example.Settings(**SHORT, **change, method=method)
    first, second = example.train(settings), example.train(settings)
    assert first == second
    assert not first.failed
    assert first.episodes == settings.episodes
    assert len(first.test) == 3
    assert first.best in {number for number, _ in first.validation}


@needs("gymnasium")
def test_a_run_that_diverges_is_reported_as_failed(example, capsys):
    settings = example.Settings(**SHORT, method="sgd", lr=1e6, reward_scale=1.0, activation="relu", episodes=6)
    result = example.train(settings)
    assert result.failed
    assert result.test == []
    assert np.isnan(result.test_return)
    example.main([f"--{key}={value}" for key, value in dataclasses.asdict(settings).items()])
    assert capsys.readouterr().out == "failed: the learning diverged in episode 1\n"


@needs("gymnasium")
def test_validation_and_test_episodes_start_the_same_for_every_method(example):
    starts = []
    for method in example.METHODS:
        run = example.Run(example.Settings(**SHORT, method=method))
        starts.append([run.worlds[0].reset(seed).tolist() for seed in (*run.seeds("split", 2), *run.seeds("test", 2))])
    assert starts[0] == starts[1] == starts[2]
    assert len({tuple(start) for start in starts[0]}) == 4
    other = example.Run(example.Settings(**SHORT, seed=1))
    assert other.seeds("test", 2) != run.seeds("test", 2)
    assert not other.learner.network.heads.weight.equal(
        example.Run(example.Settings(**SHORT)).learner.network.heads.weight
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--environment=pendulm", "unknown environment 'pendulm' (did you mean 'pendulum'?); use one of:"),
        ("--method=sdg", "unknown method 'sdg' (did you mean 'sgd'?)"),
        ("--lr=-1", "lr must be above 0, got -1.0"),
        ("--lr=nan", "lr must be above 0, got nan"),
        ("--lr_min=11", "the learning rates must be an interval above 0"),
        ("--episodes=0", "episodes must be a whole number of at least 1, got 0"),
        ("--tau=1", "tau must be at least 0 and below 1, got 1.0"),
        ("--discount=1.1", "discount must be between 0 and 1, got 1.1"),
        ("--torques=1", "torques must be at least 2, got 1"),
        ("--seed=-1", "seed must be at least 0, got -1"),
        ("--validate_every=100", "validate_every must be at most episodes (80), got 100"),
        ("--heads=x", "argument --heads: invalid int value: 'x'"),
    ],
)
def test_a_bad_option_gives_one_clear_error(example, capsys, option, said):
    with pytest.raises(SystemExit) as ended:
        example.main([option])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_without_gymnasium_there_is_help_and_one_clear_error(tmp_path, environment):
    (tmp_path / "gymnasium.py").write_text("raise ModuleNotFoundError('no gymnasium here')")
    env = environment | {"PYTHONPATH": f"{tmp_path}:{environment['PYTHONPATH']}"}
    for options, code in (["--help"], 0), ([], 2):
        command = [sys.executable, str(EXAMPLES / "deep_q_learning.py"), *options]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == code
    assert len(ended.stderr.splitlines()) == 2
    assert 'pip install "structlearn[rl]"' in ended.stderr
