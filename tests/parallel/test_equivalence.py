"""Many ranks train the network that the definitions say: against one rank, and against loops written by hand."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpc import data, network, optimizer
from hpc.config.read import validate
from hpc.data import Feed
from hpc.objective import Objective

MODEL = ("--model.name", "mlp", "--model.widths", "[32]", "--data.name", "digits", "--epochs", "2")
CPU = torch.device("cpu")


def losses(run_dir):
    with h5py.File(run_dir / "record.h5") as file:
        return file["steps/loss"][()]


def epochs(run_dir, column):
    with h5py.File(run_dir / "record.h5") as file:
        return file[f"epochs/{column}"][()]


@pytest.mark.parallel
def test_sync_on_two_ranks_follows_one_rank_with_twice_the_batch(train, tmp_path):
    options = (*MODEL, "--record.every_steps", "1", "--data.augment.pad", "1", "--data.augment.flip", "true")
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(*options, "--run_dir", str(one), "--data.batch_size", "32").returncode == 0
    assert train(*options, "--run_dir", str(two), "--data.batch_size", "16", "--ranks", "2").returncode == 0
    assert len(losses(one)) == len(losses(two)) == 80
    np.testing.assert_allclose(losses(one), losses(two), rtol=0, atol=1e-5)
    np.testing.assert_allclose(epochs(one, "test_loss"), epochs(two, "test_loss"), atol=1e-5)


@pytest.mark.parallel
@pytest.mark.parametrize("per", ["batch", "example"])
def test_alrao_in_sync_follows_one_rank_with_twice_the_batch_posterior_and_all(train, tmp_path, per):
    rates = ("--optimizer.name", "alrao", "--optimizer.lr_max", "0.1", "--optimizer.posterior_every", "1")
    options = (*MODEL, "--record.every_steps", "1", *rates, "--optimizer.per", per)
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(*options, "--run_dir", str(one), "--data.batch_size", "32").returncode == 0
    assert train(*options, "--run_dir", str(two), "--data.batch_size", "16", "--ranks", "2").returncode == 0
    posteriors = []
    for run_dir in (one, two):
        with h5py.File(run_dir / "record.h5") as file:
            posteriors.append(file["alrao/posterior"][()])
    assert len(posteriors[0]) == 80
    np.testing.assert_allclose(*posteriors, rtol=0, atol=1e-5 if per == "batch" else 1e-3)
    np.testing.assert_allclose(losses(one), losses(two), rtol=0, atol=1e-5)


@pytest.mark.parallel
@pytest.mark.parametrize(
    "pruning",
    [
        ("scalp", "--pruning.threshold", "0.05", "--pruning.strength", "0.01", "--pruning.batch_norm", "false"),
        ("norm", "--pruning.threshold", "1.3", "--pruning.strength", "0.01", "--pruning.proximal", "true"),
        ("shrinknets", "--pruning.rule", "threshold", "--pruning.threshold", "0.1", "--pruning.strength", "0.01"),
    ],
    ids=lambda pruning: pruning[0],
)
def test_pruning_in_sync_cuts_what_one_rank_with_twice_the_batch_cuts(pruning, train, tmp_path):
    """Without BatchNorm, whose statistics are of other batches on two ranks."""
    sgd = ("--optimizer.momentum", "0.0", "--optimizer.lr", "0.1" if pruning[0] == "scalp" else "0.02")
    options = (*MODEL, "--record.every_steps", "1", *sgd, "--pruning.name", *pruning)
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(*options, "--run_dir", str(one), "--data.batch_size", "32").returncode == 0
    assert train(*options, "--run_dir", str(two), "--data.batch_size", "16", "--ranks", "2").returncode == 0
    with h5py.File(one / "record.h5") as first, h5py.File(two / "record.h5") as second:
        assert first["structure/digest"][()].tolist() == second["structure/digest"][()].tolist()
        assert first["structure/widths"][()].tolist() == second["structure/widths"][()].tolist()
        assert 0 < first["structure/widths"][()].sum(1)[-1] < 32
    np.testing.assert_allclose(losses(one), losses(two), rtol=0, atol=1e-5)


PENALTIES = "[{name: group_lasso, strength: 1e-4, proximal: %s}, {name: l2, factors: usual, strength: 1e-3}]"


@pytest.mark.parallel
@pytest.mark.parametrize("proximal", ["true", "false"])
def test_penalties_in_sync_follow_one_rank_with_twice_the_batch(proximal, train, tmp_path):
    """Each rank adds the gradient of the whole penalty to the mean of all gradients."""
    options = (*MODEL, "--record.every_steps", "1", "--penalties", PENALTIES % proximal)
    one, two, plain = tmp_path / "one", tmp_path / "two", tmp_path / "plain"
    assert train(*options, "--run_dir", str(one), "--data.batch_size", "32").returncode == 0
    assert train(*options, "--run_dir", str(two), "--data.batch_size", "16", "--ranks", "2").returncode == 0
    np.testing.assert_allclose(losses(one), losses(two), rtol=0, atol=1e-5)
    np.testing.assert_allclose(epochs(one, "test_loss"), epochs(two, "test_loss"), atol=1e-5)
    assert train(*options[:-2], "--run_dir", str(plain), "--data.batch_size", "32").returncode == 0
    assert np.abs(losses(one) - losses(plain)).max() > 0.01  # they do something


@pytest.mark.parallel
def test_persyn_after_every_step_without_momentum_is_sync(train, tmp_path):
    """The mean of w - lr g_m over ranks is w - lr mean(g_m)."""
    options = (*MODEL, "--record.every_steps", "1", "--optimizer.momentum", "0.0", "--ranks", "2")
    sync, persyn = tmp_path / "sync", tmp_path / "persyn"
    assert train(*options, "--run_dir", str(sync)).returncode == 0
    done = train(*options, "--run_dir", str(persyn), "--exchange.name", "persyn", "--exchange.tau", "1")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(sync), losses(persyn), rtol=0, atol=1e-5)


def by_hand(values, ranks, tau):
    """Each rank in turn in one process, a plain loop; every tau steps all take the mean. Mean losses by step."""
    config = validate(values)
    dataset = data.load(config.data, config.seed)
    workers = []
    for rank in range(ranks):
        model = network.build(config.model, dataset, config.seed)
        feed = Feed(dataset, config.data, CPU, seed=config.seed, rank=rank, world_size=ranks)
        workers.append((model, optimizer.build(config.optimizer, model), feed))
    objective, seen, step = Objective(dataset.task, CPU, torch.float32), [], 0
    for epoch in range(config.epochs):
        for batches in zip(*(feed.epoch(epoch) for _, _, feed in workers), strict=True):
            step += 1
            of_step = []
            for (model, stepper, _), (inputs, targets) in zip(workers, batches, strict=True):
                stepper.zero_grad()
                minimised, loss = objective(model, inputs, targets)
                minimised.backward()
                stepper.step()
                of_step.append(loss.item())
            seen.append(np.mean(of_step))
            if tau and step % tau == 0:
                with torch.no_grad():
                    for same in zip(*(model.parameters() for model, _, _ in workers), strict=True):
                        mean = sum(same) / ranks
                        for parameter in same:
                            parameter.copy_(mean)
    return np.array(seen)


@pytest.mark.parallel
@pytest.mark.parametrize(("name", "tau"), [("persyn", 7), ("none", 0)])
def test_a_strategy_does_what_a_loop_by_hand_does(name, tau, train, tmp_path):
    exchange = {"name": name, **({"tau": tau} if tau else {})}
    values = {"epochs": 2, "data": {"name": "digits"}, "model": {"name": "mlp", "widths": [32]}, "exchange": exchange}
    run_dir = Path(tmp_path / "run")
    options = [*MODEL, "--record.every_steps", "1", "--ranks", "2", "--run_dir", str(run_dir), "--exchange.name", name]
    done = train(*options, *(["--exchange.tau", str(tau)] if tau else []))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(run_dir), by_hand(values, 2, tau), rtol=0, atol=1e-5)


@pytest.mark.parallel
@pytest.mark.parametrize(("payload", "ended_by"), [("float32", "epochs"), ("float16", "diverged")])
def test_gradients_that_float16_cannot_hold_end_the_run_as_diverged(payload, ended_by, train, tmp_path):
    (tmp_path / "steep.py").write_text(
        "import math\n\nfrom torch import nn\n\n\nclass Steep(nn.Linear):\n    def forward(self, images):\n"
        "        return 1e6 * super().forward(images.flatten(1))\n\n\n"
        "def build(input_shape, outputs):\n    return Steep(math.prod(input_shape), outputs)\n"
    )
    options = ("--data.name", "digits", "--model.name", "steep:build", "--optimizer.lr", "1e-12", "--epochs", "2")
    sync = ("--exchange.name", "sync", "--exchange.payload", payload, "--ranks", "2")
    done = train(*options, *sync, "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "run" / "record.h5") as file:
        assert (file.attrs["state"], file.attrs["ended_by"]) == (b"done", ended_by.encode())
        assert len(file["epochs/epoch"]) == (2 if ended_by == "epochs" else 1)
        assert bool(np.isfinite(file["epochs/train_loss"][()]).all()) == (ended_by == "epochs")
