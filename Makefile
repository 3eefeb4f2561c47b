# `make demo` and `make test` need nothing but Python: they create .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-faults test-faults-short test-slurm lint bench bench-full clean

demo: $(VENV)/.user
	$(BIN)/dmf demo --output demo.png
	find dmf -name '*.nb[ic]' -delete

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

# Jobs that meet faults at random moments; prints what became of each.
test-faults-short: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults -n 2 --faults 24

test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults -n 2 --faults 200 --full

# A Slurm of its own, from Debian's packages: as root it installs them.
test-slurm: $(VENV)/.dev
	$(BIN)/python -m pytest tests/slurm

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Where these two variables are set, they make OpenBLAS use an older, slower kernel.
MEASURE := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python -m

bench: $(VENV)/.dev
	$(MEASURE) benchmarks.kernels
	$(MEASURE) benchmarks.engine
	$(MEASURE) benchmarks.solvers

# Takes an hour or more, installs other libraries into .peers, writes benchmarks/results.
bench-full: bench
	$(MEASURE) benchmarks.engine --large
	$(MEASURE) benchmarks.model
	$(MEASURE) benchmarks.growth
	$(MEASURE) benchmarks.plan
	$(MEASURE) benchmarks.scaling
	$(MEASURE) benchmarks.imputation
	$(MEASURE) benchmarks.peers.compare

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# What a user needs, and what a developer needs; made anew when the requirements change.
$(VENV)/.user: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[plot]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .peers .pytest_cache .mypy_cache .ruff_cache demo.png
	find dmf -name '*.nb[ic]' -delete
