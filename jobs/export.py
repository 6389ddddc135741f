"""``structlearn export``: the network that a run has ended with, in one file."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from hpc.errors import ConfigError, RunError

Format = Literal["pt2", "onnx", "safetensors"]
NEEDED: Final[dict[Format, tuple[str, ...]]] = {
    "pt2": (),
    "onnx": ("onnx", "onnxscript"),
    "safetensors": ("safetensors",),
}
"""The packages that a format takes beside torch."""


def export(run_dir: Path, kind: Format, out: Path) -> str:
    """Write the file; a sentence that says what it holds. All that can be known is checked before torch is loaded.

    Raises:
        ConfigError: there is no run, or the file cannot be one.
        RunError: a package is missing; or as :func:`hpc.export.export` says.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: no such folder; give the folder that a run was trained in")
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; give the name of a file in it, such as {out / f'network.{kind}'}")
    if missing := [name for name in ("torch", *NEEDED[kind]) if find_spec(name) is None]:
        raise RunError(
            f"export --format {kind} needs {' and '.join(missing)}, not installed here; "
            f"pip install 'structlearn[export]'"
        )
    from hpc.export import export as write

    done = write(run_dir, kind, out)
    said = [f"structlearn: {text}" for text in done.passed_over]
    return "\n".join([*said, f"export: {out} ({kind}, {done.parameters:,} parameters, {done.bytes:,} bytes)"])
