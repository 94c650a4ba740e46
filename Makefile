# The commands of this project. `make demo` and `make test` work on a fresh machine: they install what they need.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROTOS := $(wildcard protos/vlm/v1/*.proto)

.PHONY: setup demo demo-model demo-eval test lint format protos protos-check docs docs-check audit clean

setup: $(STAMP)

$(STAMP): pyproject.toml hatch_build.py $(wildcard $(foreach folder,decoder_service/engine/onnx vision_service,$(folder)/operators/*.cc $(folder)/operators/*.h))
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] < (3, 14) else "triptych needs Python 3.11 to 3.13, this is %d.%d: try make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/triptych demo

# Trains the demo model from nothing, in two to three hours; goes on where it was interrupted.
demo-model: setup
	$(BIN)/python -m recipes.demo_model.train --out demo/checkpoint --state build/demo --resume

# Scores the demo model on the held-out set, bundle by bundle, and puts the table into demo/README.md.
demo-eval: setup
	$(BIN)/python -m demo.evaluate --into demo/README.md

# Two processes, each with whole directories of tests (tests/running/workers.py); TEST_WORKERS=0: in one, as pytest alone.
TEST_WORKERS ?= 2
test: setup
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup protos-check docs-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint protos

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Generated code is committed: a server's image needs no compiler.
protos: setup
	$(BIN)/python -m grpc_tools.protoc -Iprotos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=protos --grpc_python_out=protos --mypy_out=protos --mypy_grpc_out=protos $(PROTOS)

protos-check: setup
	@$(BIN)/python -m tests.drift

# The generated parts of docs/: the wire, the settings, the reasons of errors.
docs: setup
	$(BIN)/python -m tools.docs

docs-check: setup
	@$(BIN)/python -m tools.docs --check

# Licences, a bill of materials per image in build/sbom, and known vulnerabilities, which needs pypi.org.
AUDIT := build/audit
audit: setup
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check -r tools/audit/requirements.txt; }
	@$(AUDIT)/bin/python -m tools.audit $(VENV)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
