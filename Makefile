# The commands of this repository: `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
EXTRAS := data,baselines,llm,compress,online,render,report,dev
# One file stays in one process: fixtures and compiled code are made once a file.
# What was skipped, and why, is said where nobody watches.
PYTEST := pytest -n 2 --dist loadfile $(if $(CI),-rs)
NEWEST_TESTS = $(or $(wildcard tests/envs tests/sim),tests)

.PHONY: help setup demo test test-newest test-all check lint types docs kernel kernel-check bench clean distclean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.stamp  ## make the virtual environment .venv

demo: setup  ## run a closed loop and show what comes out
	$(BIN)/l4s-gym demo

test: setup  ## run the fast tests
	$(BIN)/python -c 'from l4s_gym.sim.batch import compile_engine; compile_engine()'
	$(BIN)/$(PYTEST)

test-all: setup  ## run all tests, the slow ones too
	$(BIN)/python -c 'from l4s_gym.sim.batch import compile_engine; compile_engine()'
	$(BIN)/$(PYTEST) -m ''

test-newest: .venv-newest/.stamp  ## run the tests of the core with the newest Gymnasium
	.venv-newest/bin/python -c 'import gymnasium; print("gymnasium", gymnasium.__version__)'
	.venv-newest/bin/python -c 'from l4s_gym.sim.batch import compile_engine; compile_engine()'
	.venv-newest/bin/$(PYTEST) $(NEWEST_TESTS)

check: lint types test  ## what everybody runs: lint, format, types, fast tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy
	for name in imitation paper tuned; do $(BIN)/mypy benchmarks/studies/$$name/run.py; done

docs: .venv/.docs  ## build the docs site into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: build/docs/index.html"

kernel: setup  ## build the Linux router, the bridge daemon and the test traffic
	$(MAKE) -C kernel

kernel-check: setup  ## build the kernel side with gcc, clang, sanitizers and for FreeBSD, and lint it
	PYTHON=../$(BIN)/python kernel/check.sh

bench: setup  ## fill the leaderboard, measure speed, and compare the simulator with its peers
	$(BIN)/python benchmarks/leaderboard.py
	$(BIN)/python benchmarks/studies/speed/run.py
	$(BIN)/python benchmarks/studies/fidelity/run.py
	$(BIN)/python benchmarks/studies/linux/run.py
	$(BIN)/python benchmarks/studies/sim_to_real/run.py
	$(BIN)/python benchmarks/studies/data_speed/run.py
	$(BIN)/python benchmarks/studies/intervals/run.py
	@echo "Real packets, as root: $(BIN)/python benchmarks/studies/live/run.py"

clean:  ## remove caches and build outputs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	$(MAKE) -C kernel clean
	find agents benchmarks datasets docs examples l4s_gym tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the virtual environments too
	rm -rf .venv .venv-newest

# make_venv FOLDER: a virtual environment of the first Python that is new enough.
define make_venv
	python=
	for name in $(PYTHON) python3 python3.13 python3.12 python3.11; do
	    if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi
	done
	if [ -z "$$python" ]; then echo "make: needs Python 3.11 or newer (or: make PYTHON=/path/to/python)" >&2; exit 1; fi
	if [ ! -x $(1)/bin/python ] || ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then
	    rm -rf $(1)
	    echo "Making $(1) with $$("$$python" --version) ..."
	    if ! "$$python" -m venv $(1) >$(1).log 2>&1; then
	        cat $(1).log >&2; rm -rf $(1) $(1).log
	        echo "make: '$$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
	        exit 1
	    fi
	    rm -f $(1).log
	fi
endef

# torch goes first and alone, so that a build for the CPU that pip finds beside the index is taken.
.venv/.stamp: pyproject.toml constraints.txt
	@$(call make_venv,.venv)
	echo "Installing PyTorch (the first time this takes some minutes) ..."
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	echo "Installing l4s-gym and what its tests need ..."
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

.venv/.docs: .venv/.stamp
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

.venv-newest/.stamp: pyproject.toml constraints.txt
	@$(call make_venv,.venv-newest)
	echo "Installing l4s-gym with the newest Gymnasium ..."
	grep -v '^gymnasium==' constraints.txt >.venv-newest/constraints.txt
	.venv-newest/bin/python -m pip install -qq --disable-pip-version-check --upgrade -c .venv-newest/constraints.txt \
	    -e ".[render,report]" gymnasium hypothesis pytest pytest-xdist
	touch $@

.ONESHELL:
