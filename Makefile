# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Arguments for pytest: make test ARGS='tests/plan -k reserve'
ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
# What tests, checks and generated pages need beside it: test tools, DeepSpeed, Triton.
DEV := $(VENV)/.installed-dev

.PHONY: lock audit licences help setup setup-dev demo run test test-quick test-oldest test-all test-gpu chaos check format docs families claims bench-ui screenshots pictures build coverage clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## Create .venv and install what a user needs, pinned

setup-dev: $(DEV) ## Install what contributors need, too: test tools, DeepSpeed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed; set PYTHON=/path/to/python3"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and alone: pinned exactly, so that a machine without a GPU can get the CPU build.
	$(PIP) install --quiet --constraint constraints.txt torch numpy
	$(PIP) install --quiet --constraint constraints.txt --editable '.[quant,datasets,llama,serve]'
	@touch $@

$(DEV): $(STAMP)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Train the embedded model on this project's own source (no GPU, no network)
	$(BIN)/engine train --config recipes/demo.yaml

run: $(STAMP) ## Start the wizard
	$(BIN)/elite-tui

test: $(DEV) ## Run the test suite, with the same examples of each property every time
	$(BIN)/python -u -m pytest -n auto --dist worksteal --durations=15 $(ARGS)

test-quick: $(DEV) ## Run the tests that take less than 0.6 s each: three minutes on two cores
	$(BIN)/python -m pytest -n auto --dist worksteal --quick $(ARGS)

OLDEST := build/oldest/bin
TEST_TOOLS := pytest pytest-asyncio pytest-cov pytest-textual-snapshot pytest-timeout pytest-xdist hypothesis liger-kernel

test-oldest: $(DEV) ## Run the quick tests with the oldest versions that pyproject.toml allows, in build/oldest
	mkdir -p build
	$(BIN)/python scripts/bounds.py > build/oldest.txt
	grep -E '^(torch|triton|syrupy|hypothesis|liger-kernel|pytest[a-z-]*)==' constraints.txt >> build/oldest.txt
	$(PYTHON) -m venv --clear build/oldest
	$(OLDEST)/python -m pip --disable-pip-version-check install --quiet --constraint build/oldest.txt torch
	$(OLDEST)/python -m pip --disable-pip-version-check install --quiet --constraint build/oldest.txt \
	  --editable '.[quant,datasets,llama,serve]' $(TEST_TOOLS)
	$(OLDEST)/python -m pytest -n auto --dist worksteal --quick $(ARGS)

coverage: $(DEV) ## Run the test suite, and say which lines it does not reach
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term-missing:skip-covered $(ARGS)

test-all: $(DEV) ## Run the test suite with the slow tests, and with more and other examples of each property
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not gpu" --hypothesis-profile=explore --durations=15 $(ARGS)

test-gpu: $(DEV) ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu --durations=15 $(ARGS)

chaos: $(DEV) ## Kill, damage and fill: runs must survive it (about an hour)
	$(BIN)/python -m tests.chaos --json benchmarks/results/chaos.json

check: $(DEV) ## Format, lint, strict types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/lint-imports --config layers.toml

format: $(DEV) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV) ## Write the generated pages and tables of docs/
	$(BIN)/python scripts/optimization_docs.py
	$(BIN)/python scripts/reference_docs.py
	$(BIN)/python benchmarks/tables.py

families: $(DEV) ## Prove every model type of transformers, compare the admitted ones apart, write docs/families.md
	$(BIN)/python scripts/family_docs.py --all
	$(BIN)/python scripts/family_reference.py
	$(BIN)/python scripts/family_docs.py

claims: $(DEV) ## Write docs/claims.md from the stored measurements
	$(BIN)/python benchmarks/claims.py

bench-ui: $(DEV) ## Start-up times of the two commands; bytes and redraws of the monitor; CPU time of the screens
	$(BIN)/python benchmarks/startup.py --json benchmarks/results/startup.json
	$(BIN)/python benchmarks/terminal.py --json benchmarks/results/terminal.json
	# Last, as it fails while a screen is over its limit.
	$(BIN)/python benchmarks/screens.py --json benchmarks/results/screens.json

screenshots: $(DEV) ## Draw the pictures of the app's screens into assets/screenshots, and the README's moving one
	$(BIN)/python scripts/screenshots.py
	$(BIN)/python scripts/moving_picture.py

pictures: $(DEV) ## Draw the pictures that the tests compare with, of every size, and the screenshots
	$(BIN)/python -m pytest -n auto --dist worksteal tests/tui/test_run_snapshots.py tests/tui/test_wizard_snapshots.py \
	  tests/tui/test_snapshots.py -m "not gpu" --snapshot-update
	$(BIN)/python scripts/screenshots.py
	$(BIN)/python scripts/moving_picture.py

build: $(DEV) ## Build wheel and sdist into dist/, and install the wheel into a new environment
	rm -rf dist build/wheel-check
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m venv build/wheel-check
	build/wheel-check/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch numpy
	build/wheel-check/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt dist/*.whl
	cd build && wheel-check/bin/engine --version && wheel-check/bin/elite-tui --version
	cd build && wheel-check/bin/engine plan --model demo --json > /dev/null

RELEASE_TOOLS := build/release-tools/bin
$(RELEASE_TOOLS)/uv:
	$(BIN)/python -m venv build/release-tools
	$(RELEASE_TOOLS)/python -m pip --disable-pip-version-check install --quiet uv==0.13.9 pip-audit==2.10.1 pip-licenses==5.5.5

lock: $(DEV) $(RELEASE_TOOLS)/uv ## Write requirements.txt: the pinned versions of a user's installation, with the hashes of their files
	mkdir -p build && grep -v '^triton' constraints.txt > build/lock-constraints.txt  # a CPU build of torch pins no Triton
	sed '/^#/!d' requirements.txt > build/requirements.txt
	UV_PYTHON_DOWNLOADS=never $(RELEASE_TOOLS)/uv --quiet pip compile pyproject.toml --extra quant --extra datasets \
		--constraint build/lock-constraints.txt --generate-hashes --universal --python-version 3.10 \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links >> build/requirements.txt
	mv build/requirements.txt requirements.txt

audit: $(DEV) $(RELEASE_TOOLS)/uv ## Look the pinned versions up in the list of known weaknesses
	$(RELEASE_TOOLS)/pip-audit --requirement requirements.txt --require-hashes --disable-pip --strict

licences: $(DEV) $(RELEASE_TOOLS)/uv ## Write the licences of what is installed into build/licences.csv
	$(RELEASE_TOOLS)/pip-licenses --python $(BIN)/python --from=mixed --format=csv --with-urls \
		--output-file build/licences.csv

clean: ## Remove .venv and caches
	rm -rf $(VENV) build dist .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
