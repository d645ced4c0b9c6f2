# The few commands. `make` alone lists them.
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
NBS     := $(shell find nbs -name '*.ipynb' -not -path '*/.*' -not -path '*/_*' | sort)
ENV     := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help env export notebooks test site serve prepare readme bench constraints clean
.DELETE_ON_ERROR:

help: ## Say what the commands do
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(ENV) ## Make the environment with the pinned tools
$(ENV): constraints.txt settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,11) and "losslab needs Python 3.11 or later; name one: make PYTHON=python3.11")'
	@echo "Installing the pinned tools into $(VENV): a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install -q -c constraints.txt --no-deps $(shell sed -n '/^site_assets/,/^$$/p' settings.ini | tail -n +2)
	@touch $@

constraints: ## Pin the versions that are installed now
	@echo '# The exact versions that contributors and CI install. Made by: make constraints' > constraints.txt
	@$(BIN)/pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//' >> constraints.txt
