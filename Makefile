# tunalab. Every habit is a target; `make help` lists them.
SHELL   := /bin/bash
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
VARIANT ?= all
SWEEP   ?= mask_ratio
RECORDS ?= results/figure6
# Where a sweep runs: a file of sweeps/launch/, by default on this machine.
LAUNCH  ?=
ARGS    ?=
# What `make evaluate` measures, one or several: run directories, exported folders.
RUN     ?= $(wildcard runs/figure6/*-seed*)
# `make sweep VARIANT=all` (or no VARIANT) trains every front-end that the sweep lists.
VARIANT_FLAG = $(if $(filter-out all,$(VARIANT)),--variant $(VARIANT))
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# The virtual environment, made again when what it should hold has changed.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed (PYTHON=python3.x)"; exit 2; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data,dev]'
	@touch $@

install: $(VENV)/.installed ## set up .venv with the exact versions of constraints.txt

components: install ## build the tiny tokenizer, VAE and encoder that are missing
	$(BIN)/tunalab components

sweep: components ## train a sweep: VARIANT=tuna2 (default all), SWEEP=mask_ratio, LAUNCH=slurm, ARGS="--dry-run" or key=value
	$(BIN)/tunalab sweep $(SWEEP) $(VARIANT_FLAG) $(if $(LAUNCH),--launch $(LAUNCH)) $(ARGS)

smoke: components ## all three front-ends, a few steps each
	$(BIN)/tunalab sweep smoke $(ARGS)

figure6: install ## draw Figure 6 from the committed records; train what has none
	$(BIN)/tunalab sweep figure6 $(ARGS)
	$(BIN)/tunalab figure figure6 --records results/figure6 --out results

mask-ratio-figure: install ## draw mask_ratio.png and the curves from the committed records
	$(BIN)/tunalab figure mask_ratio --records results/mask_ratio --out results
	$(BIN)/tunalab figure curves --records results/mask_ratio --out results/mask_ratio

table: install ## write the tables of the committed records
	$(BIN)/tunalab table --records results/figure6 --readme README.md
	$(BIN)/tunalab table --records results/mask_ratio

ablations: install ## tables and pictures of effects of the committed ablations; `make sweep SWEEP=front_ends` and the like train them
	set -e; for records in results/ablations/*/; do \
	  $(BIN)/tunalab table --records $${records%/}; $(BIN)/tunalab figure effects --records $${records%/} --out $${records%/}; done

evaluate: components ## measure trained models: RUN=runs/figure6/tuna2-seed0 (default all of Figure 6), ARGS="--parts NAME" or part.key=value
	$(BIN)/tunalab evaluate $(RUN) $(ARGS)

report: install ## one HTML page, and its Markdown, of the records in RECORDS (default results/figure6)
	$(BIN)/tunalab report --records $(RECORDS) $(ARGS)

dashboard: install ## open MLflow's page on a comparison of the runs
	$(BIN)/tunalab dashboard $(ARGS)

bench: components ## training and generation against their slow references; what the sweep took and reached
	$(BIN)/tunalab bench $(ARGS)

bench-gpu: install ## a training step at full scale on a CUDA device: its share of the card's own rate
	$(BIN)/tunalab bench --gpu $(ARGS)

lint: install ## ruff
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

types: install ## mypy
	$(BIN)/mypy src

test: install ## the tests
	$(BIN)/pytest

test-gpu: install ## tests that need a CUDA device
	$(BIN)/pytest -m gpu

test-chaos: install ## a sweep whose runs and drivers are killed at random times ends as an undisturbed one
	$(BIN)/pytest -m chaos -s

test-lmms: install ## tests of the published benchmarks; first installs the extra lmms (0.7 GB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data,dev,lmms]'
	$(BIN)/pytest -m lmms

test-slurm: components test-slurm-cluster ## sweeps on a SLURM of two nodes, installed from Debian's packages and started here (as root)
	$(BIN)/python -m pytest -m slurm --confcutdir tests/slurm tests/slurm/test_slurm_training.py

test-slurm-cluster: install ## the part of it that trains no model, four minutes: CI runs it
	$(BIN)/python -m pytest -m slurm --confcutdir tests/slurm tests/slurm/test_slurm_cluster.py

test-plans: install ## the plans in the headers of sweeps at full scale are what `tunalab plan` prints (two minutes)
	$(BIN)/pytest -m plans

test-browser: install ## the dashboard's comparison in headless Chromium; writes docs/dashboard.png
	tests/browser/start
	$(BIN)/pytest -m browser

test-mlflow: install ## runs whose MLflow server is away, dies or returns, and runs that are killed
	$(BIN)/pytest -m mlflow

gpu: ## all that needs a CUDA device, the most wanted figures first: bench-gpu, then test-gpu
	@status=0; $(MAKE) bench-gpu || status=$$?; $(MAKE) test-gpu || status=$$?; exit $$status

check: lint types test ## lint, types, tests: what CI runs

clean: ## remove runs and caches (not components, not results)
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache build src/*.egg-info

.PHONY: test-chaos help install components sweep smoke figure6 mask-ratio-figure table ablations evaluate report dashboard bench bench-gpu lint types test test-gpu test-lmms test-browser test-mlflow test-slurm test-slurm-cluster test-plans gpu check clean
