# `make demo`, `make test` and `make docs` set up what they need in .venv, from a plain Python >= 3.10 with pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo check test test-slow lint docs dist dist-oldest gpu gpu-rehearsal clean sweep

demo: .venv/examples
	$(BIN)/python examples/quickstart.py

# Before a commit, in two minutes: the linters, and the tests that need no processes, no compiler and no experiment.
check: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not distributed and not compiler and not experiment"

test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

# Models that others wrote: hours on two cores. Goes on where it was stopped, and writes docs/models.md.
sweep: .venv/test
	cd tests && OMP_NUM_THREADS=1 nice -n 5 ../$(BIN)/python -W ignore -m sweep

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, in out/docs: warnings are errors, and every link, anchor and picture in it leads somewhere.
docs: .venv/docs
	rm -rf out/docs
	$(BIN)/python -m sphinx -W --keep-going -q docs out/docs
	$(BIN)/python docs/check_html.py out/docs

# What would be released: the sdist and the wheel in dist/, tried in fresh environments. Each holds torch: gigabytes.
dist: .venv/dist
	$(BIN)/python .ci/dist.py

# The same wheel with the oldest releases that pyproject.toml admits, say `make dist-oldest PYTHON=python3.10`.
dist-oldest: .venv/dist
	$(BIN)/python .ci/dist.py --no-build --oldest --python $(PYTHON)

# On a machine with a GPU: its tests and its numbers, in under ten minutes. The rehearsal does the same on any CPU.
gpu: .venv/test
	$(BIN)/python -m examples.experiments.gpu

gpu-rehearsal: .venv/test
	$(BIN)/python -m examples.experiments.gpu --rehearse

# One resolver run for torch, torchvision and timm: mixed builds do not import together.
.venv/examples .venv/test .venv/docs .venv/dist: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e '.[$(notdir $@)]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info out
