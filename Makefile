# Each verb installs what it needs. A new checkout needs two: `make serve` and `make test`.

PYTHON ?= python3
DATA ?= data
PORT ?= $(or $(TINYRM_PORT),8000)
# Not taken from the environment: some systems export a NAME of their own.
NAME = starter
BUNDLE ?= $(or $(TINYRM_MODEL),models/$(NAME))
RECIPE ?= training/recipes/from_scratch/1-tokenizer.yaml

# Serving has an environment without torch, and the tests check that it works there.
SERVE := .venv/serve
DEV := .venv/dev
LOAD := .venv/load
DOCS := .venv/docs

.DEFAULT_GOAL := help
.PHONY: help install serve test test-all lint format train starter starter-pairs export evaluate card bench bench-peers load chaos docs audit sbom lock clean

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

# 1: environment, 2: what to install, 3: what the reader waits for
define install_into
	@echo "Installing into $(1): $(3)"
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/pip install --disable-pip-version-check $(2)
	@touch $(1)/installed
endef

$(SERVE)/installed: pyproject.toml
	$(call install_into,$(SERVE),--editable '.[serve]',what serving needs$(comma) about 260 MB and a minute)

$(DEV)/installed: pyproject.toml
	$(call install_into,$(DEV),--editable '.[serve$(comma)otel$(comma)train$(comma)export$(comma)examples$(comma)ray$(comma)dev]',what training and the tests need$(comma) torch among it$(comma) about 3 GB and three minutes)

$(LOAD)/installed: pyproject.toml
	$(call install_into,$(LOAD),--editable '.[serve$(comma)load]',what the load tests need$(comma) about 400 MB and a minute)

comma := ,

install: $(SERVE)/installed $(DEV)/installed  ## install both environments, for serving and for development

serve: $(SERVE)/installed  ## serve BUNDLE on PORT
	@if [ -t 1 ]; then echo "open http://localhost:$(PORT) in a few seconds; Ctrl-C ends the service"; fi
	@TINYRM_MODEL=$(BUNDLE) TINYRM_PORT=$(PORT) exec $(SERVE)/bin/python -m service

# One process for each core; each takes whole files of tests (tests/conftest.py). One thread for torch in each: threads
# of several processes on one core would spend most of it waiting for each other. Compiled files are kept, as Python
# does unless it is told not to: the tests start hundreds of processes, and each would compile the sources anew.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(DEV)/bin/python -m pytest --numprocesses logical --maxprocesses 8

test: $(DEV)/installed $(SERVE)/installed  ## run the fast tests (minutes)
	$(PYTEST) -m "not slow"

test-all: $(DEV)/installed $(SERVE)/installed  ## run all tests, also those with Ray, containers and a browser (.ci/apt.sh)
	STACK_TEST=1 $(PYTEST)

lint: $(DEV)/installed  ## check formatting, style, types and import rules
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports --no-logo

format: $(DEV)/installed  ## format the code, and fix the style where a tool can
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

# From where it stopped; RESUME=0: refuse a run that is there; FRESH=1: replace it.
AGAIN = $(if $(FRESH),--fresh,$(if $(filter 0,$(RESUME)),,--resume))
OPTIONS = $(if $(BASE),--base $(BASE)) $(if $(filter command line,$(origin NAME)),--out models/$(NAME))

train: $(DEV)/installed  ## train on PAIRS (BASE, NAME), or run RECIPE on DATA (RESUME=0, FRESH=1: not from where it stopped)
	$(DEV)/bin/python -m training $(if $(PAIRS),$(PAIRS) $(OPTIONS),$(RECIPE) --data $(DATA)) $(AGAIN)

export: $(DEV)/installed  ## export MODEL (and ADAPTER) to BUNDLE
	$(DEV)/bin/python -m export --model $(MODEL) $(if $(ADAPTER),--adapter $(ADAPTER)) --out $(BUNDLE)

card: VERSUS = $(if $(AGAINST),--against $(AGAINST))
card: $(DEV)/installed  ## measure BUNDLE on the validation pairs of DATA, and AGAINST another one, into its manifest and card
	$(DEV)/bin/python -m evaluation --bundle $(BUNDLE) --pairs $(DATA)/validation.jsonl.gz $(VERSUS) --record --card
	$(DEV)/bin/python -m evaluation sanity --bundle $(BUNDLE) --pairs $(DATA)/validation.jsonl.gz $(VERSUS) --record --card
	$(DEV)/bin/python -m evaluation obvious --bundle $(BUNDLE) $(VERSUS) --record --card
	$(DEV)/bin/python -m evaluation.latency $(BUNDLE) --pairs $(DATA)/validation.jsonl.gz $(VERSUS) --record --card

evaluate: $(DEV)/installed  ## evaluate BUNDLE on the validation pairs of DATA
	$(DEV)/bin/python -m evaluation --bundle $(BUNDLE) --pairs $(DATA)/validation.jsonl.gz

# BASE: a folder in place of the base on the hub. PROCESSES: one for each core, of one thread.
PROCESSES ?= 2
BASE =
starter: $(DEV)/installed  ## train and export the starter model on DATA (about an hour on two cores)
	$(MAKE) starter-pairs
	$(if $(BASE),printf 'extends: ../../training/recipes/starter/pairs.yaml\nmodel: %s\n' '$(BASE)' >runs/starter/pairs.yaml)
	OMP_NUM_THREADS=1 $(DEV)/bin/python -m torch.distributed.run --nproc-per-node $(PROCESSES) --standalone -m training \
		$(if $(BASE),runs/starter/pairs.yaml,starter/pairs) --data runs/starter/data $(AGAIN)
	$(DEV)/bin/python -m export --model runs/starter/pairs --stored mixed --demo --out models/starter \
		--card training/recipes/starter/CARD.md
	$(MAKE) card BUNDLE=models/starter

# What the starter learns from: DATA without overlap with its validation pairs.
starter-pairs: $(DEV)/installed
	$(DEV)/bin/python -m training data jsonl:train.jsonl.gz --data $(DATA) \
		--decontaminate $(DATA)/validation.jsonl.gz --drop 13 --write runs/starter/data/train.jsonl

bench: $(DEV)/installed  ## measure beside others, into docs/performance.md (hours; BENCH=--brief: 30 minutes, --quick: 6)
	-$(MAKE) --keep-going bench-peers
	$(DEV)/bin/python -m loadtests.bench $(BENCH)

# The engines that the benchmark compares ours with, each in its own environment. One that does not install is listed in
# the results with the reason, and stops nothing.
bench-peers: $(foreach peer,peers optimum openvino infinity fastembed flashrank,.venv/bench-$(peer)/installed)

# optimum-onnx and infinity need transformers 4, optimum-intel an early 5; sentence-transformers 6 needs 5.
.venv/bench-peers/installed: PEER = torch==2.13.0 transformers==5.24.0 sentence-transformers==6.2.0
.venv/bench-optimum/installed: PEER = torch==2.13.0 'optimum-onnx[onnxruntime]==0.1.0' sentence-transformers==5.7.0
.venv/bench-openvino/installed: PEER = torch==2.13.0 'optimum-intel[openvino]==2.2.0' sentence-transformers==6.2.0
.venv/bench-infinity/installed: PEER = torch==2.13.0 'infinity_emb[torch,server]==0.0.78' click==8.1.8 typer==0.12.5
.venv/bench-fastembed/installed: PEER = fastembed==0.9.1
.venv/bench-flashrank/installed: PEER = flashrank==0.2.10

.venv/bench-peers/installed: ALIVE = import sentence_transformers
.venv/bench-optimum/installed: ALIVE = import sentence_transformers, optimum.onnxruntime
.venv/bench-openvino/installed: ALIVE = import sentence_transformers, optimum.intel.openvino
.venv/bench-infinity/installed: ALIVE = import infinity_emb.infinity_server
.venv/bench-fastembed/installed: ALIVE = import fastembed.rerank.cross_encoder
.venv/bench-flashrank/installed: ALIVE = import flashrank

# torchvision comes with optimum-intel, needs a torch of the same build, and has no part in reading texts.
.venv/bench-%/installed:
	$(call install_into,$(@D),$(PEER),an engine to compare with)
	@$(@D)/bin/pip uninstall --disable-pip-version-check --quiet --yes torchvision
	@$(@D)/bin/python -c "$(ALIVE)"

.DELETE_ON_ERROR:

load: $(LOAD)/installed  ## measure overload and MLPerf LoadGen, into docs/reliability.md (LOADTEST=--quick: seconds)
	$(LOAD)/bin/python -m loadtests.load $(LOADTEST)

chaos: $(LOAD)/installed  ## kill, hang and flood the service, into docs/reliability.md (LOADTEST=--quick: seconds)
	$(LOAD)/bin/python -m loadtests.chaos $(LOADTEST)

$(DOCS)/installed: pyproject.toml
	$(call install_into,$(DOCS),--editable '.[docs]',what the documentation needs$(comma) about 150 MB and a few seconds)

docs: $(DOCS)/installed  ## build the documentation site of docs/ in site/
	$(DOCS)/bin/python -m tools.site

audit: $(SERVE)/installed $(DEV)/installed  ## look for known vulnerabilities in what is installed
	.ci/audit.sh $(SERVE) $(DEV)

sbom: $(DEV)/installed  ## write dist/sbom: what each image holds, as CycloneDX
	$(DEV)/bin/python -m tools.sbom

lock:  ## write deploy/locks from pyproject.toml (LOCK=--upgrade: the newest versions that it allows)
	.ci/lock.sh $(LOCK)

clean:  ## delete environments and caches
	rm -rf .venv .cache build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
