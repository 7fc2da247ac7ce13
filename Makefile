# Every target but those of `make gpu` sets up what it needs in .venv; constraints.txt pins what is installed there.
PYTHON ?= python3
VENV := .venv
OUT ?= build/gpu
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Each worker starts with a stretch of neighbouring tests, so what a file builds is built once; the first to end helps.
WORKERS := -n 2 --dist worksteal
BUILD_INPUTS := setup.py pyproject.toml constraints.txt $(wildcard build_backend/*.py) \
	$(shell find csrc -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \))

.PHONY: help demo test test-all lint readings bench bench-quick bench-gpu gpu-report gpu-versions \
	gpu gpu-build gpu-test gpu-sanitize gpu-bench gpu-tune planted mutants clean

help:
	@echo "make demo        train on a planted set and print metrics beside the constant predictor and the optimum"
	@echo "make test        lint and the test suite"
	@echo "make test-all    the suite with its slow sweeps"
	@echo "make lint        ruff, clang-format and the rules of the house (tests/house), every finding with its line"
	@echo "make readings    the table of docs/readings.md, from the fields of the configuration"
	@echo "make bench       throughput against the peers: table and plots in docs/bench"
	@echo "make gpu         on a machine with a GPU, with PYTHON's own packages: build, tests, sanitizer, times into OUT"
	@echo "                 gpu-build, gpu-test, gpu-sanitize, gpu-bench run alone; gpu-tune tries launch-table entries"
	@echo "make bench-gpu   on a machine with a GPU: the workloads on the triton and torch backends"
	@echo "make gpu-report  budgets of the compiled GPU kernels and predicted times: docs/gpu"
	@echo "make gpu-versions  every launched form of the Triton kernels compiled by every triton from the lowest on"
	@echo "make mutants     one planted bug at a time in the CUDA kernels; the checks must notice every one"
	@echo "make planted     full model against its four ablations on the planted set, five seeds"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch

$(READY): $(BIN)/python $(BUILD_INPUTS)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m bench.studies.demo

test: lint
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not gpu"

test-all: lint
	$(BIN)/python -m pytest $(WORKERS) -m "not gpu"

readings: $(READY)
	@$(BIN)/python -c 'from hhmpn_fast import config, readings; print(readings.table(config.HHMPNConfig), end="")'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.house

planted: $(READY)
	$(BIN)/python -m bench.studies.planted

bench: $(READY)
	$(BIN)/python -m bench.race.run

bench-quick: $(READY)
	$(BIN)/python -m bench.race.run --quick

bench-gpu: $(READY)
	$(BIN)/python -m bench.gpu.measure

gpu-report: $(READY)
	$(BIN)/python -m bench.gpu.report

gpu-versions: $(READY)
	$(BIN)/python -m bench.gpu.versions

# No .venv: a machine with a GPU brings its own torch and triton, and may have no network.
gpu gpu-build gpu-test gpu-sanitize gpu-bench gpu-tune:
	@$(PYTHON) -m bench.gpu.drive $@ --out $(OUT)

mutants: $(READY)
	$(BIN)/python tests/cuda/mutants.py

clean:
	rm -rf $(VENV) build *.egg-info hhmpn_fast/*.so hhmpn_fast/*_manifest.json
