"""The page: complete, self-contained, and safe to open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import analysis
from analysis.__main__ import main
from analysis.report import report

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., Any]


ROOT = Path(analysis.__file__).parents[1]


class Page(HTMLParser):
    """The links, images, texts and tags of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_what_it_links_is_there(sweep: Path, tmp_path: Path) -> None:
    file = report(sweep, tmp_path / "out")
    assert file == tmp_path / "out" / "index.html"
    page = Page(file)
    beside = [link for link in page.links if not link.startswith("data:")]
    assert all(not link.startswith(("http:", "https:", "//", "/")) for link in beside)
    assert all((file.parent / link).is_file() for link in beside)
    assert sum(link.startswith("data:image/png;base64,") for link in page.links) == 2
    assert not {"script", "link", "iframe"} & set(page.tags)
    text = file.read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    for name in ("learning_curves", "time_profile"):
        for kind in ("png", "pdf"):
            assert (file.parent / f"{name}.{kind}").stat().st_size > 1000


def test_the_page_says_what_the_runs_are_and_what_they_reached(sweep: Path, tmp_path: Path) -> None:
    text = Page(report(sweep, tmp_path / "out")).text
    assert "12 runs of 4 settings (mlp on digits): 12 done." in text
    assert "Highest test accuracy: 99.34 ± 0.03 % (exchange.name=sync, world 2)." in text
    assert "easgd (3), gossip (6), sync (3)" in text
    assert "id-gossip-w4-s1" in text
    assert "Problems" not in text


def test_problems_and_failed_runs_are_seen(sweep: Path, tmp_path: Path, write_run: Make, config_of: Make) -> None:
    (sweep / "sync-w2-s1" / "record.h5").write_bytes(b"cut")
    write_run(sweep / "bad", config=config_of(seed=9), state="failed", ended_by="diverged")
    file = report(sweep, tmp_path / "out")
    text = Page(file).text
    assert "Problems 1 run is missing from this page" in text
    assert str(sweep / "sync-w2-s1" / "record.h5") in text
    assert 'class="badge failed">failed · diverged' in file.read_text(encoding="utf-8")
    assert len(json.loads((file.parent / "provenance.json").read_text(encoding="utf-8"))["problems"]) == 1


def test_a_run_that_diverged_or_broke_off_is_not_shown_as_done(
    tmp_path: Path, write_run: Make, config_of: Make
) -> None:
    write_run(tmp_path / "in" / "good")
    write_run(tmp_path / "in" / "wild", config=config_of(seed=1), ended_by="diverged")
    write_run(tmp_path / "in" / "dead", config=config_of(seed=2), state="running", ended_by="")
    status = {"state": "failed", "error": "<rank 1> died"}
    (tmp_path / "in" / "dead" / "status.json").write_text(json.dumps(status))
    file = report(tmp_path / "in", tmp_path / "out")
    page = Page(file)
    assert "1 done, 1 failed, 1 diverged" in page.text
    assert "dead <rank 1> died" in page.text
    assert 'class="badge diverged">diverged<' in file.read_text(encoding="utf-8")


def test_the_same_records_give_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    report(sweep, tmp_path / "one")
    report(sweep, tmp_path / "two")
    one = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert one == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in one:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_what_others_wrote_is_text_and_never_markup(tmp_path: Path, write_run: Make, config_of: Make) -> None:
    evil = "<script>alert(1)</script>"
    config = config_of(model__name=evil, note='"><img src=x>')
    write_run(tmp_path / "in" / "<b>run", config=config, run_id=evil, ended_by=evil)
    write_run(tmp_path / "in" / "other", config=config_of(model__name="mlp"))
    (tmp_path / "in" / "<i>bad").mkdir()
    (tmp_path / "in" / "<i>bad" / "record.h5").write_bytes(b"")
    page = Page(report(tmp_path / "in", tmp_path / "out"))
    assert not {"script", "b" + "r" + "un", "i"} & set(page.tags)
    assert page.tags.count("img") == 2
    assert evil in page.text


@pytest.mark.parametrize("epochs", [0, 1, 10])
def test_a_single_run_of_any_length_has_a_page(tmp_path: Path, write_run: Make, epochs: int) -> None:
    write_run(tmp_path / "a", epochs=epochs, state="done" if epochs else "running")
    page = Page(report(tmp_path / "a", tmp_path / "out"))
    assert page.text.startswith("a · results")
    assert ("No run has finished an epoch" in page.text) == (epochs == 0)


def test_runs_without_exchange_are_told_so(
    tmp_path: Path,
    write_run: Make,
    columns_of: Make,
) -> None:
    columns = columns_of(2, 0, 0.4, 1)
    columns["exchange"]["sent"][:] = 0
    write_run(tmp_path / "a", columns=columns, world=1)
    assert "No run has sent anything to another rank." in Page(report(tmp_path / "a", tmp_path / "out")).text


def test_values_that_are_no_numbers_do_not_stop_a_page(
    tmp_path: Path,
    write_run: Make,
    columns_of: Make,
) -> None:
    columns = columns_of(4, 0, 0.4, 1)
    for name, column in columns["epochs"].items():
        if column.dtype.kind == "f" and name != "seconds":
            column[:] = float("nan")
    columns["exchange"]["mass"][:] = float("inf")
    write_run(tmp_path / "in" / "a", columns=columns, world=1, state="failed", ended_by="diverged")
    write_run(tmp_path / "in" / "b")
    assert "1 done, 1 failed" in Page(report(tmp_path / "in", tmp_path / "out")).text
    assert report(tmp_path / "in" / "a", tmp_path / "alone").exists()


def test_the_command_prints_the_page_or_one_line(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'index.html'}\n"
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    (sweep / "sync-w2-s1" / "record.h5").write_bytes(b"cut")
    assert main([str(sweep), "--out", str(tmp_path / "out"), "--strict"]) == 2


def a_file(out: Path) -> None:
    out.write_text("mine", encoding="utf-8")


def a_file_above(out: Path) -> None:
    out.parent.write_text("mine", encoding="utf-8")


def a_folder_for_the_page(out: Path) -> None:
    (out / "index.html").mkdir(parents=True)


def a_full_disk(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "runs.csv").symlink_to("/dev/full")


def no_rights(out: Path) -> None:
    out.mkdir(parents=True)
    out.chmod(0o555)
    if os.access(out, os.W_OK):
        pytest.skip("the superuser may write anywhere")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (a_file, "out is no folder"),
        (a_file_above, "is no folder"),
        (a_folder_for_the_page, "Is a directory"),
        (a_full_disk, "No space left on device"),
        (no_rights, "Permission denied"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_in_one_line(
    spoil: Callable[[Path], None],
    reason: str,
    write_run: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_run(tmp_path / "a")
    out = tmp_path / "new" / "out"
    if spoil is not a_file_above:
        out.parent.mkdir()
    spoil(out)
    assert main([str(tmp_path / "a"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out: {out} cannot be written to (")
    assert reason in error
    assert error.endswith("; choose another folder, or make room there\n")
    assert error.count("\n") == 1


def test_a_report_needs_neither_torch_nor_mpi_nor_the_packages_that_train(sweep: Path, tmp_path: Path) -> None:
    program = """
import sys
for name in ("torch", "mpi4py", "structlearn", "hpc", "jobs", "matplotlib.pyplot"):
    sys.modules[name] = None
from analysis.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-W", "error", "-c", program, str(sweep), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "index.html").exists()


def test_a_missing_package_is_named_with_how_to_get_it() -> None:
    program = "import sys; sys.modules['pandas'] = None; import analysis"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "analysis needs pandas, which is not installed: pip install 'structlearn[analysis]'" in done.stderr
