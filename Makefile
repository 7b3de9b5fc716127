# Each target creates its environment; a fresh machine needs Python, gcc and make.
PYTHON ?= python3
VENV ?= .venv
# The newest release with a CPU build for Python 3.11. If empty, the tests against torch are skipped.
TORCH ?= torch==2.13.0
# Their networks are ported in tests; torchvision belongs to that torch.
NETWORKS ?= $(if $(TORCH),torchvision==0.28.0 timm)
MODEL ?= resnet50_layer4
# How many tests run at once.
JOBS ?= 2
BIN := $(VENV)/bin
# Tests of a file share fixtures and programs. Torch's threads must not spin on a core that is needed.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest \
    -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: train torch test test-fast test-distributed lint docs results bench torture clean

# A smoke test that works offline: trains on scikit-learn's digits and prints the accuracy.
train: $(VENV)/.core
	$(BIN)/jaxcifar train --dataset digits --model $(MODEL) \
	    --epochs 8 --decay-epochs 6 $(DIGITS_$(MODEL))

# Without batch norm VGG16 learns slowly at 0.001 and with few steps per epoch.
DIGITS_vgg16 := --batch-size 32 --learning-rate 3e-4

# The port reads torch's files and compares with torch; training does not need it.
torch: $(VENV)/.core
	$(BIN)/python -m pip install --quiet $(TORCH)

test: $(VENV)/.dev
	$(PYTEST)

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not slow and not torture"

# Compares two processes of two devices each with one process; make test does so with a tiny network.
test-distributed: $(VENV)/.dev
	$(BIN)/python -m pytest -m "" tests/commands/test_distributed.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds the site in site/; warnings are errors. The variable silences a banner.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Makes the table and pictures of docs/results.md from the records in docs/results/.
results: $(VENV)/.core
	$(BIN)/python docs/results/make.py

# Takes about 20 minutes; keep the machine idle meanwhile. FULL=1 takes more than an hour.
bench: torch
	$(BIN)/python benchmarks/bench.py $(if $(FULL),--full)
	$(if $(FULL),$(BIN)/python benchmarks/layers.py)

# Kills runs at twenty random moments; takes about a quarter of an hour.
torture: $(VENV)/.dev
	$(BIN)/python -m pytest -s -m torture

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet -e '.[dev]' $(TORCH) $(NETWORKS)
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
