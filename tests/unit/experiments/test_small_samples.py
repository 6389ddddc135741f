"""Small samples: which runs are made, on which images; how strengths are chosen; what is tested, and compared."""

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra analysis is not installed")
HERE = Path(__file__).parents[3] / "experiments" / "small_samples"
METHODS = ["none", "weight_decay", "dropout", "shade", "reve"]


@pytest.fixture(scope="module")
def parts():
    names = ["run", "figure"]
    sys.path.insert(0, str(HERE))
    try:
        yield [__import__(name) for name in names]
    finally:
        sys.path.remove(str(HERE))
        for name in names:
            del sys.modules[name]


@pytest.fixture
def small():
    from hpc.config import yamls

    return yamls.load(HERE / "small.yaml")


def own(monkeypatch, run, count=80, side=16, seed=0):
    """Noise in place of the files of Fashion-MNIST."""
    import torch

    from hpc import data
    from hpc.data.dataset import Part, Source

    generator = torch.Generator().manual_seed(seed)

    def part(samples):
        pixels = torch.randint(256, (samples, 1, side, side), dtype=torch.uint8, generator=generator)
        return Part(pixels, torch.arange(samples) % 10)

    source = Source(part(count), None, part(40), tuple("abcdefghij"))
    monkeypatch.setattr(data, "_read", lambda _: source)
    run.images.cache_clear()


def test_a_plan_has_all_methods_and_sizes_and_seeds_of_its_own_to_choose_by(parts, small):
    run, _ = parts
    assert [samples for samples, _ in small["sizes"]] == [100, 250, 500, 1000, 5000]
    assert small["seeds"] == 5
    assert not set(small["choosing_seeds"]) & set(range(small["seeds"]))
    assert all(steps % small["looks"] == 0 for _, steps in small["sizes"])  # so that the last network is looked at
    found = list(run.choices(small, 250))
    assert len(set(found)) == len(found)
    assert list(dict.fromkeys(each.method for each in found)) == METHODS


def test_the_best_mean_on_validation_chooses_and_of_equal_ones_the_least(parts):
    run, _ = parts
    plan = {"choosing_seeds": [7, 8], "methods": {"none": [0], "shade": [0.1, 0.01], "reve": [0.1, 0.01]}}
    accuracies = {
        ("none", "0"): (0.5, 0.5),
        ("shade", "0.1"): (0.9, 0.1),
        ("shade", "0.01"): (0.4, 0.7),
        ("reve", "0.1"): (0.5, 0.5),
        ("reve", "0.01"): (0.5, 0.5),
    }
    rows = [
        {"samples": "100", "method": method, "strength": strength, "seed": str(seed), "valid_accuracy": str(value)}
        for (method, strength), values in accuracies.items()
        for seed, value in zip((7, 8), values, strict=True)
    ]
    reported = {**rows[2], "strength": "0.1", "seed": "0", "valid_accuracy": "1"}
    elsewhere = {**rows[2], "samples": "250", "valid_accuracy": "1"}
    best = run.chosen([reported, elsewhere, *rows], plan, 100)
    assert best == {"none": "0", "shade": "0.01", "reve": "0.01"}


@pytest.mark.parametrize("clutter", [False, True])
def test_images_of_a_smaller_number_are_among_those_of_a_larger_and_as_many_of_each_class(parts, monkeypatch, clutter):
    run, _ = parts
    from hpc.config import yamls

    own(monkeypatch, run, count=200)
    settings = yamls.dump({"name": "fashion-mnist", "validation": 0.25, "batch_size": 10, "normalize": "none"})
    few, some, other = (
        run.images(settings, count, seed, "cpu", clutter=clutter)[0] for count, seed in ((20, 3), (50, 3), (20, 4))
    )
    seen = [{each.numpy().tobytes() for each in dataset.train.inputs} for dataset in (few, some, other)]
    assert seen[0] < seen[1]
    assert seen[0] != seen[2]
    assert few.train.targets.bincount().tolist() == [2] * 10
    assert few.valid.inputs.equal(some.valid.inputs)
    assert not seen[1] & {each.numpy().tobytes() for each in some.valid.inputs}


def test_inputs_go_from_minus_one_to_one(parts, monkeypatch):
    run, _ = parts
    from hpc.config import yamls

    own(monkeypatch, run)
    settings = yamls.dump({"name": "fashion-mnist", "validation": 0.25, "batch_size": 20, "normalize": "none"})
    _, feed = run.images(settings, 60, 0, "cpu", clutter=False)
    inputs = next(iter(feed.evaluation("test")))[0]
    assert (inputs.min().item(), inputs.max().item()) == (-1.0, 1.0)


def test_a_black_image_becomes_a_texture_of_its_own_and_a_white_one_its_negative(parts):
    run, _ = parts
    import torch

    from hpc.data.dataset import Part

    black = torch.zeros(2, 1, 14, 14, dtype=torch.uint8)
    black[1, 0, 0, 0] = 1  # another image
    texture = run.cluttered(Part(black, torch.arange(2)), 3).inputs.float()
    assert texture.std() > 20
    assert (texture[0] - texture[1]).abs().mean() > 20
    again = run.cluttered(Part(black[1:], torch.arange(1)), 3).inputs
    assert again.equal(texture[1:].byte())
    assert not run.cluttered(Part(black[1:], torch.arange(1)), 4).inputs.equal(again)
    rough = (texture[:, :, 1:] - texture[:, :, :-1]).abs().mean()
    assert rough < texture.std()  # neighbours are alike

    white = Part(torch.full((1, 1, 14, 14), 255, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    shown = run.cluttered(white, 3).inputs[0].float()
    coarse = np.random.default_rng([3, zlib.crc32(white.inputs[0].numpy())]).random((1, 1, 7, 7))
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse).float(), size=(14, 14), mode="bilinear")
    assert (shown - 255 * (1 - smooth[0])).abs().max() <= 0.51


def test_the_network_is_that_of_the_source(parts):
    run, _ = parts
    import torch

    from hpc.data.dataset import DataSet, Part

    part = Part(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    dataset = DataSet("own", "classification", part, part, part, (3, 32, 32), 10, torch.zeros(1), torch.ones(1), ())
    network = run.build(dataset, 64)
    assert network.head.in_features == 1024  # B 4.4.3.1, at MNIST-M's 32 x 32 pixels
    shapes = [tuple(each.shape) for name, each in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(64, 3, 5, 5), (64, 64, 3, 3), (64, 64, 3, 3), (10, 1024)]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_starts_like_all_and_is_changed_by_its_method(parts, monkeypatch, method):
    run, _ = parts
    own(monkeypatch, run)
    plan = {
        "choosing_seeds": [9], "looks": 2, "filters": 3, "rate": 0.003, "device": "cpu", "cluttered": False,
        "data": {"name": "fashion-mnist", "validation": 0.25, "batch_size": 10, "normalize": "none"},
    }  # fmt: skip
    bare = run.train(plan, run.Run("60", "none", "0", "1"), 8)
    mine = run.train(plan, run.Run("60", method, "0.5" if method == "dropout" else "0", "1"), 8)
    weak = {key: value for key, value in mine.items() if key not in {"method", "strength", "seconds"}}
    same = weak == {key: bare[key] for key in weak}
    assert same == (method != "dropout")  # at strength 0 all others train what none trains
    strong = run.train(plan, run.Run("60", method, "0.9" if method == "dropout" else "0.3", "1"), 8)
    assert (strong["train_loss"] != mine["train_loss"]) == (method != "none")
    assert mine["state"] == "done"
    choosing = run.train(plan, run.Run("60", method, "0", "9"), 2)
    assert "test_accuracy" not in choosing
    assert "valid_accuracy" in choosing


def test_gains_are_between_runs_of_a_seed(parts):
    _, figure = parts
    values = {("none", 0): 70, ("none", 1): 80, ("shade", 0): 73, ("shade", 1): 79}
    rows = [
        {"samples": 100, "method": method, "seed": seed, "test_accuracy": value}
        for (method, seed), value in values.items()
    ]
    found = figure.gains(pd.DataFrame(rows))
    assert found.shade.tolist() == [3, -1]
    assert figure.spread(found.shade, "+") == f"+1.00 ± {8**0.5:.2f}"


def test_strengths_on_show_are_those_that_were_chosen(parts):
    _, figure = parts
    rows = [
        {"samples": 100, "method": method, "strength": strength, "seed": seed, "valid_accuracy": value + seed}
        for method, strength, value in [("none", 0, 50), ("shade", 0.1, 40), ("shade", 0.01, 60), ("shade", 1.0, 60)]
        + [(method, 0.1, 30) for method in ("weight_decay", "dropout", "reve")]
        for seed in (0, 1)
    ]
    shown = figure.strengths(pd.DataFrame(rows))
    assert shown[shown.method == "SHADE"]["100 images"].tolist() == ["60.5", "40.5", "**60.5**"]
    assert shown[shown.method == "none"]["100 images"].tolist() == ["50.5"]


@pytest.mark.parametrize("folder", ["", "cluttered", "longer", "stronger"])
def test_what_is_kept_is_what_the_plan_says(parts, folder):
    run, figure = parts
    from hpc.config import yamls

    plan = yamls.load(HERE / f"{folder or 'small'}.yaml")
    kept = pd.read_csv(HERE / "results" / folder / "runs.csv", dtype=str).to_dict("records")
    planned = set()
    for samples, _ in plan["sizes"]:
        planned |= set(run.choices(plan, samples))
        for method, strength in run.chosen(kept, plan, samples).items():
            planned |= {run.Run(str(samples), method, strength, str(seed)) for seed in range(plan["seeds"])}
    assert {run.Run(*(row[name] for name in run.Run._fields)) for row in kept} == planned
    steps = dict(plan["sizes"])
    assert all(int(row["steps"]) == steps[int(row["samples"])] for row in kept)
    compared, choosing = figure.read(HERE / "results" / folder / "runs.csv")
    assert set(compared.seed) == set(range(plan["seeds"]))
    assert set(choosing.seed) == set(plan["choosing_seeds"])
