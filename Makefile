# Each target sets the environment up by itself; a fresh machine needs Python, gcc and make.
PYTHON ?= python3
VENV ?= .venv
# The newest release known to have a CPU build for Python 3.11. Empty: the tests against torch skip.
TORCH ?= torch==2.13.0
MODEL ?= resnet50_layer4
BIN := $(VENV)/bin

.PHONY: train torch test test-fast test-distributed lint docs bench torture clean

# Trains on scikit-learn's digits, the offline stand-in for CIFAR-10, and prints the accuracy.
train: $(VENV)/.core
	$(BIN)/python -m jaxcifar.train --dataset digits --model $(MODEL) \
	    --epochs 8 --decay-epochs 6 $(DIGITS_$(MODEL))

# Thirteen layers without batch norm start slowly at 0.001 and on few steps an epoch.
DIGITS_vgg16 := --batch-size 32 --learning-rate 3e-4

# What the port needs to read torch's files and to compare; training does not.
torch: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(TORCH)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

# Two processes with two devices each against one; part of make test, too.
test-distributed: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_distributed.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/; a warning is an error. The variable silences a banner.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# More than an hour; leave the machine alone meanwhile.
bench: torch
	$(BIN)/python benchmarks/bench.py

# Kills a run at random moments, twenty times; about a quarter of an hour.
torture: $(VENV)/.core
	$(BIN)/python tests/torture.py

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet -e '.[dev]' $(TORCH)
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
