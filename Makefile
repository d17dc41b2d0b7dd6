# On a machine with Python >= 3.11, make and a network:
#   make demo       train a character model with torch.nn.LSTM and fastrnn.LSTM, compare, benchmark
#   make test       the tests, then the Triton kernels in Triton's interpreter
#   make lint       ruff, ruff format, mypy
#   make docs       the documentation as a site, in out/site; a link that leads nowhere is an error
#   make bench      the benchmark suite, about a minute; BENCH_ARGS="--grid full" for more
#   make bench-compare BASE=main   is what is committed here slower than BASE?
#   make gpu-check  parity, sanitizer and benchmarks on this machine's GPU; needs no network
#   make clean      remove what these made
# The first four install into $(VENV), once, exactly the versions in constraints.txt.

PYTHON ?= python3
VENV ?= .venv
# More for pip: PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" makes the
# download small on a machine without a GPU, PIP_ARGS="--no-index --find-links DIR" needs no network.
PIP_ARGS ?=
# More for pytest in `make test`, such as PYTEST_ARGS="-x -k lstm".
PYTEST_ARGS ?=
# A GPU machine often has its own PyTorch and no network: without $(VENV), take the Python at hand.
GPU_PYTHON ?= $(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON))
GPU_ARGS ?=
# More for pytest in `make bench`, and for benchmarks.compare_commits in `make bench-compare`.
BENCH_ARGS ?=
BASE ?=
HEAD ?= HEAD

BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
DOCS_STAMP = $(VENV)/.installed-docs
NUMBA = $(VENV)/numba
PIP = $(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: help install demo test test-host test-kernels test-interpreter test-numba lint docs bench bench-compare gpu-check clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "fastrnn needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@echo "== installing into $(VENV) (once; PyTorch is large, this can take minutes)"
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	@# setuptools first and pinned too: without isolation the build takes this one, not the newest
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@echo "== the demo: torch.nn.LSTM and fastrnn.LSTM, trained side by side"
	$(BIN)/python examples/char_lm.py --out out/char_lm.png
	@echo "== the backends on this machine"
	$(BIN)/python -m fastrnn backends
	@echo "== a short benchmark"
	$(BIN)/python -m fastrnn bench --preset quick

# The interpreter must be chosen before triton is imported and stays chosen, so that its tests run
# in a process of their own; another compiles the same kernels for four GPUs, and one has Numba, in a
# folder of its own, so that the others are what they are without. `make -j3` runs three at a time.
# One thread: tests are small, and threads that wait for one another are slow on a busy machine.
test: test-host test-kernels test-interpreter test-numba

test-host test-kernels test-interpreter test-numba: export OMP_NUM_THREADS ?= 1
test-host: $(STAMP)
	@echo "== the tests"
	$(BIN)/python -m pytest --ignore=tests/kernels --ignore=tests/numba $(PYTEST_ARGS)

test-kernels: $(STAMP)
	@echo "== the kernels, compiled for four GPUs"
	$(BIN)/python -m pytest -p no:cacheprovider tests/kernels $(PYTEST_ARGS)

test-interpreter: $(STAMP)
	@echo "== the Triton kernels, in Triton's interpreter"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -p no:cacheprovider \
		tests/kernels/test_interpreter*.py $(PYTEST_ARGS)

$(NUMBA)/.installed: $(STAMP)
	$(PIP) --no-deps --target $(NUMBA) numba llvmlite
	@touch $@

test-numba: $(NUMBA)/.installed
	@echo "== the backend numba"
	PYTHONPATH=$(NUMBA) $(BIN)/python -m pytest -p no:cacheprovider tests/numba $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Into the same environment, but not with it: only this needs them.
$(DOCS_STAMP): $(STAMP)
	$(PIP) --no-build-isolation -e ".[docs]"
	@touch $@

# mkdocs-material would praise its successor in every build.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS_STAMP)
	@echo "== the documentation, into out/site"
	$(BIN)/mkdocs build --strict

bench bench-compare: export OMP_NUM_THREADS ?= 1
bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-columns=median,iqr,rounds,iterations $(BENCH_ARGS)

bench-compare: $(STAMP)
	@test -n "$(BASE)" || { echo "bench-compare: name a commit: make bench-compare BASE=main" >&2; exit 2; }
	$(BIN)/python -m benchmarks.compare_commits $(BASE) $(HEAD) $(BENCH_ARGS)

gpu-check:
	PYTHONPATH=.:kernels:plugins$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -m benchmarks.gpu_check $(GPU_ARGS)

clean:
	rm -rf $(VENV) .venv-triton36 out build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
