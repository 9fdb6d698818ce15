# tunalab. Every habit is a target; `make help` lists them.
SHELL   := /bin/bash
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
VARIANT ?= all
SWEEP   ?= mask_ratio
RECORDS ?= results/figure6
# Figure 6: of each skill the level at which models neither fail nor are all right (results/PREREGISTRATION.md).
PANELS  ?= relations charts@2 ocr pairs@2 search@2 count pattern easy_vqa
# Records that speak about claims of which those of Figure 6 cannot.
CLAIMS  ?= results/ablations/masking
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

# Sets up $(VENV): made anew where it is missing, half made, was made for another folder (a copy of this checkout would run the
# original's code) or by another interpreter than PYTHON names; filled again where the lists of packages have changed.
define SET_UP
set -euo pipefail
# Of two calls at a time one waits: both would write into the same folder.
if command -v flock >/dev/null; then exec 9<Makefile; flock 9 || true; fi
fail() { echo "error: $$*" >&2; exit 2; }
interpreter() { "$$1" -c 'import sys; print(sys.version.split()[0], sys.base_prefix)' 2>/dev/null; }
check_python() {
    interpreter "$$TUNALAB_PYTHON" >/dev/null || fail "PYTHON=$$TUNALAB_PYTHON does not run: name another with PYTHON=python3.x"
    "$$TUNALAB_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
        || fail "PYTHON=$$TUNALAB_PYTHON is older than Python 3.11: name another with PYTHON=python3.x"
    "$$TUNALAB_PYTHON" -c 'import venv, ensurepip' 2>/dev/null \
        || fail "PYTHON=$$TUNALAB_PYTHON cannot make virtual environments: install its module venv (Debian: python3-venv), or name another"
}
lists=$$(cat setup.cfg pyproject.toml constraints.txt | cksum)
stamp=$$(cat "$$VENV/.installed" 2>/dev/null || true)
there=$$(interpreter "$$VENV/bin/python" || true)
named=$$there
if [ "$(origin PYTHON)" != file ]; then check_python; named=$$(interpreter "$$TUNALAB_PYTHON"); fi
ours=; if [ -n "$$there" ] && [ "$$named" = "$$there" ] && [ "$${stamp%%$$'\n'*}" = "$$PWD" ]; then ours=yes; fi
if [ "$$ours" ] && [ "$$stamp" = "$$PWD"$$'\n'"$$lists" ]; then exit 0; fi

if [ -z "$$ours" ] || ! "$$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    check_python
    # Only what is a virtual environment, or ours by its name, is ever removed.
    if [ -e "$$VENV" ] && [[ "$$VENV" != .venv* ]] && [ ! -e "$$VENV/pyvenv.cfg" ]; then
        fail "VENV=$$VENV is there and is no virtual environment: name another folder"
    fi
    rm -rf "$$VENV"
    "$$TUNALAB_PYTHON" -m venv "$$VENV" || fail "$$TUNALAB_PYTHON could not make the virtual environment $$VENV, see above"
fi
case "$${WAS_PIP_USER:-}" in ""|0|no|false|off) ;; *) echo "PIP_USER=$$WAS_PIP_USER is ignored: packages go into $$VENV" ;; esac
echo "installing the packages of setup.cfg into $$VENV (7 GB, some minutes)"
printf '%s\n' "$$PWD" > "$$VENV/.installed"
"$$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data,dev]' \
    || fail "the packages could not be installed, see above; the next call goes on"
printf '%s\n%s\n' "$$PWD" "$$lists" > "$$VENV/.installed"
endef
export SET_UP VENV
export TUNALAB_PYTHON := $(PYTHON)
export WAS_PIP_USER := $(PIP_USER)
# What a user has set for other programs must not lead pip or Python out of the virtual environment.
override export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONPATH PYTHONHOME

install: ## set up .venv with the exact versions of constraints.txt
	@bash -c "$$SET_UP"

components: install ## list and verify the tiny tokenizer, VAEs and encoders
	$(BIN)/tunalab components

drawings: install ## make drawings/, the art of the drawings corpus, from packages of npm (a minute, network)
	test -f drawings/art.npz || $(BIN)/tunalab drawings --to drawings

# Instead of the tiny ones: a collection of this name stands before the one that comes with tunalab.
DRAWN = TUNALAB_COMPONENTS=drawings/components $(BIN)/tunalab

drawings-components: drawings ## encoders and VAEs for 64 px, trained on the drawings (hours of a core; it goes on where it was stopped)
	set -e; for seed in 0 1 2; do $(DRAWN) components train --collection tiny --drawings drawings --seed $$seed \
	  encoder.image_size=64 'encoder.snapshots=[3000]' vae.image_size=64 vae.steps=2000; done

figure6-drawings: drawings-components ## train Figure 6 on drawings: nine runs, from components that know drawings
	$(DRAWN) sweep figure6_drawings $(ARGS)

sweep: install ## train a sweep: VARIANT=tuna2 (default all), SWEEP=mask_ratio, LAUNCH=slurm, ARGS="--dry-run" or key=value
	$(BIN)/tunalab sweep $(SWEEP) $(VARIANT_FLAG) $(if $(LAUNCH),--launch $(LAUNCH)) $(ARGS)

smoke: install ## all three front-ends, a few steps each
	$(BIN)/tunalab sweep smoke $(ARGS)

figure6: install ## draw Figure 6 from the committed records; train what has none
	$(BIN)/tunalab sweep figure6 $(ARGS)
	$(BIN)/tunalab figure figure6 --records results/figure6 --out results --panels $(PANELS)

mask-ratio-figure: install ## draw mask_ratio.png and the curves from the committed records
	$(BIN)/tunalab figure mask_ratio --records results/mask_ratio --out results
	$(BIN)/tunalab figure curves --records results/mask_ratio --out results/mask_ratio

table: install ## write the tables of the committed records
	$(BIN)/tunalab table --records results/figure6 --readme README.md --panels $(PANELS) $(if $(CLAIMS),--claims $(CLAIMS))
	$(BIN)/tunalab table --records results/mask_ratio
	$(BIN)/tunalab power --records results/figure6 --panels $(PANELS) --out results/figure6 > /dev/null
	$(BIN)/tunalab power --records results/figure6 results/figure6_rates --panels $(PANELS) --out results/figure6_rates > /dev/null

ladder: install ## write the tables of docs/ladder.md and README.md: machines, hours, prices (two minutes)
	$(BIN)/tunalab ladder --into docs/ladder.md README.md

ablations: install ## tables and pictures of effects of the committed ablations; `make sweep SWEEP=front_ends` and the like train them
	set -e; for records in results/ablations/*/; do \
	  $(BIN)/tunalab table --records $${records%/}; $(BIN)/tunalab figure effects --records $${records%/} --out $${records%/}; done

evaluate: install ## measure trained models: RUN=runs/figure6/tuna2-seed0 (default all of Figure 6), ARGS="--parts NAME" or part.key=value
	$(BIN)/tunalab evaluate $(RUN) $(ARGS)

report: install ## one HTML page, and its Markdown, of the records in RECORDS (default results/figure6)
	$(BIN)/tunalab report --records $(RECORDS) $(ARGS)

dashboard: install ## open MLflow's page on a comparison of the runs
	$(BIN)/tunalab dashboard $(ARGS)

bench: install ## training and generation against their slow references; what the sweep took and reached
	$(BIN)/tunalab bench $(ARGS)

verify: install ## tables of what the scorers, the parser of scenes and chance levels are worth (results/verification), half an hour; one of them: ARGS=scorers
	$(BIN)/tunalab verify $(ARGS)

bench-gpu: install ## a training step at full scale on a CUDA device: its share of the card's own rate
	$(BIN)/tunalab bench --gpu $(ARGS)

lint: install ## ruff
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

types: install ## mypy
	$(BIN)/mypy src

# Tests start hundreds of Pythons: their bytecode is kept, also where the environment says that none shall be.
test: install ## the tests, on all cores: one process of one thread a core
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n auto --dist worksteal

test-slow: install ## whole runs of every front-end, several processes, wheels: what takes seconds of a core each
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -n auto --dist worksteal -m slow

test-portable: install ## the tests as on other processors, threads, locales, paths and Pythons: ARGS="strange threads pythons"
	tests/portable $(ARGS)

test-gpu: install ## tests that need a CUDA device
	$(BIN)/pytest -m gpu

test-chaos: install ## a sweep whose runs and drivers are killed at random times ends as an undisturbed one
	$(BIN)/pytest -m chaos -s

test-fuzz: install ## 20,000 damaged images: pixels or one line (half a minute)
	$(BIN)/pytest -m fuzz tests/data

test-lmms: install ## tests of the published benchmarks; first installs the extra lmms (0.7 GB)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data,dev,lmms]'
	$(BIN)/pytest -m lmms

test-slurm: install test-slurm-cluster ## sweeps on a SLURM of two nodes, installed from Debian's packages and started here (as root)
	$(BIN)/python -m pytest -m slurm --confcutdir tests/slurm tests/slurm/test_slurm_training.py

test-slurm-cluster: install ## the part of it that trains no model, four minutes: CI runs it
	$(BIN)/python -m pytest -m slurm --confcutdir tests/slurm tests/slurm/test_slurm_cluster.py

test-plans: install ## the plans in the headers of sweeps at full scale are what `tunalab plan` prints, and a step holds its plan (five minutes)
	$(BIN)/pytest -m plans

test-browser: install ## the dashboard's comparison in headless Chromium; writes docs/dashboard.png
	tests/browser/start
	$(BIN)/pytest -m browser

test-mlflow: install ## runs whose MLflow server is away, dies or returns, and runs that are killed
	$(BIN)/pytest -m mlflow

# Each part has its time, so that all ends within 12 minutes of an installed tree; what was measured until then is kept.
gpu: install ## all that needs a CUDA device, within 12 minutes, the most wanted first: steps at 1.5B and 0.5B, a small Figure 6, the tests
	@status=0; timeout 330 $(MAKE) bench-gpu || status=$$?; \
	timeout 230 $(BIN)/tunalab sweep figure6_gpu_short --parallel 4 || status=$$?; \
	timeout 20 $(BIN)/tunalab publish figure6_gpu_short || status=$$?; \
	timeout 130 $(MAKE) test-gpu || status=$$?; exit $$status

check: lint types test test-slow ## lint, types, tests: what CI runs

clean: ## remove runs and caches (not components, not results)
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache build src/*.egg-info

.PHONY: verify test-slow test-chaos test-fuzz test-portable help install components drawings drawings-components figure6-drawings sweep smoke figure6 mask-ratio-figure table ladder ablations evaluate report dashboard bench bench-gpu lint types test test-gpu test-lmms test-browser test-mlflow test-slurm test-slurm-cluster test-plans gpu check clean
