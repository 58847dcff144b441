# Each target makes .venv when it is missing and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)

.PHONY: demo test lint bench clean install

demo: $(STAMP)
	$(BIN)/mesh demo

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/test

lint: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

bench: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/bench

install: $(STAMP)

$(STAMP): $(PROJECTS) scripts/install
	PYTHON="$(PYTHON)" scripts/install
	@touch $@

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.* dist build
