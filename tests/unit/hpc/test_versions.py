"""The versions that a record holds."""

import json
import platform
from importlib import metadata

import h5py
import numpy as np
import torch

from hpc import versions as module
from hpc.versions import versions


def test_they_are_those_of_what_is_imported():
    found = versions("MPICH 5.0")
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["numpy"] == np.__version__
    assert found["h5py"] == h5py.__version__
    assert found["python"] == platform.python_version()
    assert found["machine"] == platform.machine()
    assert found["mpi"] == "MPICH 5.0"
    assert set(found) >= {"structlearn", "mpi4py"}


def test_they_are_plain_json_text():
    assert json.loads(json.dumps(versions("none"))) == versions("none")


def test_what_is_not_installed_is_said_to_be_so(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "version", missing)
    assert versions("none")["mpi4py"] == "not installed"
