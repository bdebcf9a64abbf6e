# The commands of the project; `make` lists them. Each first installs what it needs into .venv, from the lock file.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest
UNIT := tests/policy tests/serving tests/clients tests/scripts tests/test_sources.py tests/test_stubs.py
# of those, the files that compile many programs or start many processes
UNIT += $(addprefix --ignore=tests/,policy/test_layers.py serving/test_cpu_device.py serving/test_engine.py \
	serving/test_host.py serving/test_run.py serving/test_supervisor.py serving/test_workers.py \
	serving/test_worker_process.py \
	clients/test_sim.py clients/test_sim_files.py scripts/test_demo.py)
PARALLEL := --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: help install demo check lint types imports spelling docs unit test test-slow coverage protos client-matrix
.PHONY: soak soak-training bench wheelhouse

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(READY)  ## install everything that the project needs into .venv, from the lock

demo: $(READY)  ## train, publish, serve and drive on point_u_maze, in runs/demo, which it replaces; about 2 minutes
	@exec $(BIN)/python scripts/demo.py

check: lint types imports spelling docs unit  ## run this before every commit; under 2 minutes

lint: $(READY)  ## rules and format of the code, the Dockerfile, shell scripts, and retired names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck deploy/slurm/train.sbatch
	$(BIN)/python scripts/check_names.py

types: $(READY)  ## strict types everywhere, and none missing in the client's public interface
	$(BIN)/pyright
	PYTHONPATH=clients/python $(BIN)/pyright --verifytypes kilolayer --ignoreexternal

imports: $(READY)  ## which package may import which, as docs/architecture.md says
	PYTHONPATH=clients/python:. $(BIN)/lint-imports

spelling: $(READY)  ## typing errors and British spelling
	$(BIN)/codespell

unit: $(READY)  ## the tests of policy, serving and the client that compile little; within a minute
	$(PYTEST) -m "not slow" $(PARALLEL) $(UNIT)

test: $(READY)  ## the fast tests; about 20 minutes on two cores
	$(PYTEST) -m "not slow" $(PARALLEL)

test-slow: $(READY)  ## the slow tests; about 25 minutes on two cores
	$(PYTEST) -m slow $(PARALLEL)

coverage: $(READY)  ## lines and branches of policy, serving and the client that their tests run; 90 % at least
	$(PYTEST) $(PARALLEL) --cov --cov-report=term-missing:skip-covered tests/policy tests/serving tests/clients

docs: $(READY)  ## build the documentation as a website in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

protos: $(READY)  ## generate descriptors and type stubs of every message from protos/
	$(BIN)/python scripts/generate_stubs.py
	$(BIN)/python -m grpc_tools.protoc -I protos/inference --pyi_out=serving/api/open_inference \
		--descriptor_set_out=serving/api/open_inference/open_inference.binpb protos/inference/*.proto

client-matrix: $(READY)  ## test the Python client on Python 3.9 to 3.13 with old and new dependencies; about 5 minutes
	$(BIN)/python scripts/client_matrix.py

wheelhouse: $(READY)  ## collect the wheels of an installation without a network, in wheelhouse/
	$(BIN)/python scripts/collect_wheels.py

soak: $(READY)  ## servers under restarts, kills, hostile messages, a million calls, new versions; PARTS chooses
	PYTHONPATH=. $(BIN)/python -m tests.faults.soak $(PARTS)

soak-training: $(READY)  ## training runs killed, stopped and damaged in 200 rounds; PARTS chooses
	PYTHONPATH=. $(BIN)/python -m tests.faults.soak_training $(PARTS)

bench: $(READY)  ## every benchmark, recorded under runs/bench; about two hours on two cores
	@mkdir -p runs/bench
	@set -e; for script in benchmarks/[a-z]*.py; do \
		$(BIN)/python $$script --json runs/bench/$$(basename $$script .py).json; done

$(READY): requirements/cpu.txt pyproject.toml clients/python/pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e clients/python -e .
	@touch $@
