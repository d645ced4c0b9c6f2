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

# ---- Notebooks and modules

# Two notebooks at a time, each on one thread
JOBS    ?= 2
MAKEFLAGS += --jobs=$(JOBS) --no-print-directory
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

RAN     := $(NBS:%.ipynb=.run/%.ok)
SAVED   := $(NBS:%.ipynb=.run/%.saved)

.run/exported: $(NBS) | $(ENV)
	@mkdir -p $(@D)
	@echo 'Exporting the notebooks to losslab/'
	@$(BIN)/python -m tools.export
	@touch $@

# The contents of the modules: newer only when a module is, so that exporting the same code again reruns nothing
.run/modules: .run/exported FORCE
	@find losslab -name '*.py' -not -name '_modidx.py' | sort | xargs cksum > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

.run/%.ok: %.ipynb .run/modules
	@$(call run_notebook,$<,)
	@touch $@

.run/%.saved: %.ipynb .run/modules
	@$(call run_notebook,$<,--save)
	@$(BIN)/nbdev-clean --fname $<
	@touch $(@:.saved=.ok) $@

# $(1) notebook, $(2) options of nbdev-test; what the run prints is shown if it fails
define run_notebook
mkdir -p $(dir .run/$(1)); echo 'Running $(1)'; start=$$(date +%s); \
TQDM_DISABLE=1 $(BIN)/nbdev-test $(1) $(2) > .run/$(1).log 2>&1 || { cat .run/$(1).log; exit 1; }; \
echo "  ran $(1) in $$(($$(date +%s) - start)) s"
endef

notebooks: $(RAN) ## Run the notebooks that changed, or all of them after a change of a module

test: $(RAN) ## Run the notebooks, the linter and the tests
	@$(BIN)/ruff check -q
	@echo 'Running the tests'
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

prepare: .run/exported ## Before a commit: export, run and save the notebooks, renew README and lists, lint
	@$(BIN)/python -m tools.contents
	@$(MAKE) $(SAVED)
	@$(MAKE) readme
	@$(BIN)/ruff check

readme: | $(ENV) ## Make README.md from the home page
	@$(BIN)/python -m tools.readme

bench: .run/modules ## Compare the speed of the losses with PyTorch's
	@env -u OMP_NUM_THREADS -u MKL_NUM_THREADS -u OPENBLAS_NUM_THREADS $(BIN)/python -m losslab.bench

# ---- The site

_docs/index.html: $(RAN) .run/modules _quarto.yml pyproject.toml $(wildcard tools/*.py nbs/*.css nbs/*.html nbs/*.svg nbs/fonts/*)
	@$(BIN)/python -m tools.site

site: _docs/index.html ## Build the site in _docs/
	@echo 'The site is in _docs/: open _docs/index.html, or make serve'

serve: site ## Show the site on localhost
	@echo 'The site is at http://localhost:$(PORT)/ until you press Ctrl-C'
	@$(BIN)/python -m http.server --bind localhost --directory _docs $(PORT)

PORT    ?= 8000

clean: ## Remove what was built, but not the environment
	@rm -rf _docs _proc .run build dist .pytest_cache .ruff_cache .hypothesis

FORCE:

# ---- Versions

constraints: ## Pin the versions that are installed now
	@echo '# The exact versions that contributors and CI install. Made by: make constraints' > constraints.txt
	@$(BIN)/pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu$$//' >> constraints.txt
