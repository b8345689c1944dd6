# The words of daily work. Everything happens in .venv, from pyproject.toml with constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# mypy finds the package by its name through this link, whatever the checkout is called.
LINK := $(VENV)/link/lhopt
PACKAGES := benchmarks cli client core env inner_tasks optimizers policy server

.PHONY: setup demo test acceptance check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH; install Python 3.11 or set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]'
	mkdir -p $(VENV)/link && ln -sfn ../.. $(LINK)
	touch $@

demo: setup
	$(BIN)/lhopt demo

test: check
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# Every experiment in full (about 20 minutes), and one table of what was asked and found.
acceptance: setup
	$(BIN)/python -m pytest -m "slow or exact" -q

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/link $(BIN)/mypy $(addprefix -p lhopt.,$(PACKAGES))
	MYPYPATH=$(VENV)/link $(BIN)/mypy tests

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
