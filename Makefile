# `make test` and `make demo` set everything up by themselves; a second call takes seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DOCS_STAMP := $(VENV)/.ready-docs

.PHONY: setup test lint notebooks docs demo train clean

setup: $(STAMP)

# torch comes first and pinned: without it a looser range of another package would fetch another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# From a clean kernel each; the model of the fourth is a stand-in, since nothing is downloaded.
notebooks: setup
	PSR_LENS_MODEL=$(CURDIR)/psr_lens/organism/weights/llama $(BIN)/python notebooks/execute.py --check

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $(DOCS_STAMP)

# From docs/, the docstrings and the notebooks as they are; site/index.html opens without a server.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: setup
	$(BIN)/psr-lens demo --out demo

train: setup
	$(BIN)/python -m psr_lens.organism.train --family llama --out psr_lens/organism/weights/llama
	$(BIN)/python -m psr_lens.organism.train --family gpt2 --out psr_lens/organism/weights/gpt2

clean:
	rm -rf $(VENV) demo site .pytest_cache .mypy_cache .ruff_cache
