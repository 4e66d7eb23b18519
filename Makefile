# make demo: the whole flow on generated scenes      make test: the test suite      make check: format, lint, types, test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# one file of tests at a time on each of two processes, each with one thread
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow test-faults fuzz check format clean

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: $(VENV)/installed-dev
	$(PYTEST)

# a quantization killed 20 times; about 15 minutes
test-slow: $(VENV)/installed-dev
	$(PYTEST) -m slow

# the slow half of docs/reliability.md: kills, many fuzz examples, memory over thousands of repetitions
test-faults: $(VENV)/installed-dev
	$(PYTEST) -m slow tests/scripts/test_fuzz.py tests/scripts/test_endurance.py tests/scripts/test_long_runs.py

# each reader of files for SECONDS seconds, led by coverage; what it finds is left in build/fuzz
SECONDS := 600
fuzz: $(VENV)/installed-dev
	$(BIN)/python -m pip install -q atheris==3.0.0
	mkdir -p build/fuzz
	for reader in $$($(BIN)/python -m tests.fuzz); do \
	    $(BIN)/python -m tests.fuzz $$reader -max_total_time=$(SECONDS) -artifact_prefix=build/fuzz/$$reader- || exit 1; \
	done

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) demo

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@
