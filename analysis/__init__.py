"""Tables and figures from what runs have recorded.

    from analysis import load

    records = load("runs/sweep")
    records.runs[["run", "config.exchange.name", "test_accuracy"]]

`python -m analysis runs/sweep --out report` writes the page, tables and figures. Nothing here needs the
packages that trained: only files, numpy, pandas and matplotlib.
"""

try:
    # Not later, on demand: the function would then be hidden by the module of the same name.
    from analysis.load import Records, load
    from analysis.schema import RecordError
except ModuleNotFoundError as error:
    message = f"analysis needs {error.name}, which is not installed: pip install 'structlearn[analysis]'"
    raise ModuleNotFoundError(message, name=error.name) from error

__all__ = ["RecordError", "Records", "load"]
