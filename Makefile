# make demo | test | test-full | chaos [SEED=7] | lint | bench [BENCH=step] : each installs into .venv first, once.
# make rivals [RIVALS=folder]
PYTHON ?= python3
VENV   ?= .venv
BENCH  ?=
SEED   ?= 0
PYTEST_ARGS ?=
BIN    := $(VENV)/bin

RIVALS ?= build/rivals

.PHONY: install demo test test-full chaos lint format bench rivals parity notebook clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@echo "Installing into $(VENV) ..."; start=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" && \
	touch $@ && echo "Installed in $$(( $$(date +%s) - start )) s"

demo: install
	$(BIN)/python recipes/demo.py

test: install
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-full:
	$(MAKE) test PYTEST_ARGS="--full $(PYTEST_ARGS)"

chaos: install
	$(BIN)/python -m tests.chaos --seed $(SEED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m tests.benchmarks $(BENCH)

# With the Python that has torch for the GPU: nothing is installed, nothing is fetched.
bench-gpu:
	$(PYTHON) -m tests.benchmarks.gpu

gpu-report:
	$(PYTHON) -m tests.benchmarks.gpu_report

rivals:
	PYTHON=$(PYTHON) bash tests/benchmarks/rivals/make_environments.sh $(RIVALS)

parity: install
	$(BIN)/python -m tests.benchmarks.parity

clean:
	rm -rf $(VENV) build demo
