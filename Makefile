# make quickstart   the environment, then `covrl quickstart`
# make test         the environment, then the tests
# make check        the tests, the linter and the type checker: what CI runs
# make check-slow   the tests on a real pretrained model, which is downloaded once, and of the site: CI runs them after `check`
# make docs         the documentation as a site with search, in site/
# make notebook     executes the notebook of the documentation again, and keeps its outputs
# make wheel        source distribution and wheel in dist/, built, checked, and tried without the repository in reach
# make real         a real pretrained model is trained without a verifier; `make real ARGS='--method jepo --seed 1'`
# make fuzz         the property tests with new random draws
# make test-compile adds the tests that compile whole models, about a minute
# make test-gym     adds the extra reasoning-gym to the environment, and runs the test of its scorers

PYTHON ?= python3
# The CPU build where the index offers one; any torch >= 2.13 will do (make TORCH=torch for the newest).
TORCH ?= torch==2.13.0
VENV ?= .venv
# Python's files are compiled afterwards, on all cores: pip does it on one, which took as long as everything else.
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
READY = $(VENV)/.ready
DOCS = $(VENV)/.docs

.PHONY: quickstart real test test-compile test-gym fuzz check check-slow docs notebook wheel base base-common probe clean

quickstart: $(READY)
	$(VENV)/bin/covrl quickstart $(ARGS)

# One worker more than two cores: some tests wait for processes that they started. Files are begun in the order of
# tests/conftest.py, the longest first.
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Not in `dev`: one of its dependencies has no wheels, so it wants a C compiler, and all of them weigh 141 MB.
test-gym: $(READY)
	$(INSTALL) --editable ".[dev,reasoning-gym]"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/rewards/test_names_and_outside.py -rs $(ARGS)

# With the real compiler, which wants g++ or clang++.
test-compile: $(READY)
	OMP_NUM_THREADS=1 COVRL_COMPILE=1 $(VENV)/bin/python -m pytest tests/models/test_compile.py -rs $(ARGS)

# The property tests with draws of their own each time, where `test` repeats the same ones.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --hypothesis-profile=fuzz $$(grep -rl '@given' tests) $(ARGS)

check: test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ty check --python $(VENV) src
	$(VENV)/bin/lint-imports

# A few minutes on one core. COVRL_REAL_MODEL=FOLDER: the model is there already. Skipped, and said, where it is not and
# no package index can be reached.
check-slow: $(READY) $(DOCS)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/real tests/slow -rs --durations=5 $(ARGS)

# To read it: python3 -m http.server --directory site
docs: $(READY) $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict $(ARGS)

notebook: $(READY)
	$(VENV)/bin/python benchmarks/execute_notebook.py docs/notebooks/first-run.ipynb

# The build tools are in an environment of their own: nothing else wants them.
wheel: $(READY)
	rm -rf dist
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --disable-pip-version-check build twine
	build/tools/bin/python -m build
	build/tools/bin/python -m twine check --strict dist/*
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/slow/test_wheel.py -rs $(ARGS)

# A real model is trained without a verifier: downloads it once (ARGS: see the file).
real: $(READY)
	$(VENV)/bin/python benchmarks/real/run.py $(ARGS)

# Makes the shipped base again (about 6 minutes on one core), and measures what it does with a hint.
base: $(READY)
	$(VENV)/bin/python benchmarks/make_base.py $(ARGS)

# The base of the comparison's common setting: the right procedure in about 20 % of its traces, another in 30 %.
base-common: $(READY)
	$(VENV)/bin/python benchmarks/make_base.py --right-share 0.2 --rival-share 0.3 --out src/covrl/quickstart/base_common $(ARGS)

probe: $(READY)
	$(VENV)/bin/python benchmarks/probe_base.py $(ARGS)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "covrl needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$(TORCH)"
	$(INSTALL) --editable ".[dev]"
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib src || true  # some files are for newer versions of Python only
	@touch $@

# Not in `dev`: only the site and its test want it.
$(DOCS): $(READY)
	$(INSTALL) --editable ".[dev,docs]"
	@touch $@

clean:
	rm -rf $(VENV) site build dist
