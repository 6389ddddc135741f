"""What the scripts of an experiment share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import experiment

HERE = Path("experiments/one")


def test_a_script_that_runs_takes_a_file_and_a_folder():
    options = experiment.parser("What it does.", HERE)
    options.add_argument("--seeds", type=int)
    given = options.parse_args([])
    assert (given.file, given.results, given.seeds) == (HERE / "small.yaml", HERE / "results", None)
    given = options.parse_args(["full.yaml", "--results", "there", "--seeds", "2"])
    assert (given.file, given.results, given.seeds) == (Path("full.yaml"), Path("there"), 2)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], (HERE / "results", HERE / "results")),
        (["--results", "there"], (Path("there"), HERE / "results")),
        (["--results", "there", "--out", "made"], (Path("there"), Path("made"))),
    ],
)
def test_a_script_that_draws_takes_two_folders(monkeypatch, arguments, found):
    monkeypatch.setattr(sys, "argv", ["figure.py", *arguments])
    assert experiment.folders("What it does.", HERE) == found


def test_help_shows_the_docstring_as_it_stands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figure.py", "--help"])
    with pytest.raises(SystemExit):
        experiment.folders("First line.\n\n    python figure.py\n", HERE)
    assert "First line.\n\n    python figure.py\n" in capsys.readouterr().out


def test_frames_are_kept_with_six_digits(tmp_path):
    frame = pd.DataFrame({"step": [1, 2], "error": [1 / 3, None], "state": ["done", "not, finite"]})
    experiment.keep({"steps": frame, "late": frame[["step"]]}, tmp_path / "results")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert kept == {"steps.csv": b'step,error,state\n1,0.333333,done\n2,,"not, finite"\n', "late.csv": b"step\n1\n2\n"}


def test_tables_are_written_and_printed_and_figures_written(tmp_path, capsys):
    out = tmp_path / "out"
    frame = pd.DataFrame({"side": ["α", "β"], "share": [0.5, 1.0]})
    experiment.publish({"table": frame, "table-late": frame[:1]}, {"figure": Figure()}, out)
    tables = {f"{name}.{ending}" for name in ("table", "table-late") for ending in ("csv", "md", "tex")}
    assert {path.name for path in out.iterdir()} == tables | {"figure.png", "figure.pdf"}
    first, second = ((out / f"{name}.md").read_text(encoding="utf-8") for name in ("table", "table-late"))
    assert capsys.readouterr().out == f"{first}\n{second}\n"
    assert "α" in first
    assert "β" not in second


def test_a_script_that_runs_loads_no_matplotlib():
    program = "import sys, analysis.experiment, analysis.rows; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "False\n"
