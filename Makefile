# make demo   install, train ISONet-20 on handwritten digits, evaluate it (three minutes on two cores)
# make test   install, lint, check types, run the tests
# make torture  the long tests, and the long form of others: kills at random moments, full disks, hostile files, 200 epochs
#               (twenty minutes at most)
# make bench  short benchmarks, most against the published formulation: one table for each of six questions (six minutes)
# make gpu    all that this project promises of one GPU: equality with the CPU, step times, torchrun (eight minutes)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The number of processes that run tests in parallel: one more than cores, because many tests wait for a process
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')

.PHONY: demo test torture bench gpu lint clean

demo: $(VENV)/installed
	$(BIN)/python train.py --cfg configs/digits_ISO20.yaml --output demo --overwrite
	$(BIN)/python test.py --cfg configs/digits_ISO20.yaml --ckpt demo

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

torture: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/faults tests/processes tests/tools/test_sweep.py tests/test_gpu_script.py --torture

# The image folders to read, if they exist: make bench BENCH_IMAGES="--cifar data/cifar10-jpg --imagenet data/ILSVRC2012"
BENCH_IMAGES ?= $(if $(wildcard data/cifar10-jpg/train),--cifar data/cifar10-jpg) $(if $(wildcard data/ILSVRC2012/val),--imagenet data/ILSVRC2012)

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.penalty --quick --json outputs/bench/penalty.json
	$(BIN)/python -m benchmarks.step --quick --json outputs/bench/step.json
	$(BIN)/python -m benchmarks.evaluate --quick --json outputs/bench/evaluate.json
	$(BIN)/python -m benchmarks.input --quick --json outputs/bench/input.json $(BENCH_IMAGES)
	$(BIN)/python -m benchmarks.penalty_shares --quick --json outputs/bench/penalty-shares.json
	$(BIN)/python -m benchmarks.scale --quick --start --checkpoint --json outputs/bench/scale.json

gpu: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.gpu --json outputs/bench/gpu.json

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
