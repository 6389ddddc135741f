"""What a run measured: ``record.h5``.

The tables live in memory and in every checkpoint, so that a resumed run never has a row twice or one missing;
the file is made anew from them and renamed into place, so a reader never sees half of one. (Appending to an HDF5
file in place was rejected: a killed writer can leave it unreadable.) Everything in it is under HDF5's own
checksums, so that a damaged record is an error and not a wrong figure: the columns' (fletcher32), and those of the
structure, which the format of HDF5 1.10 has and older ones have not. Texts are of fixed length (UTF-8 bytes), because
those of variable length lie in the one place without a checksum.

Schema 1: attributes ``schema_version``, ``run_id``, ``config`` (YAML), ``versions`` (JSON), ``world_size``,
``state``, ``ended_by``, ``answer_epoch``; groups ``epochs``, ``exchange``, ``profile`` and, where they apply,
``steps``, ``consensus``, ``ranks``, ``resized`` and ``lost``, each with one equal-length one-dimensional dataset a
column; and
``alrao`` (:class:`AlraoTable`) and ``structure`` (:class:`StructureTable`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from hpc.config.folder import sync_folder
from hpc.hdf5 import new_file

SCHEMA_VERSION: Final = 1

COLUMNS: Final[dict[str, dict[str, type]]] = {
    "epochs": {
        "epoch": int,
        "step": int,
        "seconds": float,
        "train_loss": float,
        "valid_loss": float,
        "valid_accuracy": float,
        "test_loss": float,
        "test_accuracy": float,
        "parameters": int,
        "lr": float,
    },
    "exchange": {
        "rank": int,
        "sent": int,
        "received": int,
        "skipped": int,
        "bytes_sent": int,
        "mass": float,
        "seconds_blocked": float,
    },
    "profile": {
        "data": float,
        "forward": float,
        "backward": float,
        "optimizer": float,
        "exchange": float,
        "evaluate": float,
        "checkpoint": float,
    },
    "steps": {"step": int, "loss": float},
    "consensus": {"step": int, "error": float},
    "ranks": {"rank": int, "valid_loss": float, "valid_accuracy": float, "test_loss": float, "test_accuracy": float},
    "resized": {"step": int, "ranks_before": int, "ranks": int},
    "lost": {"step": int, "rank": int, "survivors": int, "mass": float, "seconds": float},
}
"""Every table's columns and their types, in order. All times are in seconds."""

OPTIONAL: Final = frozenset({"steps", "consensus", "ranks", "resized", "lost"})
"""Tables that are left out of the file while they are empty."""


class Table:
    """Rows of numbers under fixed columns."""

    def __init__(self, columns: Mapping[str, type]) -> None:
        self._types = dict(columns)
        self.columns: dict[str, list[Any]] = {name: [] for name in columns}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def append(self, **row: float) -> None:
        """Add a row. Raises KeyError where its keys are not the columns."""
        if row.keys() != self.columns.keys():
            raise KeyError(f"got the columns {sorted(row)}, but the table has {sorted(self.columns)}")
        values = {name: self._types[name](value) for name, value in row.items()}  # all of them fit, or none is added
        for name, value in values.items():
            self.columns[name].append(value)

    def last(self) -> dict[str, Any]:
        """The last row; empty where there is none."""
        return {name: values[-1] for name, values in self.columns.items()} if len(self) else {}

    def clear(self) -> None:
        """Remove all rows."""
        for values in self.columns.values():
            values.clear()

    def arrays(self) -> "dict[str, np.ndarray[Any, Any]]":
        """Each column as int64 or float64."""
        return {
            name: np.array(values, np.int64 if self._types[name] is int else np.float64)
            for name, values in self.columns.items()
        }

    def load(self, arrays: Mapping[str, torch.Tensor]) -> None:
        """Take back columns, whatever rows were there before."""
        for name in self.columns:
            self.columns[name] = arrays[name].tolist()


class AlraoTable:
    """The group /alrao: the posterior over the heads of an Alrao network, and the rates of its units."""

    def __init__(self) -> None:
        self.rates: dict[str, torch.Tensor] = {}
        """The rates of each layer's units, as they were drawn."""
        self._steps: list[tuple[int, int, int]] = []
        self._posterior: list[list[float]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: int, posterior: list[float], heads_lost: int, units_lost: int) -> None:
        """Add a row: the probability of each head after so many steps, how many heads are lost, and how many units."""
        self._steps.append((step, heads_lost, units_lost))
        self._posterior.append(posterior)

    def arrays(self) -> "dict[str, np.ndarray[Any, Any]]":
        """Every dataset of the group by its name."""
        step, heads, units = np.array(self._steps, np.int64).reshape(-1, 3).T
        found = {"posterior": np.array(self._posterior, np.float64), "step": step}
        found |= {"heads_lost": heads, "units_lost": units}
        return found | {f"rates/{layer}": rates.double().numpy() for layer, rates in self.rates.items()}

    def state_dict(self) -> dict[str, Any]:
        """Rows and rates; empty where there are none."""
        if not self._steps:
            return {}
        rows = torch.tensor(self._steps), torch.tensor(self._posterior, dtype=torch.float64)
        return {"steps": rows[0], "posterior": rows[1], "rates": dict(self.rates)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._steps = [(step, heads, units) for step, heads, units in state["steps"].tolist()] if state else []
        self._posterior = state["posterior"].tolist() if state else []
        self.rates = dict(state["rates"]) if state else {}


class StructureTable:
    """The group /structure: how many units the coupled sets of a network that is pruned have after each epoch."""

    def __init__(self) -> None:
        self.layers: tuple[str, ...] = ()
        """The names of the sets: of the first layer of each."""
        self._widths: list[list[int]] = []
        self._phases: list[str] = []
        self._digests: list[str] = []
        self._floors: list[int] = []

    def __len__(self) -> int:
        return len(self._widths)

    @property
    def phase(self) -> str:
        """That the last epoch was trained in; empty where there is none."""
        return self._phases[-1] if self._phases else ""

    def append(self, widths: Mapping[str, int], phase: str, digest: str, floor: int) -> None:
        """Add an epoch.

        Args:
            widths: units of each set.
            phase: that the epoch was trained in.
            digest: of all that was cut since the start.
            floor: sets that would have lost all their units, and kept one.
        """
        self.layers = tuple(widths)
        self._widths.append(list(widths.values()))
        self._phases.append(phase)
        self._digests.append(digest)
        self._floors.append(floor)

    def arrays(self) -> "dict[str, np.ndarray[Any, Any]]":
        """Every dataset of the group by its name."""
        return {
            "widths": np.array(self._widths, np.int64),
            "layers": np.array([layer.encode() for layer in self.layers]),
            "phase": np.array([phase.encode() for phase in self._phases]),
            "digest": np.array([digest.encode() for digest in self._digests]),
            "floor": np.array(self._floors, np.int64),
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain lists, and the widths as a tensor; empty where there are none."""
        if not len(self):
            return {}
        return {
            "layers": list(self.layers),
            "widths": torch.tensor(self._widths),
            "phase": list(self._phases),
            "digest": list(self._digests),
            "floor": list(self._floors),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.layers = tuple(state["layers"]) if state else ()
        self._widths = state["widths"].tolist() if state else []
        self._phases, self._digests, self._floors = (
            list(state[key]) if state else [] for key in ("phase", "digest", "floor")
        )


class Record:
    """All tables of one run."""

    def __init__(self) -> None:
        self.tables = {name: Table(columns) for name, columns in COLUMNS.items()}
        self.alrao = AlraoTable()
        self.structure = StructureTable()
        self.answer_epoch = 0
        """The epoch whose network the run answers with; 0: the last."""

    def answer(self) -> dict[str, Any]:
        """The row of /epochs of the network that the run answers with; empty where there is none."""
        epochs = self["epochs"]
        if not self.answer_epoch:
            return epochs.last()
        place = epochs.columns["epoch"].index(self.answer_epoch)
        return {name: values[place] for name, values in epochs.columns.items()}

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Every column as a tensor."""
        columns = {
            name: {column: torch.from_numpy(array) for column, array in table.arrays().items()}
            for name, table in self.tables.items()
        }
        return {
            **columns,
            "alrao": self.alrao.state_dict(),
            "structure": self.structure.state_dict(),
            "answer": {"epoch": torch.tensor(self.answer_epoch)},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what :meth:`state_dict` gave."""
        for name, table in self.tables.items():
            table.load(state[name])
        self.alrao.load(state["alrao"])
        self.structure.load(state["structure"])
        self.answer_epoch = int(state["answer"]["epoch"])

    def write(self, path: Path, attributes: Mapping[str, Any]) -> None:
        """Replace the record's file. Raises OSError where it cannot be written; the old file then stays."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            with new_file(temporary) as file:
                file.attrs["schema_version"] = SCHEMA_VERSION
                for name, value in {**attributes, "answer_epoch": self.answer().get("epoch", 0)}.items():
                    file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
                for name, table in self.tables.items():
                    if name in OPTIONAL and not len(table):
                        continue
                    columns = file.create_group(name)
                    for column, array in table.arrays().items():
                        columns.create_dataset(column, data=array, fletcher32=len(array) > 0)
                for group, more in (("alrao", self.alrao), ("structure", self.structure)):
                    for name, array in more.arrays().items() if len(more) else ():
                        file.create_dataset(f"{group}/{name}", data=array, fletcher32=True)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
