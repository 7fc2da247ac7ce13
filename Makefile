# Every target sets up what it needs in .venv; constraints.txt pins what is installed there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
BUILD_INPUTS := setup.py pyproject.toml constraints.txt $(wildcard build_backend/*.py) \
	$(shell find csrc -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \))

.PHONY: help demo test test-all lint bench bench-quick bench-gpu gpu-report gpu-versions planted mutants clean

help:
	@echo "make demo        train on a planted set and print metrics beside the constant predictor and the optimum"
	@echo "make test        lint and the test suite"
	@echo "make test-all    the suite with its slow sweeps"
	@echo "make bench       throughput against the peers: table and plots in docs/bench"
	@echo "make bench-gpu   on a machine with a GPU: the workloads on the triton and torch backends"
	@echo "make gpu-report  budgets of the compiled GPU kernels and predicted times: docs/gpu"
	@echo "make gpu-versions  every launched form of the Triton kernels compiled by older tritons"
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
	$(BIN)/python bench/demo.py

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

planted: $(READY)
	$(BIN)/python bench/planted.py

bench: $(READY)
	$(BIN)/python -m bench.run

bench-quick: $(READY)
	$(BIN)/python -m bench.run --quick

bench-gpu: $(READY)
	$(BIN)/python -m bench.gpu.measure

gpu-report: $(READY)
	$(BIN)/python -m bench.gpu.report

gpu-versions: $(READY)
	$(BIN)/python -m bench.gpu.versions

mutants: $(READY)
	$(BIN)/python tests/cuda_mutants.py

clean:
	rm -rf $(VENV) build *.egg-info hhmpn_fast/*.so hhmpn_fast/*_manifest.json
