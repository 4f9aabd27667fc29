# Everything here sets itself up in .venv/; it needs only Python 3.11 or newer, gcc/g++, make and perl.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: help setup demo test lint bench unisims oracle verilog clean

help:
	@echo "make demo     stream a story from the simulated accelerator, checked against the golden model"
	@echo "make test     lint and every test"
	@echo "make bench    real-scale runs; results in docs/measurements/"
	@echo "make unisims  tests of vendor primitives on AMD's models; UNISIMS=Vivado's data/verilog/src or a XilinxUnisimLibrary"
	@echo "make oracle   reference vectors from PyTorch (installs torch)"
	@echo "make verilog  Verilog of the kv260 preset in build/verilog/"

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tellme needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/tellme run --backend sim --model demo --check --max-new-tokens 64 \
		--prompt "Once upon a time there was a kind girl named Mia."

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

verilog: setup
	$(BIN)/tellme verilog --board kv260 --out build/verilog

bench: setup
	$(BIN)/python -m pytest -q -s bench

unisims: setup
	$(BIN)/python -m bench.unisims "$(UNISIMS)"

$(VENV)/.oracle: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[oracle]'
	@touch $@

oracle: $(VENV)/.oracle
	$(BIN)/python -m tests.oracle.make_vectors
	$(BIN)/python -m tests.oracle.make_chat_vectors

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
