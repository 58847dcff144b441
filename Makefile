# Each target makes .venv when it is missing and does nothing twice.
PYTHON ?= python3
# Each server is a process of its own: without compiled modules every start would compile them all.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
STAMP := .venv/installed
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)

.PHONY: demo test test-fast lint bench fuzz soak reliability clean install

demo: $(STAMP)
	$(BIN)/mesh demo

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/test

# Under a minute: every test that starts no process. Before each commit.
test-fast: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/test-fast

lint: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

bench: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/bench

# As long as one likes: make fuzz SECONDS=600
fuzz: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" SECONDS="$(or $(SECONDS),60)" scripts/fuzz

soak: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" MINUTES="$(MINUTES)" scripts/soak

reliability: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" RELIABILITY_LONG=1 pytest tests/reliability

install: $(STAMP)

$(STAMP): $(PROJECTS) scripts/install
	PYTHON="$(PYTHON)" scripts/install
	@touch $@

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.* dist build
