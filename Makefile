# Every target sets up its own virtual environment: nothing has to be installed first but Python >= 3.11 and make.
#
# The environment is filled in stages, so that `make demo` does not wait for the docs builder: each stage is a stamp
# file in $(VENV), and is renewed when pyproject.toml or constraints.txt is newer than it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# `make demo DEMO_RUN=elsewhere` keeps the run of an earlier demo.
DEMO_RUN ?= demo-run
DEMO_TASK_RUN ?= demo-docstrings
DEMO_OPTIONS ?= --size tiny --vocab-size 1024 --seq-length 64 --validation-fraction 0.1 --steps 3500 --eval-every 500
# Results of the lab.
LAB_RUN ?= runs/lab
DEMO_TEXT ?= returns the [MASK] of the list
# Two workers, a file each: fixtures that train a model are shared by the tests of their file.
PYTEST_OPTIONS ?= -n 2 --dist loadfile
# `make bench BENCH=robustness` runs benchmarks/robustness.py alone. By default those whose rows the README shows.
BENCH ?= attention optimizer_step pretraining_throughput finetuning_step memory growth data_path

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# Only what the virtual environment holds is used, whatever the caller's shell has set.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Tests, examples and docs never look for a hub, and leave the cores to the test workers.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo demo-finetune test test-fast lab lab-smoke lint format types contracts docs examples wheel check-wheel check-env bench bench-quality-smoke ci clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/stage-runtime ## pre-train a small SIBERT on real text with plain SGD, fill masks, write a report
	@if [ -f "$(DEMO_RUN)/recipe.json" ]; then \
	  echo "make demo: removing $(DEMO_RUN)/ of an earlier demo (make demo DEMO_RUN=elsewhere keeps it)"; \
	  rm -rf "$(DEMO_RUN)"; \
	fi
	$(BIN)/sibert pretrain $(DEMO_OPTIONS) --out "$(DEMO_RUN)"
	$(BIN)/sibert fill-mask "$(DEMO_RUN)" "$(DEMO_TEXT)"
	$(BIN)/sibert report "$(DEMO_RUN)"

demo-finetune: $(VENV)/stage-runtime ## fine-tune the demo's model on a small real task, beside two baselines, and predict
	@[ -f "$(DEMO_RUN)/config.json" ] || $(MAKE) demo
	@if [ -f "$(DEMO_TASK_RUN)/finetune.json" ]; then rm -rf "$(DEMO_TASK_RUN)"; fi
	$(BIN)/sibert finetune "$(DEMO_RUN)" --task docstrings --baselines --out "$(DEMO_TASK_RUN)"
	@printf 'text\n"Return the number of items in the list."\n"Close the file and release the lock."\n' > "$(DEMO_TASK_RUN)/texts.csv"
	$(BIN)/sibert predict "$(DEMO_TASK_RUN)" --input "$(DEMO_TASK_RUN)/texts.csv" --output "$(DEMO_TASK_RUN)/predictions.jsonl"
	@cat "$(DEMO_TASK_RUN)/predictions.jsonl"

test: $(VENV)/stage-test ## run every test, the slow ones included
	$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest $(PYTEST_OPTIONS)

test-fast: $(VENV)/stage-test ## run the tests that take less than about ten seconds each
	$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest $(PYTEST_OPTIONS) -m "not slow"

lab: $(VENV)/stage-runtime ## verify the theory of training dynamics by number (under an hour), and write a report
	@status=0; $(OFFLINE) $(ONE_THREAD) $(BIN)/sibert lab run --out "$(LAB_RUN)" || status=$$?; \
	$(BIN)/sibert lab report "$(LAB_RUN)"; \
	exit $$status

lab-smoke: $(VENV)/stage-runtime ## the same from end to end in minutes, far too short to say anything
	$(OFFLINE) $(ONE_THREAD) $(BIN)/sibert lab run --smoke --out "$(LAB_RUN)-smoke"
	$(BIN)/sibert lab report "$(LAB_RUN)-smoke"

lint: $(VENV)/stage-dev ## check style and formatting (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/stage-dev ## apply the fixes and the formatting that `make lint` asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/stage-dev ## check the types of src (mypy, strict)
	$(BIN)/mypy

contracts: $(VENV)/stage-dev ## check that imports run one way (import-linter)
	$(BIN)/lint-imports

docs: $(VENV)/stage-dev ## build the documentation into site/, any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

examples: $(VENV)/stage-runtime ## run every example in its shortened form
	@scratch="$$(mktemp -d)"; trap 'rm -rf "$$scratch"' EXIT; \
	for example in examples/*.py; do \
	  echo "$$example --smoke"; \
	  (cd "$$scratch" && $(OFFLINE) "$(abspath $(BIN))/python" "$(CURDIR)/$$example" --smoke); \
	done

wheel: $(VENV)/stage-dev ## build wheel and source distribution into dist/
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .

check-wheel: wheel ## install the wheel in a clean, temporary environment and import it
	.ci/check_wheel "$(PYTHON)" dist/*.whl dist/*.tar.gz

check-env: $(VENV)/stage-dev ## check that the environment is consistent and free of torchvision
	$(BIN)/python -m pip check
	$(BIN)/python .ci/check_environment.py

bench: $(VENV)/stage-runtime ## measure speed and memory beside the peers (20 minutes), and renew the README's table; BENCH="name ..." for others
	@for script in $(BENCH); do \
	  echo "$$script"; \
	  $(OFFLINE) $(BIN)/python "benchmarks/$$script.py"; \
	done
	$(BIN)/python docs/figures/performance.py

bench-quality-smoke: $(VENV)/stage-runtime ## the comparison of forms and optimizers from end to end, far too small to say anything
	rm -f runs/quality/smoke.jsonl
	$(OFFLINE) $(BIN)/python benchmarks/quality/study.py --scale smoke
	$(OFFLINE) $(BIN)/python benchmarks/quality/report.py --scale smoke

ci: test lint types contracts examples docs check-env check-wheel ## everything that CI runs

clean: ## remove the environment and everything built (runs are kept)
	rm -rf "$(VENV)" build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# --- the environment ------------------------------------------------------------------------------------------------

# A virtual environment holds absolute paths: one made in another place, or whose interpreter is gone, is made again.
ifneq ($(shell [ "$$(cat "$(VENV)/made-for" 2>/dev/null)" = "$(CURDIR)" ] && "$(BIN)/python" -c 'import pip' 2>/dev/null && echo sound),sound)
.PHONY: $(VENV)/made-for
endif

$(VENV)/made-for:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "sibert needs Python 3.11 or newer and found no '$(PYTHON)': install it, or name one with make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "sibert needs Python 3.11 or newer, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1): name a newer one with make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments here: on Debian, run apt-get install python3-venv first" >&2; exit 1; }
	@echo "making the virtual environment $(VENV)"
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@echo "$(CURDIR)" > $@

$(VENV)/stage-runtime: $(VENV)/made-for pyproject.toml constraints.txt
	@echo "installing sibert into $(VENV) (about 2 GB and some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e .
	@touch $@

$(VENV)/stage-test: $(VENV)/made-for pyproject.toml constraints.txt
	@echo "installing sibert and its test tools into $(VENV) (about 2 GB and some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[test]'
	@touch $(VENV)/stage-runtime $@

$(VENV)/stage-dev: $(VENV)/made-for pyproject.toml constraints.txt
	@echo "installing sibert and all development tools into $(VENV) (about 2 GB and some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[dev]'
	@touch $(VENV)/stage-runtime $(VENV)/stage-test $@
