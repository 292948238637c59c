PYTHON ?= python3
BIN := .venv/bin

# of Python 3.12 or later, which ArviZ 1.x needs
ARVIZ1_PYTHON ?= $(shell for p in $(PYTHON) python3.12 python3.13 $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo "$$p" && break; done)

.PHONY: demo test test-arviz1 test-browser lint types wheel-test bench bias clean

demo: .venv/.installed
	$(BIN)/python examples/quickstart.py

# the script, not `python -m pytest`, which would put the working directory in front of the installed package
test: .venv/.installed
	$(BIN)/pytest -n auto --dist loadfile

# Runs are saved by .venv and read by an environment with ArviZ 1.x and without torch, which would be several GB more.
test-arviz1: .venv/.installed .venv-arviz1/.installed
	$(BIN)/python tests/arviz1/saved_runs.py out/saved_runs
	SAVED_RUNS=$(CURDIR)/out/saved_runs .venv-arviz1/bin/pytest --confcutdir tests/arviz1 tests/arviz1

# reports in a real browser
test-browser: .venv/.installed
	command -v chromium >/dev/null || { apt-get update && apt-get install --yes chromium; }
	$(BIN)/pytest tests/browser/check_pages.py

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
	rm -rf .venv .venv-peers .venv-arviz1 out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
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

.venv-peers/.installed: tests/benchmarks/requirements.txt tests/benchmarks/requirements-no-deps.txt constraints.txt \
		| .venv-peers/bin/python
	.venv-peers/bin/pip install -c constraints.txt -r tests/benchmarks/requirements.txt
	.venv-peers/bin/pip install --no-deps -r tests/benchmarks/requirements-no-deps.txt
	touch $@

.venv-arviz1/bin/python:
	@test -n "$(ARVIZ1_PYTHON)" || { echo "ArviZ 1.x needs Python 3.12: make test-arviz1 ARVIZ1_PYTHON=..."; exit 1; }
	$(ARVIZ1_PYTHON) -m venv .venv-arviz1

.venv-arviz1/.installed: tests/arviz1/requirements.txt pyproject.toml | .venv-arviz1/bin/python
	.venv-arviz1/bin/pip install -r tests/arviz1/requirements.txt
	.venv-arviz1/bin/pip install --no-deps -e .
	touch $@
