# `make run`: from a fresh machine to the main job. `make test`: from a fresh machine to all tests.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup run test check format clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# onnxruntime and onnxruntime-gpu fill the same folder and break each other: exactly one of them,
# by whether an NVIDIA driver answers. Looked up only when something is to be installed.
BACKEND ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

# Where no driver answers this torch goes in first, and the range in pyproject.toml keeps it: a
# bare range takes the newest build, with gigabytes of CUDA. Where pip's index has no CPU build of
# it, name PyTorch's CPU index in PIP_EXTRA_INDEX_URL and say TORCH=torch==2.13.0+cpu.
TORCH ?= torch==2.13.0

# What `ours` learns a voice from (train/teacher.py), for its file of weights alone: without its
# dependencies, of which there are many. All else does without it.
TEACHER ?= pipecat-ai==1.14.0

AUDIO ?= samples/call.wav
ROLES ?= $(if $(filter samples/call.wav,$(AUDIO)),customer$(comma)agent)
MIC ?=
ARGS ?=
comma := ,

help:
	@echo 'make run                 stream a sample call through the shipped model and show it live'
	@echo 'make run AUDIO=call.wav  the same with your file; ROLES=customer,agent names its channels'
	@echo 'make run MIC=1           the same with your microphone; Ctrl-C ends it with a summary'
	@echo 'make test                all tests'
	@echo 'make check               lint, format, types, import directions'
	@echo 'make setup               just the environment, in .venv'
	@echo 'make format              format the code and apply safe fixes'
	@echo 'make clean               remove the environment, caches and builds'
	@echo 'BACKEND=cpu|gpu overrides the choice of ONNX Runtime; PYTHON=python3.12 that of Python;'
	@echo 'ARGS=--json and the like go to ser-stream (make run) or to pytest (make test).'

run: $(VENV)/.installed $(if $(MIC),$(VENV)/.installed-mic)
ifneq ($(MIC),)
	$(BIN)/ser-stream --mic $(ARGS)
else
	$(BIN)/ser-stream --realtime $(if $(ROLES),--roles $(ROLES)) $(ARGS) '$(AUDIO)'
endif

setup: $(VENV)/.installed-all

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python that is new enough and can make an environment with pip in it.
$(BIN)/python:
	@for python in $(PYTHON) $(if $(PYTHON),,python3 python3.14 python3.13 python3.12 python3.11); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$python cannot make virtual environments: install python3-venv (Debian, Ubuntu), then run make again" >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$($$python --version)"; \
	  "$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	  exit 0; \
	done; \
	echo "Python 3.11 or newer is needed; $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>/dev/null || echo missing). PYTHON=path/to/python names another" >&2; \
	exit 1

# Stamps, so that a second call is instant; a changed pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing ser-stream[$(BACKEND)]"
	$(PIP) install --editable '.[$(BACKEND)]'
	@touch $@

$(VENV)/.installed-mic: pyproject.toml | $(VENV)/.installed
	$(PIP) install --editable '.[$(BACKEND),mic]'
	@touch $@

$(VENV)/.installed-all: pyproject.toml | $(BIN)/python
	@echo "installing ser-stream[$(BACKEND),mic,train,report,dev]: the first time takes some minutes"
	$(if $(filter cpu,$(BACKEND)),$(PIP) install '$(TORCH)')
	$(PIP) install --editable '.[$(BACKEND),mic,train,report,dev]'
	$(PIP) install --no-deps '$(TEACHER)' || echo "no $(TEACHER): 'ours' cannot be trained here" >&2
	@touch $@ $(VENV)/.installed $(VENV)/.installed-mic
