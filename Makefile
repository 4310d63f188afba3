# Every target sets itself up: a virtual environment in .venv, and the package in it. Choose another Python by
# `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help quickstart test test-servers test-gpu bench bench-gpu soak lint vllm-cpu sglang-cpu sglang-gpu clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

# The directory alone is no proof of a working environment: an interrupted set-up leaves one behind.
$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null || { echo "areal_x needs Python 3.11 or later; $(PYTHON) is not installed (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "areal_x needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1) (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment; install its venv and pip modules" >&2; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/base: $(STAMPS)/venv pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/venv pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(STAMPS)/base

$(STAMPS)/bench: $(STAMPS)/venv pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench,dev]'
	@touch $@ $(STAMPS)/base $(STAMPS)/dev

quickstart: $(STAMPS)/base ## train a small policy on arithmetic, in about a minute
	$(BIN)/areal-x train --config-name quickstart

lint: $(STAMPS)/dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

# Fast ones first; then those that start whole runs beside all others.
FAST_TESTS := tests/guards tests/config tests/cli tests/data
RUN_TESTS := tests/trainer tests/ray_cluster

test: lint ## lint, then all tests but the long proofs
	$(BIN)/python -m pytest -m "not soak" $(FAST_TESTS)
	@tests/side_by_side $(STAMPS)/runs.log '$(BIN)/python -m pytest -m "not soak" $(RUN_TESTS)' \
		'$(BIN)/python -m pytest -m "not soak" tests $(addprefix --ignore ,$(FAST_TESTS) $(RUN_TESTS) tests/servers)'

# The servers live in environments of their own, in a cache outside of the checkout; see requirements/.
vllm-cpu: $(STAMPS)/venv ## vLLM for a CPU, in an environment of its own
	requirements/build_environment.sh vllm_cpu $(BIN)/python

sglang-cpu: $(STAMPS)/venv ## SGLang for a CPU, for tests alone: its kernels are a stand-in
	requirements/build_environment.sh sglang_cpu $(BIN)/python

sglang-gpu: $(STAMPS)/venv ## SGLang for a GPU
	requirements/build_environment.sh sglang_gpu $(BIN)/python

# Those of SGLang and of the embedded engine beside those of vLLM: most of the time goes to starts of servers, which
# keep one core busy each.
test-servers: $(STAMPS)/dev ## the tests that start vLLM and SGLang
	@$(MAKE) --no-print-directory -j2 vllm-cpu sglang-cpu
	@tests/side_by_side $(STAMPS)/sglang.log '$(BIN)/python -m pytest -m "not soak" -k "sglang or [embedded" tests/servers' \
		'$(BIN)/python -m pytest -m "not soak" -k "not (sglang or [embedded)" tests/servers'

test-gpu: $(STAMPS)/dev ## the tests that need a CUDA device, and those of servers on it (what is installed)
	$(BIN)/python -m pytest -m "gpu and not soak" --ignore tests/servers
	AREAL_X_TEST_DEVICE=cuda $(BIN)/python -m pytest -m "not soak" tests/servers

soak: $(STAMPS)/dev vllm-cpu sglang-cpu ## the long proofs; their figures go to docs/benchmarks
	AREAL_X_SOAK_OUT=$(CURDIR)/docs/benchmarks $(BIN)/python -m pytest -m soak

bench: $(STAMPS)/bench vllm-cpu sglang-cpu ## all benchmarks; each prints its figure, the bound and the baseline
	$(BIN)/python benchmarks/run_all.py

bench-gpu: $(STAMPS)/dev ## the benchmarks of a GPU, at the shape of Qwen2.5-1.5B; the page is named after the machine
	$(BIN)/python benchmarks/bench_gpu.py

clean: ## remove the environment, caches and builds; runs and the environments of servers are kept
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
