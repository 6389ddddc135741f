"""The table of this experiment, from what ``run.py`` wrote.

python experiments/export/figure.py [--results DIR] [--out DIR]
"""

from pathlib import Path

import pandas as pd

from analysis.experiment import folders, publish

HERE = Path(__file__).parent
FORMATS = {"pt2": "pt2", "onnx": "ONNX", "safetensors": "safetensors"}


def size(count: float) -> str:
    """Bytes, short."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"


def times(ratio: float) -> str:
    """How many times smaller."""
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each network: parameters and files, whole and pruned."""
    rows = []
    for case, mine in runs.groupby("case", sort=False):
        sides = mine.set_index(["part", "format"])
        whole, pruned = sides.loc["whole"], sides.loc["pruned"]
        row = {
            "network": case,
            "parameters": f"{whole.parameters.iloc[0]:,} → {pruned.parameters.iloc[0]:,}",
            "test accuracy": f"{pruned.test_accuracy.iloc[0]:.1f} %",
        }
        for kind, title in FORMATS.items():
            before, after = whole.bytes[kind], pruned.bytes[kind]
            row[title] = f"{size(before)} → {size(after)} ({times(before / after)})"
        row["largest difference"] = f"{mine.largest_difference.max():.1e}"
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    results, out = folders(__doc__, HERE)
    publish({"table": table(pd.read_csv(results / "runs.csv"))}, {}, out)


if __name__ == "__main__":
    main()
