# A fresh machine needs Python >= 3.11 and make, nothing else:
#
#     make run      install, and run the clipping table of the PPO paper in its quick form
#     make test     install what the tests need, and run all of them
#
# `make PYTHON=python3.12 VENV=.venv312 test` tests another Python beside the first.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
REQUIREMENTS := pyproject.toml constraints.txt

.PHONY: run test smoke check format docs clean help
.DEFAULT_GOAL := help

help:
	@echo "make run | test | check | format | docs | clean"

# A directory of its own, so that a second `make run` replaces nothing but the first.
run: $(VENV)/.run
	$(BIN)/jrl run experiments/ppo_clipping_table.py --quick --directory runs/make_run --overwrite \
	  $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# A few files that touch every room and need neither torch nor tensorflow-datasets, for a second
# Python or an impatient person.
SMOKE := tests/test_house.py tests/test_install.py tests/test_train.py tests/test_tree.py \
	tests/test_distributions.py tests/test_trace_counts.py tests/test_rollout.py tests/test_cli.py \
	jrl/losses jrl/train.py jrl/loop.py jrl/envs/mujoco tests/envs/test_mujoco.py \
	tests/envs/test_mujoco_engines.py \
	jrl/lm tests/lm/test_log_probs.py tests/lm/test_lora.py tests/lm/test_sampler.py \
	tests/lm/test_chat_encoding.py tests/lm/test_rewards.py \
	jrl/data/jsonl.py jrl/data/loader.py jrl/data/packing.py tests/data/test_jsonl.py \
	tests/data/test_loader.py tests/data/test_loader_state.py tests/data/test_token_rows.py \
	jrl/algos/sft.py jrl/algos/dpo.py jrl/algos/grpo.py \
	tests/algos/test_token_objectives.py::test_there_is_something_to_compare \
	jrl/streams \
	tests/streams/test_stream_runs.py::test_a_run_leaves_metrics_samples_a_summary_and_a_model

smoke: $(VENV)/.smoke
	$(BIN)/python -m pytest $(SMOKE) -m "not slow" $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv312 .cache .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second `make` installs nothing unless the requirements changed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "jrl needs Python >= 3.11, and $(PYTHON) is none: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e '.[plots,mujoco]'
	@touch $@

# Neither torch nor tensorflow-datasets: a second Python is quickly there.
$(VENV)/.smoke: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e '.[smoke]'
	@touch $@ $(VENV)/.run

$(VENV)/.dev: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.smoke $(VENV)/.run

$(VENV)/.docs: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	@touch $@
