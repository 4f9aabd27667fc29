# Everything here sets itself up in .venv/; it needs only Python 3.11 or newer, gcc/g++ and make. The folder may have any name
# that a Python environment can be in. Programs are run as modules: scripts in .venv/bin break in folders of some names.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TELLME := $(BIN)/python -m tellme
WORKERS ?= 2
# Where bench, formal, faults and mutants run: workers here, or those of a scheduler of dask.distributed.
FARM = $(if $(SCHEDULER),--scheduler $(SCHEDULER),--workers $(WORKERS))

.PHONY: help setup demo test lint bench memory formal faults fuzz soak serving requests mutants unisims oracle verilog wheels docs clean

help:
	@echo "make demo     stream a story from the simulated accelerator, checked against the golden model"
	@echo "make test     lint and every test"
	@echo "make bench    real-scale runs, on WORKERS processes (2), or with SCHEDULER=tcp://host:8786 those of a cluster, as make formal,"
	@echo "              faults and mutants; results in docs/measurements/"
	@echo "make memory   the memory model against rates of boards; docs/measurements/memory.md"
	@echo "make formal   proofs of queues, register bus, supervisor and memory ports; docs/measurements/formal.md"
	@echo "make faults   10,000 faults in passes of the simulated machine; docs/measurements/faults.md"
	@echo "make fuzz     every reader fuzzed, guided by coverage; FUZZ_PYTHON=a Python with atheris; docs/measurements/fuzz.md"
	@echo "make soak     10,000 tokens under stress, every logit compared; docs/measurements/soak.md"
	@echo "make serving  conversations side by side and guesses by the plan, the host's share; docs/measurements/serving.md"
	@echo "make requests 2,000 random requests on golden and 200 on RTL, each against itself alone; docs/measurements/requests.jsonl"
	@echo "make mutants  mistakes put into the sources one at a time: which does no test see; docs/measurements/mutants.md"
	@echo "make unisims  tests of vendor primitives on AMD's models; UNISIMS=Vivado's data/verilog/src or a XilinxUnisimLibrary"
	@echo "make oracle   reference vectors from PyTorch (installs torch)"
	@echo "make wheels   whether the boards can install what they need (asks the package registry)"
	@echo "make verilog  Verilog of the kv260 preset in build/verilog/"
	@echo "make docs     the documents and the API as pages, in build/docs/; a broken link is an error"

# What would otherwise fail after a minute, in many lines.
define CHECK
import os, shutil, sys
here = os.getcwd()
missing = [tool for tool in ("c++", "ar") if not shutil.which(tool)]
sys.exit(
    "tellme needs Python 3.11 or newer; run make PYTHON=python3.11" if sys.version_info < (3, 11)
    else f"{here!r}: Python makes no environment in a folder with {os.pathsep!r} in its name; move the clone" if os.pathsep in here
    else f"{here!r}: the simulator cannot be started from a folder with ';' in its name; move the clone" if ";" in here
    else f"{' and '.join(missing)} not found; install gcc and g++ (on Debian and Ubuntu: apt install build-essential)" if missing
    else None
)
endef
export CHECK

$(VENV)/.installed: pyproject.toml requirements.lock host/text/_sampling.c
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; install Python 3.11 or newer, or run make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK"
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv; install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --requirement requirements.lock
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

# PYNQ 3.0.1 as a KV260 has it, in an environment of its own: for tests.
$(VENV)/pynq301/made: $(VENV)/.installed tests/pynq/requirements-3.0.1.txt tests/pynq/old.py
	$(BIN)/python -m tests.pynq.old
	@touch $@

setup: $(VENV)/.installed

demo: setup
	$(TELLME) run --backend sim --model demo --check --max-new-tokens 64 \
		--prompt "Once upon a time there was a kind girl named Mia."

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Each worker goes through half of the files in order, so that what the tests of a file share is made once, and then helps the other.
test: lint $(VENV)/pynq301/made
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

wheels: setup
	$(BIN)/python -m pytest -q -s bench/test_wheels.py

verilog: setup
	$(TELLME) verilog --board kv260 --out build/verilog

docs: setup
	$(BIN)/python -m docs.tables --check || { echo "tables are out of date; run: python -m docs.tables" >&2; exit 1; }
	$(BIN)/python -m properdocs build

bench: setup
	$(BIN)/python -m bench.parts $(FARM)

memory: setup
	$(BIN)/python -m bench.memory

formal: setup
	$(BIN)/python -m bench.formal $(FARM)

faults: setup
	$(BIN)/python -m bench.faults $(FARM)

fuzz: setup
	$(or $(FUZZ_PYTHON),$(BIN)/python) -m bench.fuzzing

soak: setup
	$(BIN)/python -m bench.faults --soak

serving: setup
	$(BIN)/python -m bench.serving --requests 200
	$(BIN)/python -m bench.guesses
	$(BIN)/python -m bench.host

requests: setup
	$(BIN)/python -m bench.requests --count 2000
	$(BIN)/python -m bench.requests --backend sim --count 200

mutants: setup
	$(BIN)/python -m bench.mutants --holes $(FARM)
	$(BIN)/python -m bench.mutants --count $(or $(COUNT),500) $(FARM)

unisims: setup
	$(BIN)/python -m bench.unisims "$(UNISIMS)"

$(VENV)/.oracle: $(VENV)/.installed
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet --editable '.[oracle]'
	@touch $@

oracle: $(VENV)/.oracle
	$(BIN)/python -m tests.oracle.make_vectors
	$(BIN)/python -m tests.oracle.make_groups
	$(BIN)/python -m tests.oracle.make_qwen3
	$(BIN)/python -m tests.oracle.make_chat_vectors
	$(BIN)/python -m tests.oracle.make_sampling_vectors
	$(BIN)/python -m tests.oracle.make_tokenizer_vectors

clean:
	rm -rf build .setuptools .pytest_cache .mypy_cache .ruff_cache .hypothesis
