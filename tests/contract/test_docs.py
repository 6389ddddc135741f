"""What the documents say is so: links, commands, configurations, the reference, the code in them."""

import contextlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import structlearn
from hpc.config import yamls
from hpc.config.read import validate
from hpc.config.root import Config
from jobs.resources import Resources
from jobs.sweep import Sweep
from jobs.sweep import read as read_sweep

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in {"runs", "build", "shared"} for part in path.relative_to(ROOT).parts)
)
OURS = [path for path in PAGES if path.parent in {ROOT, ROOT / "docs"}]
KEYS = {field.name for field in fields(Config)}
SWEEP_KEYS = {
    f"{name}.{field.name}" for name, part in (("resources", Resources), ("sweep", Sweep)) for field in fields(part)
}

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SHELL = {"", "sh", "bash", "console", "text"}


def name(value: Any) -> str | None:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else None


def blocks(path: Path, languages: set[str]) -> list[str]:
    return [text for language, text in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as they are made from Markdown: small letters, hyphens for blanks."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target) if target else page
        assert file.exists(), f"{link}: there is no {file}"
        assert not anchor or anchor in anchors(file), f"{link}: {file.name} has no such heading"


# --- configurations ------------------------------------------------------------------------------------


def configurations() -> list[Any]:
    found = []
    for page in OURS:
        for number, text in enumerate(blocks(page, {"yaml", "yml"})):
            values = yamls.parse(text, str(page))
            if isinstance(values, dict) and KEYS & values.keys():
                found.append(pytest.param(values, id=f"{page.name}-{number}"))
    return found


@pytest.mark.parametrize("values", configurations())
def test_configurations_are_valid(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sweep" not in values:
        validate(values)
        return
    monkeypatch.setattr("jobs.sweep.check", lambda *_: None)  # its data need not be on this machine
    (tmp_path / "sweep.yaml").write_text(yamls.dump(values))
    assert len(read_sweep(tmp_path / "sweep.yaml").runs) > 1


def test_the_reference_is_current() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == made, (
        "python docs/make_configuration.py > docs/configuration.md"
    )


# --- commands ------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Every ``structlearn ...`` in code, as words."""
    lines = [span.replace("\n", " ") for span in SPAN.findall(prose(page))]
    for block in [*blocks(page, SHELL), *INDENTED.findall(prose(page))]:
        lines += block.replace("\\\n", " ").splitlines()
    for line in lines:
        if found := re.search(r"(?:^|[ /$|;])(structlearn [a-z-].*)", line):
            yield shlex.split(found[1], comments=True)[1:]


@pytest.mark.parametrize("page", OURS, ids=name)
def test_commands_options_and_keys_exist(page: Path) -> None:
    import typer

    from jobs.cli import app

    known: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    reference = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for command, *words in commands(page):
        if command == "--help":
            continue
        assert command in known, f"structlearn {command}: no such command"
        options = {option for parameter in known[command].params for option in parameter.opts} | {"--help"}
        given = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
        others = [word[2:] for word in given if word not in options]
        if command in {"train", "submit"}:
            others = [key for key in others if f"`{key}`" not in reference and f"`{key}: " not in reference]
        if command in {"submit", "doctor"}:  # what a sweep file has
            others = [key for key in others if key not in SWEEP_KEYS]
        assert not others, f"structlearn {command}: no option or key {others}"


# --- the code in record.md -----------------------------------------------------------------------------


@pytest.mark.slow
def test_record_md_describes_a_run_and_its_code_reads_it(train: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    done = train("--epochs", "1", "--progress", "none", "--record.every_steps", "5")
    assert done.returncode == 0, done.stderr
    page = ROOT / "docs" / "record.md"
    named_everywhere(page, tmp_path / "runs" / "example")
    code = blocks(page, {"python"})
    bare = [block for block in code if "torch" not in block and "analysis" not in block]
    assert (len(code), len(bare)) == (4, 2)
    check = "import sys\nassert not {'torch', 'hpc', 'structlearn', 'analysis', 'mpi4py'} & sys.modules.keys()\n"
    for program in ([*bare, check], code):
        line = [sys.executable, "-c", "\n".join(program)]
        ran = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "done epochs" in ran.stdout
        assert "head.weight float32 (10, 256)" in ran.stdout


def named_everywhere(page: Path, run_dir: Path) -> None:
    """Every attribute, table, column and field that a run wrote stands on the page."""
    import h5py

    text = page.read_text(encoding="utf-8")
    with h5py.File(run_dir / "record.h5") as record:
        said = [*record.attrs, *(f"/{name}" for name in record), *(key for table in record.values() for key in table)]
    said += json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    said += [path.name for path in run_dir.iterdir()]
    assert not [word for word in said if f"`{word}`" not in text and f"  {word}" not in text]


# --- the code in priors.md -----------------------------------------------------------------------------


def test_the_code_in_priors_md_prints_what_stands_below_it() -> None:
    """Words to the letter; numbers to five digits, and what is rounding must be rounding."""
    text = (ROOT / "docs" / "priors.md").read_text(encoding="utf-8")
    pairs = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(pairs) == len(blocks(ROOT / "docs" / "priors.md", {"python"})) == 5
    assert sum(said.count("residual ") for _, said in pairs) == 3
    names: dict[str, Any] = {}
    for code, said in pairs:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        found, wanted = printed.getvalue().split(), said.split()
        assert len(found) == len(wanted), printed.getvalue()
        for ours, its in zip(found, wanted, strict=True):
            if re.fullmatch(r"-?\d[\d.e+-]*", its):
                assert float(ours) == pytest.approx(float(its), rel=1e-5, abs=1e-11)
            else:
                assert ours == its


# --- one version ---------------------------------------------------------------------------------------


def test_all_files_give_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == structlearn.__version__ == citation["version"]
    assert project["license"] == citation["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{project['version']}]" in changes or f"## [Unreleased]\n\nThis will be {project['version']}" in changes


def test_citation_has_what_its_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"]
    assert citation["message"]
    assert all("name" in author or "family-names" in author for author in citation["authors"])
