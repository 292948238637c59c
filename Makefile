PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types wheel-test bench bias clean

demo: .venv/.installed
	$(BIN)/python examples/quickstart.py

# the script, not `python -m pytest`, which would put the working directory in front of the installed package
test: .venv/.installed
	$(BIN)/pytest -n auto --dist loadfile

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev
	$(BIN)/mypy

wheel-test: .venv/.installed-dev
	.ci/wheel-test

bench: .venv/.installed .venv-peers/.installed
	$(BIN)/python tests/benchmarks/run.py

bias: .venv/.installed
	$(BIN)/python tests/benchmarks/bias.py

clean:
	rm -rf .venv .venv-peers out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find pyro_scale models diagnostics tests examples -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Stamps: installed anew when what is declared changes, and not otherwise. The environment is order-only because
# installing touches it.
.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -c constraints.txt -e '.[test]'
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	touch $@

# What the benchmarks compare with stays out of .venv: other packages' requirements are not ours.
.venv-peers/bin/python:
	$(PYTHON) -m venv .venv-peers

.venv-peers/.installed: tests/benchmarks/requirements.txt constraints.txt | .venv-peers/bin/python
	.venv-peers/bin/pip install -c constraints.txt -r tests/benchmarks/requirements.txt
	touch $@
