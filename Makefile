# `make test` and `make demo` set everything up by themselves; a second call takes seconds.
PYTHON ?= python3
VENV := .venv
TL4 := .venv-tl4
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DOCS_STAMP := $(VENV)/.ready-docs
PYTEST := -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: setup test test-tl4 matrix lint notebooks docs demo train clean

setup: $(STAMP)

# torch comes first and pinned: without it a looser range of another package would fetch another build.
define environment
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2) torch
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2) --editable ".[dev]"
touch $(1)/.ready
endef

$(STAMP): pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt)

# The next generation of TransformerLens, which has no HookedTransformer; everything else is the same.
$(TL4)/.ready: pyproject.toml constraints.txt
	mkdir -p $(TL4)
	sed 's/^transformer-lens==.*/transformer-lens==4.3.0/' constraints.txt > $(TL4)/constraints.txt
	$(call environment,$(TL4),$(TL4)/constraints.txt)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python $(PYTEST)

# All tests again on TransformerLens 4, where those that need the class HookedTransformer say so and skip themselves.
test-tl4: $(TL4)/.ready
	$(TL4)/bin/python $(PYTEST)

# The table of architectures in docs/architectures.md.
matrix: setup $(TL4)/.ready
	$(BIN)/python -m pytest --quiet tests/models/test_architectures.py --matrix $(VENV)/matrix.json
	$(TL4)/bin/python -m pytest --quiet tests/models/test_architectures.py --matrix $(TL4)/matrix.json
	$(BIN)/python tests/matrix.py docs/architectures.md $(VENV)/matrix.json $(TL4)/matrix.json

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
	rm -rf $(VENV) $(TL4) demo site .pytest_cache .mypy_cache .ruff_cache
