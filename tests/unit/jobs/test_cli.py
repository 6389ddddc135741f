"""The command line: what it prints, where, and with which exit code."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hpc.config.folder import ended
from hpc.config.launcher import promise
from hpc.config.read import schema, to_yaml, validate
from hpc.config.root import Config
from hpc.errors import LOST, ConfigError, RunError
from hpc.signals import StopRequest
from jobs import cli, train
from jobs.launch import Ended
from jobs.watch import HOST

Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def structlearn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Called:
    """The command in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["structlearn", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return call


# --- train ---------------------------------------------------------------------------------------------


def test_the_resolved_configuration_is_printed(structlearn: Called, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 3\nmodel: {name: cnn}\n", encoding="utf-8")
    code, out, err = structlearn("train", "c.yaml", "--print_config", "--epochs", "7", "--optimizer.lr=1e-2")
    assert (code, err) == (0, "")
    assert out == to_yaml(validate({"seed": 3, "model": {"name": "cnn"}, "epochs": 7, "optimizer": {"lr": 0.01}}))
    assert validate(yaml.safe_load(out)).epochs == 7
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize("arguments", [[], ["--seed", "0"], ["--seed=0"], ["--data.name", "digits", "--seed", "0"]])
def test_without_a_file_the_first_override_is_no_file(arguments: list[str], structlearn: Called) -> None:
    assert structlearn("train", *arguments, "--print_config") == (0, to_yaml(Config()), "")


def test_options_may_stand_anywhere(structlearn: Called, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 3", encoding="utf-8")
    for arguments in (
        ("--print_config", "c.yaml", "--epochs", "4"),
        ("c.yaml", "--print_config", "--epochs", "4"),
        ("c.yaml", "--epochs", "4", "--print_config"),
    ):
        code, out, _ = structlearn("train", *arguments)
        assert (code, out) == (0, to_yaml(validate({"seed": 3, "epochs": 4})))


def test_the_schema_is_printed(structlearn: Called) -> None:
    code, out, err = structlearn("train", "--print_schema")
    assert (code, json.loads(out), err) == (0, schema(), "")


def test_the_examples_fit_the_schema() -> None:
    """Only where jsonschema happens to be installed: editors check with it, we do not need it."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft202012Validator(schema())
    for path in (Path(__file__).parents[3] / "examples").glob("*.yaml"):
        validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not validator.is_valid({"epochs": 0})


def test_the_examples_are_configurations() -> None:
    from hpc.config.read import read

    examples = list((Path(__file__).parents[3] / "examples").glob("*.yaml"))
    assert examples
    for path in examples:
        assert read(path) != Config()


# --- exit codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        ([], 2),
        (["nothing"], 2),
        (["train", "--epochs", "0"], 2),
        (["train", "nowhere.yaml"], 2),
        (["train", "--ranks", "many"], 2),
        (["report"], 2),
        (["doctor", "--nothing"], 2),
        (["doctor", "--sweep", "sweep.yaml"], 2),
        (["doctor", "--test-job", "--epochs", "3"], 2),
        (["doctor", "--test-job", "--resources.nothing", "3"], 2),
        (["doctor", "--test-job", "--sweep", "nowhere.yaml"], 2),
        (["doctor", "--test-job", "--wait", "0"], 2),
        (["report", "nowhere", "--out", "page"], 1),
    ],
)
def test_exit_codes(arguments: list[str], code: int, structlearn: Called) -> None:
    found, out, err = structlearn(*arguments)
    assert found == code
    assert "Traceback" not in out + err
    if code and arguments:
        assert (out, err.count("structlearn: ")) == ("", 1)
    else:
        assert "Usage: structlearn" in out


@pytest.mark.parametrize("code", [0, 1, 75])
def test_what_training_returns_is_the_exit_code(
    code: int, structlearn: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train", lambda *_, **__: code)
    assert structlearn("train") == (code, "", "")


def test_interrupted_by_the_keyboard_before_training(structlearn: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    code, _, err = structlearn("train")
    assert code == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(("rank", "words"), [(None, "a message"), ("0", "a message"), ("1", "")])
def test_rank_0_speaks_for_all(
    rank: str | None, words: str, structlearn: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise RunError("a message")

    monkeypatch.setattr(train, "train", fail)
    if rank is not None:
        monkeypatch.setenv("PMI_SIZE", "2")
        monkeypatch.setenv("PMI_RANK", rank)
    assert structlearn("train") == (1, "", f"structlearn: {words}\n" if words else "")


# --- how ranks are started -----------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """What would have been launched."""
    for variable in ("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(variable, raising=False)
    calls: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(train, "find_spec", lambda name: name)
    monkeypatch.setattr(train, "check_mpiexec", lambda *_, **__: None)

    def launch(ranks: int, line: list[str], _stop: object, *, tolerant: bool) -> Ended:
        assert not tolerant
        calls.append((ranks, list(line)))
        ended(Path(line[3]), "done", "", 0)
        return Ended(0, asked=False)

    monkeypatch.setattr(train, "launch", launch)
    return calls


def test_ranks_train_what_is_frozen(structlearn: Called, launched: list[tuple[int, list[str]]], tmp_path: Path) -> None:
    assert (
        structlearn("train", "--ranks", "2", "--run_dir", "r", "--progress", "plain", "--json", "--seed", "5")[0] == 0
    )
    assert launched == [(2, [sys.executable, "-m", "hpc.rank", "r", "--progress", "plain", "--json"])]
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text(encoding="utf-8"))["seed"] == 5


def test_ranks_inside_a_slurm_job_stay_on_this_machine(
    structlearn: Called, launched: list[tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert structlearn("train", "--ranks", "1")[0] == 0
    assert [ranks for ranks, _ in launched] == [1]


def test_a_wrong_configuration_starts_no_rank(
    structlearn: Called, launched: list[tuple[int, list[str]]], tmp_path: Path
) -> None:
    code, _, err = structlearn("train", "--ranks", "2", "--model.name", "lstm")
    assert (code, launched, list(tmp_path.iterdir())) == (2, [], [])
    assert "model.name: lstm" in err


@pytest.mark.parametrize(("missing", "ranks"), [("torch", 1), ("sklearn", 1), ("mpi4py", 2)])
def test_what_training_needs_is_looked_for_first(
    missing: str,
    ranks: int,
    structlearn: Called,
    launched: list[tuple[int, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: None if name == missing else name)
    code, _, err = structlearn("train", "--ranks", str(ranks))
    assert (code, launched) == (1, [])
    assert "training needs" in err


@pytest.mark.parametrize(
    ("variable", "ranks", "fine"),
    [("PMI_SIZE", "2", True), ("PMI_SIZE", "3", False), ("OMPI_COMM_WORLD_SIZE", "3", False)],
)
def test_a_launcher_has_the_last_word_on_the_number(
    variable: str, ranks: str, fine: bool, launched: list[tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "2")
    monkeypatch.setattr(train, "check", lambda *_: None)

    def go() -> None:
        train._train(None, [], promise(), int(ranks), StopRequest(), progress="none", as_json=False)

    if fine:  # it goes on to join the ranks
        monkeypatch.setattr(train, "_check_installed", lambda *_: (_ for _ in ()).throw(RunError("joins")))
        with pytest.raises(RunError, match="joins"):
            go()
    else:
        with pytest.raises(ConfigError, match=f"already started 2 \\({variable}\\)"):
            go()
    assert launched == []


@pytest.mark.parametrize(("code", "state"), [(1, "failed"), (2, "failed"), (75, "stopped")])
def test_a_sign_of_life_after_the_last_word_does_not_leave_a_run_running(
    code: int, state: str, structlearn: Called, launched: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A rank says why it ends the others; before it has, rank 0 overwrites the status with where it is."""

    def launch(_ranks: int, line: list[str], _stop: object, *, tolerant: bool) -> Ended:
        assert not tolerant
        status = {"state": "running", "heartbeat": time.time(), "step": 7}
        (Path(line[3]) / "status.json").write_text(json.dumps(status), encoding="utf-8")
        return Ended(code, asked=False)

    monkeypatch.setattr(train, "launch", launch)
    assert structlearn("train", "--ranks", "2", "--run_dir", "r")[0] == code
    status = json.loads((tmp_path / "r" / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["exit_code"], status["step"]) == (state, code, 7)


@pytest.mark.parametrize(("said", "again"), [("", True), ("noise\nstructlearn: rank 1: it broke, badly\n", False)])
def test_a_last_word_that_mpiexec_dropped_is_said_again(
    said: str, again: bool, structlearn: Called, launched: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends without reading all that a rank has written, where that rank ends it at once."""

    def launch(_ranks: int, line: list[str], _stop: object, *, tolerant: bool) -> Ended:
        assert not tolerant
        ended(Path(line[3]), "failed", "rank 1: it broke, badly\n(and more)", 1)
        return Ended(1, asked=False, said=said)

    monkeypatch.setattr(train, "launch", launch)
    code, _, err = structlearn("train", "--ranks", "2", "--run_dir", "r")
    assert code == 1
    assert ("structlearn: rank 1: it broke, badly\n(and more)" in err) == again


def test_who_was_lost_is_said_where_the_others_could_not_know(
    structlearn: Called, launched: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def launch(_ranks: int, line: list[str], _stop: object, *, tolerant: bool) -> Ended:
        assert not tolerant
        victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        sign = {"rank": 1, "pid": victim.pid, "host": HOST, "heartbeat": time.time(), "doing": "training", "step": 7}
        (Path(line[3]) / "logs").mkdir(exist_ok=True)
        (Path(line[3]) / "logs" / "rank-0001.json").write_text(json.dumps(sign))
        time.sleep(0.3)
        victim.kill()
        time.sleep(0.3)
        victim.wait()
        ended(Path(line[3]), "stopped", f"rank 0: {LOST} (Exception: Other MPI error)", 75)
        return Ended(75, asked=False, said=f"structlearn: rank 0: {LOST} (Exception: Other MPI error)")

    monkeypatch.setattr(train, "launch", launch)
    code, _, err = structlearn("train", "--ranks", "2", "--run_dir", "r")
    assert code == 75, err
    assert err.startswith("structlearn: rank 1 (")
    assert err.endswith("last seen training at step 7, was the first to end\n")
    status = json.loads((tmp_path / "r" / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert status["error"].endswith("last seen training at step 7, was the first to end")


# --- export --------------------------------------------------------------------------------------------


def test_export_says_what_it_wrote(structlearn: Called, tmp_path: Path) -> None:
    """The command itself; what is in the files is the business of tests/unit/hpc/test_export.py."""
    pytest.importorskip("safetensors")
    model = ("--epochs", "1", "--data.train_size", "64", "--model.widths", "[8]", "--progress", "none")
    assert structlearn("train", "--run_dir", "run", *model)[0] == 0
    code, out, err = structlearn("export", "run", "--format", "safetensors", "--out", "out/net.safetensors")
    file = tmp_path / "out" / "net.safetensors"
    assert (code, err) == (0, "")
    assert out == f"export: out/net.safetensors (safetensors, 610 parameters, {file.stat().st_size:,} bytes)\n"


def test_what_is_missing_is_said_before_torch_is_loaded(structlearn: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run").mkdir()
    monkeypatch.setattr("jobs.export.find_spec", lambda name: None if name in {"torch", "safetensors"} else name)
    code, _, err = structlearn("export", "run", "--format", "safetensors", "--out", "net")
    assert code == 1
    assert err == (
        "structlearn: export --format safetensors needs torch and safetensors, not installed here; "
        "pip install 'structlearn[export]'\n"
    )


# --- the real command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_json_is_the_last_line_and_alone_on_standard_output(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = ["--epochs", "1", "--data.train_size", "64", "--model.widths", "[8]", "--run_dir", "run"]
    line = [sys.executable, "-m", "jobs", "train", *options, "--json"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    (only,) = done.stdout.splitlines()
    found = json.loads(only)
    assert list(found) == [
        "run_dir", "state", "ended_by", "epochs", "steps", "parameters", "test_accuracy", "test_loss", "valid_accuracy",
        "seconds", "world_size", "exchange",
    ]  # fmt: skip
    assert (found["run_dir"], found["state"], found["epochs"], found["steps"]) == ("run", "done", 1, 2)
    assert "epoch 1/1" in done.stderr


def test_the_clusters_of_the_command_line_are_those_that_there_are() -> None:
    from typing import get_args

    from jobs.cli import Cluster
    from jobs.clusters import CLUSTERS

    assert list(get_args(Cluster)) == list(CLUSTERS)
