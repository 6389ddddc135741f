"""What goes wrong while ranks start ends all of them, with a message; what asks them to stop is heard."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
EARLY = {"PYTHONPATH": f"{ROOT / 'tests' / 'support' / 'early'}{os.pathsep}{ROOT}"}
SMALL = ("--epochs", "2", "--data.name", "digits", "--data.batch_size", "8", "--model.widths", "[8]")


def state(run_dir):
    return json.loads((run_dir / "status.json").read_text())["state"]


@pytest.mark.parallel
@pytest.mark.parametrize("module", ["torch", "mpi4py"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_load_a_library_ends_all(module, rank, ranks, tmp_path):
    """The others wait for it in MPI's start, where nothing else could tell them."""
    run = ("-m", "jobs", "train", *SMALL, "--run_dir", str(tmp_path / "run"))
    done = ranks(2, *run, env=EARLY | {"EARLY": f"{module} raise {rank}"})
    assert done.returncode == (1 if module == "torch" else 2), done.stderr
    assert done.stderr.count("structlearn: ") == 1
    assert f"structlearn: rank {rank}: " in done.stderr
    assert "a library is missing on this node" in done.stderr


@pytest.mark.parallel
def test_a_rank_that_never_comes_to_mpi_is_waited_for_no_longer_than_agreed(ranks, tmp_path):
    run = ("-m", "jobs", "train", *SMALL, "--run_dir", str(tmp_path / "run"), "--compute.deadline_s", "3")
    done = ranks(2, *run, env=EARLY | {"EARLY": "mpi4py sleep 1"})
    assert done.returncode != 0
    assert "structlearn: rank 0: waited 3 s for the other ranks to start MPI" in done.stderr


@pytest.mark.parallel
@pytest.mark.parametrize("number", [1, 2])
def test_a_signal_while_torch_is_loaded_stops_the_run(number, ranks, train, tmp_path):
    """Alone, and under a launcher that is not ours."""
    run_dir = tmp_path / "run"
    options = (*SMALL, "--run_dir", str(run_dir))
    early = EARLY | {"EARLY": f"torch term {number - 1}"}
    done = train(*options, env=early) if number == 1 else ranks(number, "-m", "jobs", "train", *options, env=early)
    assert done.returncode == 75, done.stderr
    assert state(run_dir) == "stopped"
    assert list((run_dir / "checkpoints").glob("step-*/manifest.json"))
    again = train(*options) if number == 1 else ranks(number, "-m", "jobs", "train", *options)
    assert again.returncode == 0, again.stderr
    assert "resumed at epoch" in again.stdout


@pytest.mark.parallel
def test_ranks_with_different_samples_are_refused(ranks, tmp_path):
    """One file on every node, under one name: nobody looks into all of them."""
    program = tmp_path / "each_its_own.py"
    program.write_text(
        "import os, sys\n"
        "rank = os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))\n"
        "os.chdir(os.path.join(os.path.dirname(__file__), rank))\n"
        "from jobs.cli import main\n"
        "main()\n"
    )
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        table(tmp_path / str(rank) / "table.csv", seed=rank)
    options = ("--data.name", "tabular", "--data.root", "table.csv", "--data.task", "regression")
    run = (*options, "--data.target", "[y]", "--model.widths", "[4]", "--data.batch_size", "8")
    done = ranks(2, str(program), "train", *run, "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert "rank 1 reads other samples than rank 0" in done.stderr


def table(path, seed):
    values = np.random.default_rng(seed).normal(size=(100, 4))
    path.write_text("a,b,c,y\n" + "\n".join(",".join(f"{value:.6f}" for value in row) for row in values) + "\n")


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_samples(train, tmp_path):
    table(tmp_path / "table.csv", seed=0)
    options = ("--data.name", "tabular", "--data.root", "table.csv", "--data.task", "regression")
    run = (*options, "--data.target", "[y]", "--model.widths", "[4]", "--data.batch_size", "8", "--run_dir", "run")
    assert train(*run, "--epochs", "1").returncode == 0
    table(tmp_path / "table.csv", seed=1)
    done = train(*run, "--epochs", "1")
    assert done.returncode == 2, done.stderr
    assert "the samples are not those that this run was trained on" in done.stderr
    assert state(tmp_path / "run") == "done"  # a mistake in how it is started again says nothing about it


@pytest.mark.slow
@pytest.mark.parametrize("progress", ["plain", "bar"])
@pytest.mark.parametrize("number", ["1", "2"])
def test_a_run_whose_output_nobody_can_read_trains_on(progress, number, train, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = train(*SMALL, "--run_dir", "run", "--progress", progress, "--ranks", number, stdout=full)
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "run") == "done"
