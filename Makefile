# The verbs of the house. Each installs what it needs into .venv, from the lock, before it starts.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint types protos client-matrix bench

demo: $(READY)  ## train, publish, serve and drive on point_u_maze; about 6 minutes
	@exec $(BIN)/python scripts/demo.py

test: $(READY)  ## every test, two files at once: most of the time goes into compiling
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: $(READY)  ## strict types everywhere, and none missing in the client's public interface
	$(BIN)/pyright
	PYTHONPATH=clients/python $(BIN)/pyright --verifytypes kilolayer --ignoreexternal

protos: $(READY)  ## descriptors and type stubs of every message, from protos/
	$(BIN)/python scripts/generate_stubs.py
	$(BIN)/python -m grpc_tools.protoc -I protos/inference --pyi_out=serving/api/open_inference \
		--descriptor_set_out=serving/api/open_inference/open_inference.binpb protos/inference/*.proto

client-matrix: $(READY)  ## test the Python client on Python 3.9 to 3.13 with old and new dependencies; 5 minutes
	$(BIN)/python scripts/client_matrix.py

bench: $(READY)  ## every benchmark, recorded under runs/bench; takes hours
	@mkdir -p runs/bench
	@set -e; for script in benchmarks/[a-z]*.py; do \
		$(BIN)/python $$script --json runs/bench/$$(basename $$script .py).json; done

$(READY): requirements/cpu.txt pyproject.toml clients/python/pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e clients/python -e .
	@touch $@
