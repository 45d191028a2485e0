# Two commands are all a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test real docs lint lock clean

## demo: the main job on a simulated screen; writes the folder demo/ with cells, scores and report.html
demo: .venv/installed
	$(BIN)/scidiff demo --out demo

## test: all tests; those on real data run where the data folder is (SCIDIFF_DATA, default ../shared/data)
test: .venv/installed
	$(BIN)/python -m pytest

## docs: the documentation site in docs/_build; a warning is an error
docs: .venv/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "open docs/_build/index.html"

## lint: style and types
lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy src

## lock: write the versions installed now to requirements.lock
lock: .venv/installed
	@( sed -n '1,2p' requirements.lock; $(BIN)/pip list --format=freeze | grep -viE '^(pip|setuptools|wheel|scidiff)' | sed 's/+cpu//' ) > requirements.tmp
	@mv requirements.tmp requirements.lock

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scIDiff needs Python 3.11 or newer; say which with: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch .venv/installed

# not constrained to requirements.lock: Sphinx asks for an older docutils than the studio would take
.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch .venv/docs

clean:
	rm -rf .venv demo dist build docs/_build
