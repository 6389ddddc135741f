"""How all figures look, and how they are saved: the same bytes for the same data."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from matplotlib.figure import Figure

WIDTH: Final = 7.0  # inches: the text width of a two-column page

# Okabe and Ito's colours without the yellow, which is lost on white; told apart with any colour vision.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
GREY: Final = "#8A8A8A"
_DASHES: Final = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")

_RC: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the same everywhere
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.2,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # letters stay letters: journals ask for it, and text can be searched
    "axes.formatter.useoffset": False,
    "text.usetex": False,
}


@dataclass(frozen=True)
class Look:
    """How one line is drawn: its dash and marker tell it apart in black and white."""

    colour: str
    dash: Any = "-"
    marker: str = ""


def look(place: int) -> Look:
    """The look of the place-th of a few lines; eight are distinct in each of colour and marker."""
    return Look(PALETTE[place % len(PALETTE)], _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)])


def style() -> AbstractContextManager[None]:
    """The settings of our figures, for as long as the context lasts; the caller's own come back after it."""
    # From matplotlib's defaults and not from the reader's own file of settings: figures are the same on all
    # machines. The backend is left alone; a figure brings its own canvas.
    defaults: dict[Any, Any] = {
        key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")
    }
    return mpl.rc_context({**defaults, **_RC})


def image(figure: Figure, kind: str) -> bytes:
    """The figure as `png` or `pdf`, without dates, so that equal figures are equal files."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    with style():
        figure.savefig(buffer, format=kind, metadata=metadata[kind])
    return buffer.getvalue()


def save(figure: Figure, out_dir: Path, name: str) -> list[Path]:
    """Writes the figure as `name.png` and `name.pdf`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in ("png", "pdf"):
        paths.append(out_dir / f"{name}.{kind}")
        paths[-1].write_bytes(image(figure, kind))
    return paths
