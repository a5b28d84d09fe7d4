PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DOCS := $(VENV)-docs

.PHONY: demo test release-check lint system docs clean

demo: $(READY)  ## edit a procedural capture from start to end
	$(BIN)/qnerf demo demo

test: $(READY) lint system  ## lint, type check and test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not browser and not release"
	$(BIN)/python -m pytest -m "browser and not release"  # alone: it measures how soon pages answer

release-check: test  ## all that `test` does, and the tests that take too long for it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist load -m release
	$(PYTHON) -m venv $(VENV)-detect  # MediaPipe brings another OpenCV
	$(VENV)-detect/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,detect]" scikit-image
	OMP_NUM_THREADS=1 $(VENV)-detect/bin/python -m pytest tests/pages/test_pose_start.py -m release

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

$(DOCS)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt --group docs
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-detect $(DOCS) site demo
