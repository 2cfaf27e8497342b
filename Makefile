# Commands of this repository; `make help` lists them.
VENV := .venv
BIN := $(VENV)/bin
# the first interpreter that is 3.11 to 3.13 and can make environments
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
# pure functions and one tiny run
FAST := tests/test_files.py tests/config/test_fixed.py tests/config/test_config.py tests/records/test_record.py \
	tests/report/test_statistics.py tests/evaluation/test_calibration.py tests/methods/test_kd.py \
	tests/methods/test_at.py tests/specs

.PHONY: help demo test test-fast check format clean
help:           ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read name what; do \
	printf 'make %-10s %s\n' "$$name" "$$what"; done

demo: $(VENV)/run.stamp  ## install; a teacher, a student alone and one with KD on real digits, and a table
	$(BIN)/python scripts/demo.py

test: $(VENV)/dev.stamp  ## install with what the tests need; run them (ARGS="-m slow" for the slow ones)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-fast: $(VENV)/dev.stamp  ## under a minute: pure functions and one tiny run
	$(BIN)/python -m pytest -n 2 --dist worksteal $(FAST)

check: $(VENV)/dev.stamp  ## lint, format, layers of the rooms, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(VENV)/dev.stamp  ## mend what lint and format can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what was built; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info

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
