# One command each for setting up, showing, checking, testing and measuring.
# Needs Python 3.11 or newer, pip and make; everything else comes from requirements.txt.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo story up down peers test check format bench clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/kyb-backup demo

story: setup
	$(BIN)/kyb-backup demo --story

up: setup
	$(BIN)/kyb-backup up

down: setup
	$(BIN)/kyb-backup down

# What others must be able to do with what we make: open archives, read metrics, rules, units and pages.
PEERS = age gpg zstd jq curl unshare systemd-analyze promtool chromium
peers:
	@missing=$$(for p in $(PEERS); do command -v $$p >/dev/null || echo $$p; done | sed -e s/gpg/gnupg/ -e s/unshare/util-linux/ -e s/systemd-analyze/systemd/ -e s/promtool/prometheus/); \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages for the tests:" $$missing; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

test: setup peers
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(TESTS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

SIZE ?= 1G
bench: setup
	$(BIN)/python -m benchmarks.run --size $(SIZE) $(BENCH)

clean: down
	rm -rf .kyb
