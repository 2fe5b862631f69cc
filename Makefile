# make demo   restore the pictures in inputs/ with the shipped model; look at results/compare
# make test   lint, type checks, import contracts and the whole test suite
# make coverage  the test suite, and which lines of the package it did not reach
# make docs   the documentation as a site, in site/
# make clean  remove the environment and results
#
# PYTHON=python3.11 chooses the interpreter (3.10 to 3.12).

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
  command -v $$p >/dev/null 2>&1 && \
  $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && \
  echo $$p && break; done)
BIN := .venv/bin
# A process per core, each computing with one thread; the tests of a file stay together. One that
# crashes fails the run: another in its place would wait for the rest of its file for ever.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: demo lint check test coverage docs clean

demo: .venv/installed
	$(BIN)/python inference/restore.py -i inputs -o results --compare --offline

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

coverage: .venv/installed-test
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv (about 6.5 GB, 3 to 5 minutes the first time) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@$(BIN)/python -c 'import cv2' || { echo "error: OpenCV needs the system library libGL (Debian: apt-get install libgl1)" >&2; exit 1; }
	@touch $@

.venv/installed-test: pyproject.toml | .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

.venv/installed-docs: pyproject.toml | .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv results site
