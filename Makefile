# make demo | test | test-fast | test-slow | lint | bench

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-slow lint bench clean

demo: $(READY)
	$(BIN)/asyn2f run --config=configs/digits.py --workdir=runs/demo --overwrite

# Three at a time on two cores, as many of them wait. What measures times comes last.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not timed"
	$(BIN)/python -m pytest -n 2 -m "timed and not slow"

test-fast: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not processes"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m tests.bench

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"error: found Python {v[0]}.{v[1]}, needed: 3.11 or newer; try make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
