# What CI runs, you run: `make demo`, `make test`, `make check`. The first call installs what it needs into .venv.

PYTHON ?= python3
# That the tests run in. Each takes one core and up to 2 GB.
PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
DOCS := build/docs-env

.PHONY: help setup demo test test-all check format bench hostile docs lock clean
help:
	@echo "make demo      see it work: the bundled network learns kinds of emoji, and shows its report (offline, minutes)"
	@echo "make test      the tests, but for the slow ones; make test-all: all"
	@echo "make check     formatting, lint, types, layering"
	@echo "make format    repair formatting and what lint can repair"
	@echo "make setup     install for development into .venv"
	@echo "make bench     the benchmarks that need no data, into benchmarks/results"
	@echo "make hostile   other people's files, servers and disks: all campaigns, about an hour"
	@echo "make docs      the documents as a site, in build/site; its links are checked, its notebook is run (own environment)"
	@echo "make lock      renew requirements/*.txt; make clean: remove everything that was built"

setup: $(DEV)

demo: $(RUN)
	$(BIN)/bit demo

test: $(DEV)
	$(BIN)/python -m pytest -q -n $(PROCESSES) --dist worksteal -m "not slow"

test-all: $(DEV)
	$(BIN)/python -m pytest -q -n $(PROCESSES) --dist worksteal

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV)
	$(BIN)/python -m benchmarks.parity --out benchmarks/results/parity_cpu_$$(date +%F).md
	$(BIN)/python -m benchmarks.train_step

hostile: $(DEV)
	wrong=0; for campaign in images weights datasets runs server disk kills; do \
	  $(BIN)/python -m benchmarks.hostile $$campaign --processes 2 || wrong=1; done; exit $$wrong

# What may not be so: a link that leads nowhere, a page that none leads to, a cell of the notebook that fails.
docs: $(DOCS)/.installed
	$(DOCS)/bin/python -m sphinx -b html -W --keep-going -n -q -c docs/site . build/site
	@echo "open build/site/index.html"

$(DOCS)/.installed: requirements/docs.txt pyproject.toml | $(BIN)/uv
	$(BIN)/uv venv -q --allow-existing --python $(BIN)/python $(DOCS)
	$(BIN)/uv pip install -q --python $(DOCS)/bin/python -r requirements/docs.txt
	$(BIN)/uv pip install -q --python $(DOCS)/bin/python --no-deps -e .
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bigtransfer needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -q uv || \
	  { echo "Cannot install 'uv' from the package index. Is the network there?"; \
	    echo "Without it: install torch and this folder (pip install -e '.[dev]') into an environment of your own,"; \
	    echo "then run 'bit demo' and 'pytest' in it."; exit 1; }

# pip is not used for the rest: uv installs exactly the locked versions, many times faster.
$(RUN): requirements/run.txt pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python -r requirements/run.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	@touch $@

# Compiled at once, because where Python may not write its cache every start would compile all of torch again (9 s).
$(DEV): requirements/dev.txt $(RUN)
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -r requirements/dev.txt
	@# What `bit convert --to web` puts into its pages, for their test in a browser; without npm that is skipped.
	-@cd $(VENV) && npm pack --silent onnxruntime-web@1.30.0
	@touch $@

LOCK = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 -c requirements/constraints.txt \
  --no-annotate --no-header --no-emit-index-url -q
lock: | $(BIN)/uv
	$(LOCK) --extra demo -o requirements/run.txt
	$(LOCK) --extra dev -c requirements/run.txt -o requirements/dev.txt
	$(LOCK) --extra docs -c requirements/dev.txt -o requirements/docs.txt

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
