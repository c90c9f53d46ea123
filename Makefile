# One verb per chore; each installs what it needs. `make serve` and `make test` are all a new checkout takes.

PYTHON ?= python3
DATA ?= data
PORT ?= $(or $(TINYRM_PORT),8000)
# Not taken from the environment: some systems export a NAME of their own.
NAME = starter
BUNDLE ?= $(or $(TINYRM_MODEL),models/$(NAME))
RECIPE ?= training/recipes/starter/1-tokenizer.yaml

# pip-audit asks here, for each version of each package; mirrors often have the packages and not this.
ADVISORY_PROBE := https://pypi.org/pypi/pip/24.0/json

# Where the export image's torch comes from: PyPI's brings CUDA.
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu/torch/

# Two environments: serving has no torch, and has to be seen to work without it.
SERVE := .venv/serve
DEV := .venv/dev
LOAD := .venv/load

.DEFAULT_GOAL := help
.PHONY: help install serve test test-all lint format audit browser prometheus dashboards pictures train starter starter-pairs export evaluate bench bench-peers load chaos fuzz lock stack-packages stack-test clean

help:  ## list the chores
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

$(SERVE)/installed: pyproject.toml
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/pip install --quiet --disable-pip-version-check --editable '.[serve]'
	touch $@

$(DEV)/installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install --quiet --disable-pip-version-check --editable '.[serve,otel,train,export,examples,ray,dev]'
	touch $@

$(LOAD)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOAD)
	$(LOAD)/bin/pip install --quiet --disable-pip-version-check --editable '.[serve,load]'
	touch $@

install: $(SERVE)/installed $(DEV)/installed  ## both environments

serve: $(SERVE)/installed  ## serve BUNDLE on PORT
	TINYRM_MODEL=$(BUNDLE) TINYRM_PORT=$(PORT) $(SERVE)/bin/python -m service

# One process a core; each takes whole files of tests (tests/conftest.py).
PYTEST = $(DEV)/bin/python -m pytest --numprocesses logical --maxprocesses 8

test: $(DEV)/installed $(SERVE)/installed  ## the tests that take minutes together: the tier for every change
	$(PYTEST) -m "not slow"

test-all: $(DEV)/installed $(SERVE)/installed  ## all tests, also on Ray, in containers and in a browser
	STACK_TEST=1 $(PYTEST)

lint: $(DEV)/installed  ## formatting, lint, types and import rules
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports --no-logo

format: $(DEV)/installed  ## format and mend what can be mended
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

# Each package by its exact version, and --strict: a package that the feed does not know is a failure, not a pass.
audit: .venv/audit/installed $(SERVE)/installed $(DEV)/installed  ## known vulnerabilities of what is installed
	@if curl --silent --fail --max-time 20 --output /dev/null $(ADVISORY_PROBE); then \
		for environment in $(SERVE) $(DEV); do \
			$$environment/bin/pip freeze --exclude-editable > .venv/audit/frozen.txt && \
			.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv/audit/frozen.txt || exit 1; \
		done; \
	else echo "NOT AUDITED: $(ADVISORY_PROBE) does not answer here, so nothing is known about any package"; fi

.venv/audit/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.7,<3'
	touch $@

# Tests of the page skip without one; so nothing here fails, and nobody without root is asked for a password.
browser:  ## a Chromium for the tests of the page, from apt, where root runs this
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing chromium with apt-get"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } \
			> /dev/null 2>&1 || echo "chromium did not install; the tests of the page will be skipped"; \
	else echo "no chromium, and no root with apt-get to install it; the tests of the page will be skipped"; fi

# As with the browser.
prometheus:  ## a Prometheus for the tests of dashboards and alerts, from apt, where root runs this
	@if command -v prometheus && command -v promtool; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing prometheus with apt-get"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends prometheus; } \
			> /dev/null 2>&1 || echo "prometheus did not install; the tests with it will be skipped"; \
	else echo "no prometheus, and no root with apt-get to install it; the tests with it will be skipped"; fi

dashboards: $(DEV)/installed  ## deploy/grafana/dashboards/ from tools/dashboards/
	$(DEV)/bin/python -m tools.dashboards

pictures: $(DEV)/installed  ## the pictures of the page and of the dashboards in docs/images/
	$(DEV)/bin/python -m tools.page_pictures
	$(DEV)/bin/python -m tools.dashboard_pictures

train: $(DEV)/installed  ## run RECIPE on DATA, going on where it stopped
	$(DEV)/bin/python -m training $(RECIPE) --data $(DATA) --resume

starter-pairs: $(DEV)/installed  ## what the starter learns from: DATA without overlap with its validation pairs
	$(DEV)/bin/python -m training.data jsonl:train.jsonl.gz --data $(DATA) \
		--decontaminate $(DATA)/validation.jsonl.gz --drop 13 --write runs/starter/data/train.jsonl
	$(DEV)/bin/python -m training.data jsonl:train.jsonl --data runs/starter/data \
		--max-characters 600 --write runs/starter/data/short.jsonl

starter: $(DEV)/installed  ## the starter model from its five recipes on DATA (hours on a CPU)
	for recipe in 1-tokenizer 2-pretrain; do $(DEV)/bin/python -m training starter/$$recipe --data $(DATA) --resume || exit 1; done
	$(MAKE) starter-pairs
	for recipe in 3-short 4-cloze 5-dora; do $(DEV)/bin/python -m training starter/$$recipe --data runs/starter/data --resume || exit 1; done
	$(DEV)/bin/python -m export --model runs/starter/cloze --adapter runs/starter/dora --out models/starter --card training/recipes/starter/CARD.md
	$(DEV)/bin/python -m evaluation --bundle models/starter --pairs $(DATA)/validation.jsonl.gz --record --card

export: $(DEV)/installed  ## MODEL (and ADAPTER) to BUNDLE
	$(DEV)/bin/python -m export --model $(MODEL) $(if $(ADAPTER),--adapter $(ADAPTER)) --out $(BUNDLE)

evaluate: $(DEV)/installed  ## BUNDLE on the validation pairs of DATA
	$(DEV)/bin/python -m evaluation --bundle $(BUNDLE) --pairs $(DATA)/validation.jsonl.gz

clean:  ## environments and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

# The engines that the benchmark compares ours with. Each has an environment of its own; one that does not install is
# listed in the results with that reason, and stops nothing.
bench-peers: .venv/bench-peers/installed .venv/bench-optimum/installed .venv/bench-infinity/installed  ## environments of the other engines

.venv/bench-peers/installed: PEER = torch==2.13.0 'transformers>=5.13,<6' 'sentence-transformers>=5' matplotlib
.venv/bench-optimum/installed: PEER = torch==2.13.0 'optimum-onnx[onnxruntime]>=0.1'
.venv/bench-infinity/installed: PEER = torch==2.13.0 'infinity_emb[torch,server]==0.0.78' click==8.1.8 typer==0.12.5

.venv/bench-%/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(PEER)
	touch $@

bench: $(DEV)/installed  ## every engine side by side, into docs/performance.md (hours; BENCH=--quick: minutes)
	-$(MAKE) --keep-going bench-peers
	$(DEV)/bin/python -m loadtests.bench $(BENCH)

load: $(LOAD)/installed  ## overload, MLPerf LoadGen and the front alone, into docs/reliability.md (LOADTEST=--quick: seconds)
	$(LOAD)/bin/python -m loadtests.load $(LOADTEST)

chaos: $(LOAD)/installed  ## kills, hangs, vanishing clients and a soak, into docs/reliability.md (LOADTEST=--quick: seconds)
	$(LOAD)/bin/python -m loadtests.chaos $(LOADTEST)

fuzz: $(LOAD)/installed  ## 20,000 requests made up from the OpenAPI document
	$(LOAD)/bin/python -m loadtests.chaos --no-write --cases fuzz $(LOADTEST)

# What the images install: every package by version and hash. LOCK=--upgrade takes the newest that pyproject.toml allows;
# without it, what is locked stays. The CUDA libraries are those of the base image.
COMPILE = .venv/lock/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock' $(LOCK)
CUDA_PACKAGES = nvidia-cublas nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-curand nvidia-nvjitlink

lock: .venv/lock/installed  ## deploy/locks from pyproject.toml
	$(COMPILE) --extra serve --extra otel --output-file deploy/locks/serve.txt
	$(COMPILE) --extra gpu --extra otel $(CUDA_PACKAGES:%=--no-emit-package %) --output-file deploy/locks/gpu.txt
	$(COMPILE) --extra serve --extra load --output-file deploy/locks/load.txt
	$(COMPILE) --extra export --override deploy/locks/torch-cpu.txt --find-links $(TORCH_WHEELS) --no-emit-package torch \
		--output-file deploy/locks/export.txt

.venv/lock/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	touch $@

# As for the browser: without root or apt the tests skip, and say why.
STACK_PACKAGES = docker.io docker-compose iproute2 iptables mmdebstrap

stack-packages:  ## a container engine for stack-test, from apt, where root runs this
	@if dpkg --status $(STACK_PACKAGES) > /dev/null 2>&1; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing $(STACK_PACKAGES) with apt-get"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(STACK_PACKAGES); } \
			> /dev/null 2>&1 || echo "they did not install; the tests of images and of the stack will be skipped"; \
	else echo "no root with apt-get to install $(STACK_PACKAGES); the tests of images and of the stack will be skipped"; fi

stack-test: $(DEV)/installed stack-packages  ## images and docker-compose.yml in a container engine of the tests' own
	STACK_TEST=1 $(DEV)/bin/python -m pytest tests/containers
