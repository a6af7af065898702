# Each makes the environment that it needs: Python 3.11 and make are enough.
PYTHON ?= python3.11
.DEFAULT_GOAL := help
.PHONY: help demo picture test test-slow test-lowest check clean

help:
	@echo "make demo         meta-pretrain a small encoder on the docstrings inside CPython, evaluate and report; leaves runs/demo"
	@echo "make picture      draw the README's picture of that run in Weights & Biases; needs tmux"
	@echo "make test         lint, types and tests"
	@echo "make test-slow    the tests that take minutes"
	@echo "make test-lowest  the tests with the oldest versions that the requirements allow"

# The environment is made again where the dependencies have changed. What is never loaded is not compiled.
.venv/installed: pyproject.toml clusters/constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-compile --constraint clusters/constraints.txt torch
	.venv/bin/python -m pip install --quiet --no-compile --constraint clusters/constraints.txt --editable '.[test]'
	touch $@

# The oldest versions that the requirements allow.
.venv-lowest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	sed -nE 's/^    "([A-Za-z0-9_.-]+)(\[[a-z,]+\])?>=([0-9.]+).*/\1==\3/p' pyproject.toml > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --no-compile --constraint .venv-lowest/constraints.txt torch
	.venv-lowest/bin/python -m pip install --quiet --no-compile --constraint .venv-lowest/constraints.txt --editable '.[test]'
	touch $@

demo: .venv/installed
	rm -rf runs/demo
	.venv/bin/distmeta pretrain --config jobs/configs/demo.yaml --run-dir runs/demo
	.venv/bin/distmeta report runs/demo

picture: .venv/installed
	.venv/bin/python .github/leet.py runs/demo .github/leet.svg

check: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

test: check
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	.venv/bin/pytest -m slow

test-lowest: .venv-lowest/installed
	.venv-lowest/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf .venv .venv-lowest runs
