PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DOCS := $(VENV)-docs
OWN = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
OTHERS = $(foreach version,$(filter-out $(OWN),3.11 3.12 3.13),$(if $(shell python$(version) -V 2>/dev/null),python$(version)))

.PHONY: demo test release-check release-tests release-wheel release-pythons lint system docs clean

demo: $(READY)  ## edit a procedural capture from start to end
	$(BIN)/qnerf demo demo

test: $(READY) lint system  ## lint, type check and test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not release"

release-check: test release-tests release-wheel release-pythons  ## all that `test` does, and what takes too long for it

release-tests: $(READY)  ## the tests that take minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist load -m release
	$(PYTHON) -m venv $(VENV)-detect  # MediaPipe brings another OpenCV
	$(VENV)-detect/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,detect]" scikit-image
	OMP_NUM_THREADS=1 $(VENV)-detect/bin/python -m pytest tests/pages/test_pose_start.py -m release

release-wheel:  ## the built package: its contents, its page on the index, and the demo from the wheel alone
	rm -rf dist $(VENV)-build $(VENV)-release
	$(PYTHON) -m venv $(VENV)-build
	$(VENV)-build/bin/python -m pip install --quiet build twine
	$(VENV)-build/bin/python -m build --outdir dist .
	$(VENV)-build/bin/twine check --strict dist/*
	$(PYTHON) tests/check_wheel.py dist/*.whl
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd $(VENV)-release && bin/qnerf demo demo  # from where the clone cannot be imported

release-pythons:  ## the tests on the other supported versions of Python on PATH, each in an environment of its own
	for python in $(OTHERS); do $(MAKE) test PYTHON=$$python VENV=.venv-$$python || exit 1; done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

system: $(READY)  ## the system packages that some tests need, where this user may install them
	sh tests/system.sh $(BIN)/python

docs: $(DOCS)/ready  ## build the manual as a site, site/index.html
	$(DOCS)/bin/mkdocs build --strict

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	{ echo "$(PYTHON) is no Python 3.11 to 3.13 with venv and pip: name one, as in make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"  # Python compiles what it imports
	touch $(READY)

$(DOCS)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt --group docs
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-detect $(DOCS) $(VENV)-build $(VENV)-release $(VENV)-python3.* dist site demo
