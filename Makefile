# `make demo` and `make test` need nothing but Python: they create .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What locks and audits dependencies has some of its own.
TOOLS := .tools

.PHONY: demo test test-slow test-faults test-faults-short test-slurm test-deploy test-cuda lock audit lint \
	bench bench-full clean

demo: $(VENV)/.user
	$(BIN)/dmf demo --output demo.png
	find dmf -name '*.nb[ic]' -delete

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not faults and not slow"

# What takes longer: peaks of memory, examples in full, commands on worker processes.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "slow and not faults"

# The kernels for GPUs, on one that numba-cuda simulates.
test-cuda: $(VENV)/.dev
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest -n 2 tests/cuda

# What kills workers and clients; then jobs that meet faults at random moments, with a table
# of what became of each.
test-faults-short: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m faults
	$(BIN)/python -m pytest tests/faults -n 2 --faults 24

test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults -n 2 --faults 200 --full

# A Slurm of its own, from Debian's packages: as root it installs them.
test-slurm: $(VENV)/.dev
	$(BIN)/python -m pytest tests/slurm

# The steps of the container, replayed in empty environments; what the manifests run.
test-deploy: $(VENV)/.dev
	$(BIN)/python -m pytest tests/deploy tests/test_deploy.py tests/test_kubernetes.py

# The versions that deployments install: of what dmf needs, and of what builds it; the same
# ones for each Python, as far as there are. No line names an index: whoever installs has one.
COMPILE := $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-header --no-emit-index-url --no-emit-find-links
EXTRAS := jobs pandas xarray s3 slurm kubernetes

lock: $(TOOLS)/.ready
	$(COMPILE) --upgrade $(EXTRAS:%=--extra %) pyproject.toml -o deploy/requirements.lock
	echo hatchling | $(COMPILE) --upgrade - -o deploy/build.lock

# Needs the network, and what nobody could look up is a failure, too.
audit: $(TOOLS)/.ready
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes -r deploy/requirements.lock
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes -r deploy/build.lock

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
	$(MEASURE) benchmarks.longrun
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

$(TOOLS)/.ready:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet uv pip-audit
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) .peers .pytest_cache .mypy_cache .ruff_cache demo.png
	find dmf -name '*.nb[ic]' -delete
