"""What importing loads, in fresh interpreters: a linter sees import statements, not what they end up loading."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def loaded_by(*modules: str) -> set[str]:
    """The names of all modules that are loaded after importing some, in an interpreter of its own."""
    program = f"import sys, {', '.join(modules)}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules_of(*packages: str) -> list[str]:
    """A package and everything in it; a ``__main__`` acts when it is imported, so it is left out."""
    found = list(packages)
    for package in packages:
        path = str(ROOT / package.replace(".", "/"))
        found += [module.name for module in pkgutil.walk_packages([path], f"{package}.")]
    return [name for name in found if not name.endswith("__main__")]


def test_the_command_line_loads_neither_torch_nor_mpi() -> None:
    names = modules_of("jobs")
    assert {"jobs.cli", "jobs.train", "jobs.doctor"} <= set(names)
    loaded = loaded_by(*names)
    assert "hpc.config.read" in loaded
    assert not loaded & {"torch", "mpi4py", "h5py", "submitit", "structlearn", "analysis", "pandas", "matplotlib"}
    assert not loaded & {"hpc.rank", "hpc.run", "hpc.engine", "hpc.comm"}


def test_the_configuration_loads_neither_torch_nor_mpi() -> None:
    loaded = loaded_by(*modules_of("hpc.config"), "hpc.errors")
    assert not loaded & {"torch", "mpi4py", "h5py", "numpy", "structlearn"}


def test_a_rank_loads_no_torch_before_it_has_met_the_others() -> None:
    loaded = loaded_by("hpc.rank")
    assert "hpc.comm" in loaded
    assert not loaded & {"torch", "mpi4py", "h5py", "structlearn", "hpc.run"}


def test_hpc_itself_loads_nothing() -> None:
    assert {name for name in loaded_by("hpc") if name.startswith("hpc")} == {"hpc"}
    assert "torch" not in loaded_by("hpc")


def test_importing_all_of_hpc_starts_no_mpi() -> None:
    loaded = loaded_by(*modules_of("hpc"))
    assert {"torch", "hpc.run", "hpc.comm"} <= loaded
    assert not loaded & {"mpi4py", "mpi4py.MPI", "jobs", "analysis", "pandas", "matplotlib"}


def test_analysis_loads_nothing_of_training() -> None:
    pytest.importorskip("pandas")
    loaded = loaded_by(*modules_of("analysis"))
    assert "analysis.report" in loaded
    assert not loaded & {"torch", "mpi4py", "structlearn", "hpc", "jobs", "submitit"}


def test_structlearn_waits_with_torch_until_a_method_is_asked_for() -> None:
    loaded = loaded_by("structlearn")
    assert not loaded & {"torch", "numpy"}
    assert {name for name in loaded if name.startswith("structlearn")} == {"structlearn"}


def test_structlearn_loads_nothing_of_ours_beside_itself() -> None:
    loaded = loaded_by(*modules_of("structlearn"))
    assert "torch" in loaded
    assert not loaded & {"hpc", "jobs", "analysis", "mpi4py", "h5py", "pydantic", "yaml", "typer"}


def test_structlearn_names_torch_numpy_and_the_standard_library_only() -> None:
    """The import rules can only forbid what somebody thought of; this allows what is allowed."""
    allowed = sys.stdlib_module_names | {"torch", "numpy", "structlearn"}
    named: dict[str, set[str]] = {}
    for path in (ROOT / "structlearn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                named.setdefault(name.partition(".")[0], set()).add(path.name)
    assert "torch" in named
    assert {name: files for name, files in named.items() if name not in allowed} == {}
