# Everything from a fresh clone: `make demo` trains, `make test` checks. Set-up happens by itself,
# in .venv, and again only when pyproject.toml or constraints.txt has changed.
#
#   make demo ARGS="seed=2"     overrides for the demo's configuration
#   make test ARGS="-k config"  options for pytest
#
# On Linux the package index's torch brings several GB of CUDA; for the CPU build alone:
#   make demo TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TORCH_OPTIONS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A looser specifier than the pinned version could pull another build, with CUDA.
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
SOURCES := arealite workflows examples benchmarks tests
# memory_lora.py trains 494 million parameters: by hand, where there is an evening.
BENCHMARKS = $(filter-out benchmarks/memory_lora.py,$(shell grep -l __main__ benchmarks/*.py 2>/dev/null))

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help venv demo test million kill-matrix launch-matrix test-vllm test-sglang check bench clean

help:
	@echo "make demo | test | million | kill-matrix | launch-matrix | test-vllm | test-sglang | check | bench | venv | clean"

# Two stamps: the demo needs no wandb and no mypy.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "arealite needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH_OPTIONS) "$(TORCH)"
	$(INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@

venv: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/python -m arealite.launch --config examples/countdown/cpu.yaml $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: check
	$(BIN)/python -m pytest $(ARGS)

# A million simulated versions under the staleness rule: minutes on two cores.
million: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m million

# The trainer dies at every named place, and at random times: `make kill-matrix ARGS="--random 50"`.
kill-matrix: $(VENV)/.installed-dev
	$(BIN)/python tests/faults/kill_matrix.py $(ARGS)

# Whole runs: every kind of process dies, every phase is stopped; ARGS=--short for one of each kind.
launch-matrix: $(VENV)/.installed-dev
	$(BIN)/python tests/faults/launch_matrix.py $(ARGS)

# Real servers on this CPU, each in an environment of its own, built once into .envs/ (AREALITE_ENVS).
test-vllm test-sglang: test-%: $(VENV)/.installed-dev
	@python=$$(TORCH_OPTIONS="$(TORCH_OPTIONS)" $(BIN)/python tests/servers/server_environment.py $*) && \
	AREALITE_$(shell echo $* | tr a-z A-Z)_PYTHON=$$python $(BIN)/python -m pytest -m $* $(ARGS)

bench: $(VENV)/.installed-dev
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
