# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/pip install --quiet --constraint constraints.txt --editable
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: check demo docs test test-all

demo: .venv/demo
	$(BIN)/fieldmark demo

test: check
	$(PYTEST) -m "not slow"

test-all: check
	$(PYTEST)

check: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/dev
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --quiet docs build/site

# What runs needs; PyTorch is by far the largest part.
.venv/demo: pyproject.toml constraints.txt
	@echo "Installing Fieldmark and PyTorch into .venv: about 3,200 MB to download, a few minutes."
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[demo]'
	touch $@

# What developing needs on top.
.venv/dev: pyproject.toml constraints.txt
	@echo "Installing Fieldmark, PyTorch and the tools for development into .venv: about 3,600 MB to download."
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	touch $@ .venv/demo
