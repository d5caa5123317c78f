# Speech in, speech out: one DAG of real files, from corpora to a model that talks. `make help` lists the goals.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

PRESET ?= toy#        toy | mini | speechgpt-7b, or a folder of your own under speechgpt/presets/
CORPUS ?= $(PRESET)#  name of the corpus: its folder under work/PRESET/
READER ?=#            reader for ROOT (see data/CORPORA.md); empty: the preset's own corpus maker
ROOT ?=#              folder of the corpus that READER reads
SPEECH ?=#            mini: folder with a manifest.tsv of real recordings, added to the synthesised speech
ENCODER ?=#           a HuBERT folder of your own: skips the pretraining
LAYER ?=#             layer of ENCODER; empty: the one in the preset's codebook.yaml
PYTHON ?= python3.11
LAUNCH ?=#            e.g. torchrun --nproc_per_node 8 -m speechgpt.cli: launches the trainers
DEMO_DIR := work/demo

BIN := .venv/bin
SPEECHGPT := $(BIN)/speechgpt
TRAIN := $(if $(LAUNCH),$(BIN)/$(LAUNCH),$(SPEECHGPT))
CONFIG := speechgpt/presets/$(PRESET)
K ?= $(shell sed -n 's/^clusters: *\([0-9]*\).*/\1/p' $(CONFIG)/codebook.yaml)
C := work/$(PRESET)/$(CORPUS)
U := $(C)/km$(K)
SETUP := .venv/.setup

.PHONY: help setup demo test parity lint data codebook units instruct stage1 stage2 stage3 vocoder model eval talk toy clean FORCE

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'
	@echo "  with PRESET=$(PRESET) CORPUS=$(CORPUS) K=$(K); your own corpus: READER= ROOT= (data/CORPORA.md)"

# ---- the house ------------------------------------------------------------------------------------------------
setup: $(SETUP) ## create .venv with everything that the goals below need

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	if $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[train,judge,dev]'; \
	else \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,judge,dev]'; \
	fi
	touch $@

demo: | $(SETUP) ## ask the shipped question, hear the answer: work/demo/answer.wav
	$(SPEECHGPT) demo --out-dir $(DEMO_DIR)

test: | $(SETUP) ## run the test suite
	$(BIN)/python -m pytest tests

lint: | $(SETUP) ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

talk: | $(SETUP) ## answer the recording IN=question.wav into the folder OUT=work/answers
	$(SPEECHGPT) talk "$(IN)" --out-dir "$(or $(OUT),work/answers)"

toy: ## run the whole pipeline on the toy preset, on CPU, in minutes
	$(MAKE) --no-print-directory eval PRESET=toy

# A config counts as changed only when its content changed: a mere touch retrains nothing.
$(C)/config/%.yaml: $(CONFIG)/%.yaml FORCE
	@mkdir -p $(@D); cmp -s $< $@ || cp $< $@
FORCE:
