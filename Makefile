# Both commands do all of their own set-up: Python 3.11 and make are enough.
PYTHON ?= python3.11
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check clean

help:
	@echo "make demo       meta-pretrain a small encoder on the docstrings inside CPython, evaluate and report; leaves runs/demo"
	@echo "make test       lint, types and tests"
	@echo "make test-slow  the tests that take minutes"

# The environment is made again where the dependencies have changed. What is never loaded is not compiled.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-compile torch==2.13.0
	.venv/bin/python -m pip install --quiet --no-compile --editable '.[test]'
	touch $@

demo: .venv/installed
	rm -rf runs/demo
	.venv/bin/distmeta pretrain --config jobs/configs/demo.yaml --run-dir runs/demo
	.venv/bin/distmeta report runs/demo

check: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

test: check
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	.venv/bin/pytest -m slow

clean:
	rm -rf .venv runs
