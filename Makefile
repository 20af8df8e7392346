# Everything runs in .venv, which the first target that needs it creates. `make help` lists targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup finetune tables reproduce report miniworld lab demo test test-slow faults soak fuzz bench bench-gpu check lock clean

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
export PIP_DISABLE_PIP_VERSION_CHECK := 1

READY  := .venv/.ready
EXTRAS := demo,dev,ray,slurm,trackers
TOOLS  := .venv/.tools
HEAVY  := browser,fuzz,wandb,mlflow
JOBS   ?= 2
ROUNDS ?= 5
MINUTES ?= 0
TABLE  ?=
PARSER ?= all
SECONDS ?= 30
FAST   := not slow and not browser and not ray
SLOW   := slow or browser or ray
QUICK  := floors environment notebook_form config losses metrics images progress failures

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with all that work needs (a second call does nothing)

finetune: $(READY) ## fine-tune the mini student with L_SDS; tables and figures end up in out.ipynb
	papermill notebooks/02_finetune.ipynb out.ipynb -p sds_weight 0.001

report: $(READY) ## from finished runs to reports/report.html and .pdf; makes a small run where there is none
	papermill notebooks/07_report.ipynb out_report.ipynb

tables: $(READY) ## rebuild reports/tables and reports/figures from reports/published, in seconds
	python -m sdslib.show.published tables

reproduce: $(READY) ## train every published study again, publish it and rebuild the tables
	python -m sdslib.show.published reproduce

miniworld: $(READY) ## draw the mini-world and train its models anew (up to 90 minutes)
	papermill notebooks/00_miniworld.ipynb out_miniworld.ipynb -p rebuild True

lab: $(READY) ## open the notebooks in JupyterLab
	jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

demo: $(READY) ## serve the demo as a page without code, on this machine alone, with a token
	JUPYTER_PATH=$(CURDIR)/etc voila notebooks/06_caption_demo.ipynb --Voila.ip=127.0.0.1 --token --template=page

test: $(READY) ## fast tests; at least 90% of the library must be covered
	pytest -n $(JOBS) -m "$(FAST)" --cov --cov-report=term --cov-fail-under=90

test-slow: $(TOOLS) ## notebooks executed on a reduced setting, kill tests, browser, Ray
	pytest -n $(JOBS) --dist loadgroup -m "$(SLOW)" --timeout=1200 || \
	  { code=$$?; [ $$code -eq 5 ] && echo "test-slow: no test is marked slow, browser or ray"; }

faults: $(READY) ## everything that can go wrong (docs/faults.md), one test each, as a table
	PYTHONPATH=tests python -m faults

soak: $(READY) ## kill a training run ROUNDS times and compare; MINUTES= trains on and watches memory
	PYTHONPATH=tests python -m soak --rounds $(ROUNDS) --minutes $(MINUTES) $(TABLE:%=--table %)

fuzz: $(TOOLS) ## feed a PARSER with damaged files for SECONDS of CPU (PARSER=all: each of them)
	PYTHONPATH=tests python -m fuzz $(PARSER) --seconds $(SECONDS)

bench: $(READY) ## speed and memory as ratios against straightforward code; fails where one falls short
	python -m benchmarks

bench-gpu: $(READY) ## the paper's models, and SDXL, at full size with random weights, where there is a GPU
	python -m benchmarks.gpu

check: $(READY) ## lint, format, types and the tests that take no models, in under a minute
	ruff check .
	ruff format --check .
	mypy
	pytest -q -n $(JOBS) -m "$(FAST)" $(QUICK:%=tests/test_%.py)

lock: $(TOOLS) ## write the versions installed in .venv to constraints.txt
	pip list --format=freeze --exclude-editable --exclude pip > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## remove caches and executed notebooks; keeps .venv, runs and data
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build out*.ipynb
	rm -f .coverage .coverage.*
	find sdslib tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

$(READY): pyproject.toml constraints.txt
	@[ -x .venv/bin/pip ] || { \
	  for python in python3.11 python3 python3.12 python3.13; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	      && exec "$$python" -m venv .venv; \
	  done; \
	  echo "make setup: no Python 3.11 or later found; install one, e.g. python3.11 and its venv module" >&2; \
	  exit 1; }
	python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

$(TOOLS): $(READY) # what the slow tests alone need
	python -m pip install -q -c constraints.txt -e '.[$(HEAVY)]'
	python -m pip install -q -c constraints.txt --no-deps trackio gradio-client orjson brotli uvicorn starlette python-multipart
	@touch $@
