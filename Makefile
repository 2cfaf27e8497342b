# make demo    install, then teacher, student alone and KD student on real digits, and a table
# make test    install with what the tests need, then run them
# make check   lint, types
VENV := .venv
BIN := $(VENV)/bin
# the first interpreter that is 3.11 to 3.13 and can make environments
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)

.PHONY: demo test check clean
demo: $(VENV)/run.stamp
	$(BIN)/python scripts/demo.py

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "kdbench needs Python 3.11, 3.12 or 3.13 with venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv

# uv, because pip may pick a CPU-only torch of another version that torchvision cannot use
$(VENV)/run.stamp: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) build dist *.egg-info
