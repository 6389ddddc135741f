"""What goes wrong while ranks start ends all of them, with a message; what asks them to stop is heard."""

import json
import os
import re
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
    # Either of them: the sleeper, too, has not seen the other.
    assert re.search(r"structlearn: rank [01]: waited 3 s for the other ranks to start MPI", done.stderr), done.stderr


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
    program = at_home(tmp_path)
    for rank in range(2):
        table(tmp_path / str(rank) / "table.csv", seed=rank)
    options = ("--data.name", "tabular", "--data.root", "table.csv", "--data.task", "regression")
    run = (*options, "--data.target", "[y]", "--model.widths", "[4]", "--data.batch_size", "8")
    done = ranks(2, str(program), "train", *run, "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert "rank 1 reads other samples than rank 0" in done.stderr


def at_home(folder):
    """A program that starts each of two ranks in a folder of its own, as if on nodes that share nothing."""
    for rank in range(2):
        (folder / str(rank)).mkdir()
    program = folder / "each_its_own.py"
    program.write_text(
        "import os, sys\n"
        "rank = os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))\n"
        "os.chdir(os.path.join(os.path.dirname(__file__), rank))\n"
        "from jobs.cli import main\n"
        "main()\n"
    )
    return program


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


@pytest.mark.parallel
def test_ranks_that_do_not_share_the_run_folder_are_refused(ranks, tmp_path):
    """Each would keep its part of every checkpoint, and none could be loaded."""
    program = at_home(tmp_path)
    done = ranks(2, str(program), "train", *SMALL, "--run_dir", "run")
    assert done.returncode == 2, done.stderr
    assert "rank 1 does not see the run of rank 0" in done.stderr


@pytest.mark.parallel
def test_ranks_that_would_meet_at_other_places_are_refused(ranks, tmp_path):
    """Nothing of the result depends on this key; the collectives do."""
    program = tmp_path / "own_key.py"
    program.write_text(
        "import os, sys\n"
        "rank = os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))\n"
        "sys.argv += ['--checkpoint.every_epochs', str(int(rank) + 1)]\n"
        "from jobs.cli import main\n"
        "main()\n"
    )
    done = ranks(2, str(program), "train", *SMALL, "--run_dir", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert "rank 1 has another configuration than rank 0 (checkpoint.every_epochs 2, not 1)" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("after", ["stopped", "done"])
def test_signals_at_the_end_do_not_change_the_exit_code(after, train, tmp_path):
    """A second scancel, or the grace signal after a preemption, comes while torch and MPI are taken down."""
    program = tmp_path / "slow_end.py"
    program.write_text(
        "import atexit, os, signal, sys, time\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.1)))\n"
        "from jobs.cli import main\n"
        "main()\n"
    )
    env = EARLY | {"EARLY": "torch term 0"} if after == "stopped" else {}
    done = train(*SMALL, "--run_dir", "run", env=env, program=(str(program),))
    assert done.returncode == (75 if after == "stopped" else 0), done.stderr
    assert state(tmp_path / "run") == after


@pytest.mark.parallel
def test_a_run_that_is_done_stays_done(train, tmp_path):
    """Whatever becomes of a second start."""
    options = (*SMALL, "--run_dir", str(tmp_path / "run"), "--ranks", "2")
    assert train(*options).returncode == 0
    again = train(*options, env=EARLY | {"EARLY": "torch kill 1"})
    assert again.returncode == 75, again.stderr
    assert state(tmp_path / "run") == "done"


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code"), [(("--epochs", "x"), 2), (("--print_config",), 1)])
def test_a_message_that_nobody_can_read_changes_no_exit_code(arguments, code, train):
    with Path("/dev/full").open("w") as full:
        assert train(*arguments, stdout=full, stderr=full).returncode == code
