# Each target makes .venv where there is none and installs what it needs into it; after that it only compares dates.
#
#   make chat        talk with the bundled model (light: no PyTorch)
#   make bake-tiny   every stage of a bake and its report, in minutes, on a CPU
#   make test        the tests
#   make lint        style and types
#
# Needs Python 3.11 or 3.12. Another one than `python3`: make chat PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e
KEY := pyproject.toml constraints.txt

.PHONY: chat bake-tiny test lint
.NOTPARALLEL:

chat: .venv/.base
	@$(BIN)/chatbaker chat

bake-tiny: .venv/.train
	@$(BIN)/chatbaker bake tiny
	@$(BIN)/chatbaker report runs/tiny

test: .venv/.dev
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

.venv/.base: $(KEY) | $(BIN)/pip
	@echo "Installing what the chat needs into .venv; this happens once."
	@$(INSTALL) .
	@touch $@

.venv/.train: $(KEY) | $(BIN)/pip
	@echo "Installing what baking needs into .venv; this happens once."
	@$(INSTALL) '.[clean,eval,report,train]'
	@touch $@ .venv/.base

.venv/.dev: $(KEY) | $(BIN)/pip
	@echo "Installing what the tests need into .venv; this happens once."
	@$(INSTALL) '.[clean,eval,ray,report,train,dev]'
	@touch $@ .venv/.base .venv/.train

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here. Type: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
		echo "ChatBaker needs Python 3.11 or 3.12; this is $$($(PYTHON) --version)." >&2; \
		echo "Type: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
		echo "On Debian and Ubuntu type first: apt-get install python3-venv" >&2; exit 1; }
