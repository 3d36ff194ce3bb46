# make demo    a camera and two sensors on this machine, with an outage; ends in a report
# make test    the whole quick test suite
# make check   formatting, lint and types
# make bench   speed and memory, as ratios in one run; ONLY=delivery (or runtime, inputs, sensors, series, nucleus, compiler) for a part
# make soak    the slow forms of the tests
# make component   the Greengrass component, in greengrass-build/
# Each makes .venv when it is missing, and installs only when the pinned versions have changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SAMPLES := digits co2 pump
COMPILED := $(SAMPLES:%=build/models/%.stamp)
# The compiler links with the machine's C compiler; a machine without one gets one as a wheel.
CC_LOCK := $(if $(shell command -v cc || command -v gcc || command -v clang),,-r requirements/cc.txt)

.PHONY: demo test check format bench soak component lock models clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile | head -7

demo: $(COMPILED)
	$(BIN)/lisiere simulate

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -m "not soak" -n logical --maxprocesses 8 --dist worksteal

soak: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -m soak

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.stamp $(COMPILED)
	PYTHONPATH=tests $(BIN)/python -m bench.run $(if $(ONLY),--only $(ONLY))

component:
	scripts/build-component

models: $(COMPILED)

build/models/%.stamp: models/%/job.json models/%/model.yaml models/%/model.onnx $(shell find compile/lisiere_compile -name '*.py') | $(VENV)/demo.stamp
	$(BIN)/lisiere compile models/$*/job.json
	@touch $@

$(BIN)/python:
	@echo "Making $(VENV) with $(PYTHON)."
	$(PYTHON) -c 'import sys; sys.exit("Lisière needs Python 3.10 or newer." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: requirements/demo.txt requirements/cc.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the demo needs; this takes about a minute, once."
	$(PIP) install --require-hashes -r requirements/demo.txt $(CC_LOCK)
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Components hold models for ARM, which zig links where GCC for it is absent.
$(VENV)/component.stamp: requirements/cc.txt | $(VENV)/demo.stamp
	command -v aarch64-linux-gnu-gcc >/dev/null && command -v arm-linux-gnueabihf-gcc >/dev/null || \
	  $(PIP) install --require-hashes -r requirements/cc.txt
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the tests need; this takes a minute or two, once."
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(VENV)/demo.stamp $@

# For maintainers: pin the newest versions that pyproject.toml allows. `uv` is installed for the purpose.
lock: $(VENV)/dev.stamp
	$(PIP) install uv
	$(BIN)/python requirements/lock.py

clean:
	rm -rf build bench greengrass-build components/*/greengrass-build $(VENV)
