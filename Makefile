# Two commands matter: `make demo` and `make test`. Each sets up .venv where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# JAX 0.11.2, whose CUDA plugin compiles the fused kernels without a GPU, is for Python 3.12 and newer.
DEVICELESS_PYTHON ?= python3.12
DEVICELESS_VENV ?= .venv-deviceless

.PHONY: demo test test-deviceless lint docs notebooks dist clean

demo: $(VENV)/.installed
	$(BIN)/natjax demo --out demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal

test-deviceless: $(DEVICELESS_VENV)/.installed
	$(DEVICELESS_VENV)/bin/python -m pytest -n auto --dist worksteal tests/deviceless

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

docs: $(VENV)/.installed-docs  # into build/site; `.venv/bin/zensical serve` shows them while you write
	$(BIN)/zensical build --strict --clean

notebooks: $(VENV)/.installed-test  # run again, with their outputs
	$(BIN)/jupyter execute --inplace docs/notebooks/*.ipynb

dist: $(VENV)/.installed-test
	rm -rf dist
	$(BIN)/python -m build  # the sdist, and the wheel from what is in the sdist
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) $(DEVICELESS_VENV) demo dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

$(DEVICELESS_VENV)/.installed: pyproject.toml requirements/deviceless.txt
	$(DEVICELESS_PYTHON) -m venv $(DEVICELESS_VENV)
	$(DEVICELESS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable . jax==0.11.2 triton==3.6.0 optax pytest pytest-xdist
	$(DEVICELESS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/deviceless.txt
	touch $@
