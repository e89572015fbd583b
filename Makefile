# `make demo` and `make test` need a Debian-like machine with Python 3.11 or newer, and nothing else.
SHELL := /bin/bash
BIN := .venv/bin
SPEECH ?=
HELD_OUT ?=
RECIPE ?= whisper-tiny.en_smollm2-135m
LLM ?=
ENCODER ?=
OUT ?= runs/real

.PHONY: help setup demo real reproduce docs test test-transformers-4 slow format clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: ## .venv with the exact versions of constraints.txt
	@tools/setup.sh

demo: setup ## train and evaluate the miniature speech LLM; SPEECH=FOLDER takes FSDD recordings instead of espeak-ng
	@$(BIN)/mtbi demo $(if $(SPEECH),--speech '$(SPEECH)')

real: setup ## train and evaluate on real speech: SPEECH='FOLDER …', and if you like HELD_OUT='FOLDER …' RECIPE= LLM= ENCODER= OUT=
	@$(BIN)/python tools/real.py $(SPEECH) $(if $(HELD_OUT),--held-out $(HELD_OUT)) --out '$(OUT)' --recipe '$(RECIPE)' \
	    $(if $(LLM),--llm '$(LLM)') $(if $(ENCODER),--encoder '$(ENCODER)')

reproduce: setup ## the generalisation benchmark: all arms, three seeds, one report in runs/reproduce (up to 3 hours on two cores)
	@$(BIN)/mtbi reproduce runs/reproduce $(if $(SPEECH),--speech '$(SPEECH)')

docs: setup ## the documentation as a web site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: setup ## formatting, lint, types and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist worksteal

# The tests of what calls transformers. All other code reaches it through these files alone.
TESTS_OF_TRANSFORMERS := tests/llm tests/model tests/hf tests/answers/test_teacher.py tests/corpus/test_align.py \
	tests/demo/test_text_llm.py tests/engine/test_memory.py tests/engine/test_zero3.py tests/use/test_export.py tests/use/test_turn.py

test-transformers-4: setup .venv/transformers-4 ## the fast tests of what uses transformers, with its version 4.57
	PYTHONPATH=$(CURDIR)/.venv/transformers-4 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" \
		--numprocesses auto --maxprocesses 4 --dist worksteal $(TESTS_OF_TRANSFORMERS)

.venv/transformers-4: constraints-transformers-4.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ --requirement $<
	touch $@

slow: setup ## the end-to-end tests, which take minutes
	$(BIN)/python -m pytest -m slow

format: setup ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches, keep runs/
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
