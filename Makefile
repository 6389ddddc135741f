# Two commands do everything: `make demo` and `make test`. Both make the environment first where it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Where coverage of every test is not wanted: make test PYTEST="-m 'not slow'"
PYTEST ?=

.PHONY: demo test lint types imports tests format clean

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/structlearn train examples/demo.yaml --ranks 2
	$(BIN)/structlearn report runs/demo --out runs/demo/report

test: lint types imports tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

tests: $(INSTALLED)
	$(BIN)/pytest $(PYTEST)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $@
