# Speech in, speech out: one DAG of real files, from corpora to a model that talks. `make help` lists the goals.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

PRESET ?= toy#        toy | mini | speechgpt-7b, or a folder of your own in speechgpt/presets/
CORPUS ?= $(PRESET)#  name of the corpus: its folder in work/PRESET/
READER ?=#            reader of your own corpus (data/CORPORA.md); empty: the preset makes its corpus
ROOT ?=#              folder that READER reads
READ_OPTIONS ?=#      more for the reader, e.g. --splits train-clean-100 (speechgpt manifest --help)
SPLIT_OPTIONS ?= --unknown text# how it is split, e.g. --by librispeech=keep (speechgpt split --help)
QUALITY_OPTIONS ?=#   more to judge units by, e.g. --ctc, in minutes on a GPU (speechgpt unit-quality --help)
QA ?=#                your questions and answers (JSON lines), for stage 3
SPEECH ?=#            folder with a manifest.tsv of recordings (MODEL_CARD.md): mini trains on them, `make listen` plays them
BOOKS ?= books#       mini: folder with novels as plain .txt files (MODEL_CARD.md says which)
PROSE ?= data/text/prose /usr/share/wordnet $(BOOKS)# English prose: ours, WordNet's data.* (Debian: wordnet-base), books
TALKER ?= mini#       model that `make talk` and `make listen` ask: mini, or the folder that `make model` wrote
ENCODER ?=#           HuBERT folder of your own, or hub name: nothing is pretrained
LLAMA ?=#             LLaMA folder or hub name that is extended, instead of the one that llama.yaml names
TORCHRUN ?=#          e.g. "torchrun --nproc_per_node 8": starts the trainers on several GPUs
GPUS ?= 1#            for `make mini`: 1 or 4
PRETRAIN_OPTIONS ?=#  more for the encoder's training, e.g. --steps 28000
PARITY ?=#            1: `make test` installs fairseq and requires it, the judge of converted files
DEVICE ?= auto#       auto | cpu | cuda, for all but the trainers that TORCHRUN starts
PYTHON ?= $(shell command -v python3.11 || echo python3)

BIN := .venv/bin
SPEECHGPT := $(BIN)/speechgpt
# The stages' trainer follows what it sees; the others take --device.
HIDE := $(if $(filter cpu,$(DEVICE)),CUDA_VISIBLE_DEVICES= )
LAUNCH := $(if $(TORCHRUN),$(BIN)/$(TORCHRUN) -m speechgpt.cli,$(SPEECHGPT))
SETUP := .venv/.setup
CONFIG := speechgpt/presets/$(PRESET)
PLAIN := $(shell sed -n 's/^plain_text: *true.*/--plain/p' $(CONFIG)/model.yaml)
K ?= $(shell sed -n 's/^k: *\([0-9]*\).*/\1/p' $(CONFIG)/codebook.yaml)
C := work/$(PRESET)/$(CORPUS)#  what does not depend on K
U := $(C)/km$(K)#               what does
DATA := $(C)/data
# Empty for a hub name, which the commands look up themselves.
ENCODED := $(if $(ENCODER),$(wildcard $(ENCODER)/config.json),$(C)/encoder/done.json)
FITTED := $(or $(ENCODER),$(C)/encoder)# what the codebook is fitted to
E = $(if $(REFINE),$(U)/encoder,$(FITTED))
CODEBOOK := $(U)/codebook.safetensors
UNITS := $(U)/units.jsonl
MODEL := $(U)/model/speechgpt.json
# A preset may train the encoder further towards its own codebook, which stays: refine.yaml, then voices.yaml.
REFINE := $(if $(ENCODER),,$(wildcard $(CONFIG)/refine.yaml))
VOICES := $(if $(REFINE),$(wildcard $(CONFIG)/voices.yaml))
REFINED := $(if $(VOICES),$(U)/refined,$E)
# For each fold of the recordings and voices, a preset may train an encoder without it (folds.yaml). The language model
# alone hears the fold's units by that encoder; the vocoder, stage 1 and the model itself keep the one of all.
FOLDS := $(if $(REFINE),$(wildcard $(CONFIG)/folds.yaml))
FOLD := $(if $(FOLDS),$(shell seq 0 $$(($$(sed -n 's/^folds: *\([0-9]*\).*/\1/p' $(FOLDS)) - 1))))# 0 1 ...
LM_UNITS := $(if $(FOLDS),$(U)/lm-units.jsonl,$(UNITS))
# A preset may train all weights of the language model more, on the rows of stages 2 and 3 together (round.yaml): so many
# rounds, each from the last and in an order of its own. The mean of what they end with is the model.
ROUNDS := 1 2 3
ROUND := $(wildcard $(CONFIG)/round.yaml)
LLM := $(if $(ROUND),$(U)/round,$(U)/llm)
LLM_MADE := $(LLM)/config.json

$(foreach v,PRESET CORPUS SPEECH QA ENCODER,$(if $(word 2,$($v)),\
  $(error $v=$($v): make cannot follow paths with spaces; give a link without them)))

.PHONY: help setup demo test lint data encoder codebook units instruct stage1 stage2 stage3 vocoder model eval talk listen toy mini bench
.PHONY: FORCE llm refined folds

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/make \1|\2/p' Makefile | \
	  while IFS='|' read -r goal what; do printf '  %-16s %s\n' "$$goal" "$$what"; done
	@echo "  with PRESET=$(PRESET) CORPUS=$(CORPUS) K=$(K); your own corpus: READER= ROOT= (data/CORPORA.md)"

# ---- the house ------------------------------------------------------------------------------------------------
setup: $(SETUP) ## create .venv with everything that the goals below need

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	if $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[train,judge,dev]'; \
	else \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,judge,dev]'; \
	fi
	touch $@

demo: | $(SETUP) ## ask the shipped question, hear the answer: work/demo/answer.wav
	$(SPEECHGPT) demo --out-dir work/demo

# fairseq comes as source: building it takes a C++ compiler and three minutes, once for each machine and Python.
PARITY_SETUP := .venv/.setup-parity
$(PARITY_SETUP): $(SETUP)
	if [ -x $(BIN)/uv ]; then install="$(BIN)/uv pip install --python $(BIN)/python"; \
	else install="$(BIN)/python -m pip install"; fi; \
	$$install --quiet -c constraints.txt -e '.[train,judge,dev,fairseq]' || { \
	  echo "make: fairseq could not be built; it needs gcc, g++ and Python's headers (apt-get install build-essential" \
	    "python3-dev); \`make test\` alone runs without it" >&2; exit 1; }
	touch $@

test: | $(SETUP) $(if $(filter 1,$(PARITY)),$(PARITY_SETUP)) ## run the test suite; PARITY=1 with fairseq as the judge
	$(if $(filter 1,$(PARITY)),SPEECHGPT_PARITY=1) $(BIN)/python -m pytest tests -rfEs

lint: | $(SETUP) ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

talk: | $(SETUP) ## answer the recording IN=question.wav into the folder OUT=work/answers
	$(if $(IN),,@echo "make talk: give IN=question.wav" >&2; exit 2)
	$(SPEECHGPT) talk "$(IN)" --model "$(TALKER)" --device $(DEVICE) --out-dir "$(or $(OUT),work/answers)"

# SPEECH, where it is given; else what the preset has read or made, as it is: listening makes no corpus.
# The preset's own questions are no questions of SPEECH.
LISTEN_QA = $(or $(QA),$(if $(SPEECH),,$(wildcard $(QA_FILE))))
HEARD := $(if $(SPEECH),$(C)/speech/split.jsonl,$(wildcard $(DATA)/manifest.jsonl $(C)/qa/spoken/manifest.jsonl))
listen: $(if $(SPEECH),$(HEARD)) | $(SETUP) ## hear held-out inputs, resyntheses, answers: work/listen/index.html
	$(if $(HEARD),,@echo "make listen: give SPEECH=folder with a manifest.tsv (MODEL_CARD.md), or make data first" >&2; exit 2)
	$(SPEECHGPT) listen --model "$(TALKER)" --manifest $(HEARD) $(addprefix --qa ,$(LISTEN_QA)) \
	  --device $(DEVICE) --out work/listen/index.html

# fairseq is the released way on a CPU; where it cannot be built, its parts are named as not measured.
bench: | $(SETUP) $(if $(filter cuda,$(DEVICE)),,$(PARITY_SETUP)) ## speeds beside the released way: work/bench/; DEVICE=cuda, ONLY="words"
	$(SPEECHGPT) bench --device $(if $(filter auto,$(DEVICE)),cpu,$(DEVICE)) $(if $(ONLY),--only $(ONLY)) --out work/bench

# The encoder is trained by four processes, towards its codebook by one (refine.yaml) and in more voices by four
# (voices.yaml), the encoders that leave a fold out by one each (folds.yaml), the vocoder by two, the language model by
# one. With one GPU the encoder takes four times the steps where four would train it, and the vocoder hears half as
# much. MODEL_CARD.md says how the shipped weights came about.
BY_FOUR = $(if $(filter 4,$(GPUS)),TORCHRUN="torchrun --nproc_per_node 4",PRETRAIN_OPTIONS="--steps $1" TORCHRUN=)
mini: ## train the shipped model from scratch and measure it: SPEECH=folder, BOOKS=folder, and GPUS=4 where there are so many
	$(MAKE) --no-print-directory encoder PRESET=mini $(call BY_FOUR,28000)
	$(MAKE) --no-print-directory refined PRESET=mini TORCHRUN=
	$(MAKE) --no-print-directory codebook PRESET=mini $(call BY_FOUR,24960)
	$(MAKE) --no-print-directory folds PRESET=mini TORCHRUN=
	$(MAKE) --no-print-directory vocoder PRESET=mini TORCHRUN="$(if $(filter 4,$(GPUS)),torchrun --nproc_per_node 2)"
	$(MAKE) --no-print-directory instruct PRESET=mini TORCHRUN=
	$(MAKE) --no-print-directory llm PRESET=mini TORCHRUN=
	$(MAKE) --no-print-directory stage3 PRESET=mini TORCHRUN=
	$(MAKE) --no-print-directory eval PRESET=mini TORCHRUN=

toy: ## run the whole pipeline on the toy preset, on CPU, in minutes
	OMP_NUM_THREADS=1 $(MAKE) $(if $(findstring -j,$(MAKEFLAGS)),,-j2) --no-print-directory eval PRESET=toy DEVICE=cpu

# ---- the pipeline: goals, then the files that they stand for ----------------------------------------------------
data: $(DATA)/manifest.jsonl ## recordings, their texts and splits in one manifest
encoder: $(ENCODED) ## HuBERT by masked prediction
llm: $(U)/llm/config.json
refined: $(if $(REFINE),$(REFINED)/done.json) # towards its codebook, before voices.yaml
folds: $(FOLD:%=$(U)/folds/encoder-%/done.json) # encoders that have not heard everything
codebook: $(CODEBOOK) ## k-means on its features, or centroids that tell phones apart
units: $(UNITS) $(U)/quality.json ## every recording as discrete units, and how good they are
instruct: $(U)/instruct.jsonl ## rows with task descriptions
stage1: $(U)/stage1/done.json ## modality adaptation: units alone
stage2: $(U)/stage2/done.json ## cross-modal instruction: ASR and TTS rows
stage3: $(LLM_MADE) ## chain of modality: LoRA, merged
vocoder: $(U)/vocoder/done.json ## units back to speech
model: $(MODEL) ## all parts in one folder, as `--model` takes it
eval: $(U)/report/report.json ## measure the model: report.json and report.html

# A config counts as changed only when its content did: a mere touch retrains nothing.
$(C)/config/%.yaml: $(CONFIG)/%.yaml FORCE
	+@mkdir -p $(@D); cmp -s $< $@ || cp $< $@
FORCE:

# -- data
ifneq ($(SPEECH),)
$(C)/speech/read.jsonl: $(SPEECH)/manifest.tsv | $(SETUP)
	$(SPEECHGPT) manifest --reader tsv --root "$(SPEECH)" --plain --out $@
# Orders have no speakers and are few: a fifth is held back by what they say. Of the digits, one speaker.
SPLIT_kathleen := --dev 0.04 --test 0.06
SPLIT_speechocean762 := --dev 0.04 --test 0.08
SPLIT_coffee := --dev 0.05 --test 0.2 --unknown text
SPLIT_digits := --dev 0 --test 0.25 --share-text digits
$(C)/speech/%.split.jsonl: $(C)/speech/read.jsonl
	$(SPEECHGPT) split --manifest $< --only $* --seed 1 $(or $(SPLIT_$*),$(SPLIT_OPTIONS)) --out $@
# Those of mini's four that the table names; where it names none of them, all its corpora.
NAMED := $(sort $(shell tr -d '\r' 2>/dev/null < $(SPEECH)/manifest.tsv | awk -F'\t' \
  'NR == 1 {for (i = 1; i <= NF; i++) if ($$i == "corpus") c = i; next} c && $$c {print $$c}'))
SPOKEN := $(or $(filter coffee digits kathleen speechocean762,$(NAMED)),$(NAMED),tsv)
$(C)/speech/split.jsonl: $(SPOKEN:%=$(C)/speech/%.split.jsonl)
	$(SPEECHGPT) merge $^ --out $@
endif
ifneq ($(READER),)
ifeq ($(PRESET),mini)
$(error PRESET=mini names its own corpora and voices: for a corpus of your own take PRESET=own, or a copy of it)
endif
$(C)/read.jsonl: | $(SETUP)
	$(SPEECHGPT) manifest --reader $(READER) --root "$(ROOT)" $(PLAIN) $(READ_OPTIONS) --out $@
$(DATA)/manifest.jsonl: $(C)/read.jsonl
	$(SPEECHGPT) split --manifest $< $(SPLIT_OPTIONS) --out $@
else ifeq ($(PRESET),mini)
TEXTS := $(addprefix $(C)/texts/,sentences.jsonl questions.jsonl answers.jsonl)
# Text that nobody speaks.
PROSE_TEXT := $(if $(shell sed -n '/^prose_text: *[1-9]/p' $(CONFIG)/corpus.yaml),$(C)/texts/text.jsonl)
ifneq ($(SPEECH),)
RECORDED := $(C)/speech/aligned.jsonl $(C)/speech/perturbed/manifest.jsonl
$(C)/speech/aligned.jsonl: $(C)/speech/split.jsonl
	$(SPEECHGPT) align --manifest $< --out $@ --jsgf-slots
$(C)/speech/perturbed/manifest.jsonl: $(C)/config/perturb.yaml $(C)/speech/aligned.jsonl
	$(SPEECHGPT) perturb --config $< --manifest $(C)/speech/aligned.jsonl --out $(@D)
endif
ifeq ($(SPEECH),)
$(TEXTS) $(PROSE_TEXT) $(DATA)/qa.jsonl: NEEDS_SPEECH
.PHONY: NEEDS_SPEECH
NEEDS_SPEECH:
	@echo "PRESET=mini learns from people too: give SPEECH=folder with a manifest.tsv (MODEL_CARD.md)" >&2; exit 2
else
PROSE_FILES := $(wildcard $(PROSE) $(addsuffix /*.txt,$(PROSE)) $(addsuffix /data.*,$(PROSE)))
$(TEXTS) $(PROSE_TEXT) $(DATA)/qa.jsonl &: $(C)/config/corpus.yaml $(RECORDED) $(PROSE_FILES) | $(SETUP)
	$(SPEECHGPT) mini-corpus --config $< --speech $(RECORDED) $(if $(PROSE),--prose $(PROSE)) --out $(C)/texts
	mkdir -p $(DATA); mv $(C)/texts/qa.jsonl $(DATA)/qa.jsonl
endif
$(C)/spoken/manifest.jsonl: $(TEXTS)
	$(SPEECHGPT) synthesize --sentences $^ --out $(@D)
# The encoder disturbs what it hears by itself: the disturbed copies are for those who learn from its units.
AS_HEARD := $(C)/heard.jsonl
$(AS_HEARD): $(C)/spoken/manifest.jsonl $(firstword $(RECORDED))
	$(SPEECHGPT) merge $^ --out $@
SPOKEN_COPIES := $(patsubst %,$(C)/spoken/perturbed/manifest.jsonl,$(wildcard $(CONFIG)/perturb-spoken.yaml))
$(C)/spoken/perturbed/manifest.jsonl: $(C)/config/perturb-spoken.yaml $(C)/spoken/manifest.jsonl
	$(SPEECHGPT) perturb --config $< --manifest $(C)/spoken/manifest.jsonl --out $(@D)
$(DATA)/manifest.jsonl: $(AS_HEARD) $(lastword $(RECORDED)) $(SPOKEN_COPIES)
	$(SPEECHGPT) merge $^ --out $@
else ifeq ($(PRESET),toy)
$(DATA)/manifest.jsonl $(DATA)/qa.jsonl &: $(C)/config/corpus.yaml | $(SETUP)
	$(SPEECHGPT) toy-corpus --config $< --out $(DATA)
else
$(DATA)/manifest.jsonl $(DATA)/qa.jsonl:
	@echo "PRESET=$(PRESET) makes no corpus of its own: give READER= and ROOT= (data/CORPORA.md)" >&2; exit 2
endif

# Stage 3 of your own corpus: your questions and answers, spoken by the corpus maker and encoded beside the rest.
ifneq ($(QA),)
ASKED := $(addprefix $(C)/qa/,questions.jsonl answers.jsonl)
$(ASKED) $(C)/qa/qa.jsonl &: $(QA) | $(SETUP)
	$(SPEECHGPT) qa-sentences --qa "$(QA)" $(PLAIN) --out $(C)/qa
$(C)/qa/spoken/manifest.jsonl: $(ASKED)
	$(SPEECHGPT) synthesize --sentences $^ --out $(@D)
$(U)/qa-units.jsonl: $(C)/qa/spoken/manifest.jsonl $(CODEBOOK)
	$(SPEECHGPT) units --encoder "$E" --codebook $(CODEBOOK) --manifest $< --device $(DEVICE) --out $@
QA_FILE := $(C)/qa/qa.jsonl
QA_UNITS := $(U)/qa-units.jsonl
CHAT := $(QA_FILE)
else ifeq ($(READER),)
QA_FILE := $(DATA)/qa.jsonl
QA_UNITS := $(LM_UNITS)
CHAT := $(QA_FILE)
else # stages 1 and 2 do without
QA_FILE := $(C)/qa.jsonl
$(QA_FILE):
	@echo "stage 3 needs questions and answers: give QA=file.jsonl (data/CORPORA.md)" >&2; exit 2
endif

# -- units
AS_HEARD ?= $(DATA)/manifest.jsonl
ifeq ($(ENCODER)$(PRESET),speechgpt-7b)
$(C)/encoder/done.json:
	@echo "PRESET=speechgpt-7b takes an encoder that exists: give ENCODER=folder (mHuBERT base, Hugging Face layout)" >&2; exit 2
else ifeq ($(ENCODER),)
$(C)/encoder/done.json: $(C)/config/encoder.yaml $(AS_HEARD)
	$(LAUNCH) pretrain --config $< --manifest $(AS_HEARD) $(PRETRAIN_OPTIONS) $(if $(TORCHRUN),,--device $(DEVICE)) --out $(@D)
endif
FIT := $(if $(REFINE),$(U)/fitted.safetensors,$(CODEBOOK))
$(U)/codebook.yaml: $(C)/config/codebook.yaml
	@mkdir -p $(@D); sed 's/^k:.*/k: $(K)/' $< > $@
$(FIT): $(U)/codebook.yaml $(ENCODED) $(DATA)/manifest.jsonl
	$(SPEECHGPT) codebook --config $< --encoder "$(FITTED)" --manifest $(DATA)/manifest.jsonl --device $(DEVICE) --out $@
ifneq ($(REFINE),)
$(REFINED)/done.json: $(C)/config/refine.yaml $(FIT) $(AS_HEARD)
	$(LAUNCH) pretrain --config $< --manifest $(AS_HEARD) --init $(FITTED) --teacher $(FITTED) --teacher-codebook $(FIT) $(if $(TORCHRUN),,--device $(DEVICE)) --out $(@D)
ifneq ($(VOICES),)
$E/done.json: $(C)/config/voices.yaml $(REFINED)/done.json $(AS_HEARD)
	$(LAUNCH) pretrain --config $< --manifest $(AS_HEARD) --init $(REFINED) --teacher $(REFINED) --teacher-codebook $(REFINED)/codebook.safetensors $(PRETRAIN_OPTIONS) $(if $(TORCHRUN),,--device $(DEVICE)) --out $(@D)
endif
$(CODEBOOK): $E/done.json
	cp $E/codebook.safetensors $@
endif
$(UNITS): $(DATA)/manifest.jsonl $(CODEBOOK)
	$(SPEECHGPT) units --encoder "$E" --codebook $(CODEBOOK) --manifest $< --device $(DEVICE) --out $@
# Units of what the encoder was trained on are cleaner than any that it gives later: the language model learns from
# those of encoders that have not heard the recording, nor the voice.
ifneq ($(FOLDS),)
$(foreach i,$(FOLD),$(C)/folds/heard-$i.jsonl $(C)/folds/unheard-$i.jsonl) &: $(C)/config/folds.yaml $(AS_HEARD) $(DATA)/manifest.jsonl
	$(SPEECHGPT) folds --config $< --heard $(AS_HEARD) --manifest $(DATA)/manifest.jsonl --out $(C)/folds
$(U)/folds/encoder-%/done.json: $(C)/config/fold-encoder.yaml $(CODEBOOK) $(C)/folds/heard-%.jsonl
	$(LAUNCH) pretrain --config $< --manifest $(C)/folds/heard-$*.jsonl --teacher $E --teacher-codebook $(CODEBOOK) $(if $(TORCHRUN),,--device $(DEVICE)) --out $(@D)
$(U)/folds/units-%.jsonl: $(C)/folds/unheard-%.jsonl $(U)/folds/encoder-%/done.json
	$(SPEECHGPT) units --encoder $(U)/folds/encoder-$* --codebook $(U)/folds/encoder-$*/codebook.safetensors --manifest $< --device $(DEVICE) --out $@
UNHEARD := $(FOLD:%=$(U)/folds/units-%.jsonl)
# What was synthesised, said again in units cut out of people's recordings.
SELECTED := $(patsubst %,$(U)/selected.jsonl,$(wildcard $(CONFIG)/unit-selection.yaml))
$(U)/selected.jsonl: $(C)/config/unit-selection.yaml $(UNHEARD) $(UNITS) $(DATA)/manifest.jsonl
	$(SPEECHGPT) unit-selection --config $< --donors $(UNHEARD) $(UNITS) --manifest $(DATA)/manifest.jsonl --out $@
# The first file that has a row gives it.
$(LM_UNITS): $(UNHEARD) $(UNITS) $(SELECTED)
	$(SPEECHGPT) merge --first $^ --out $@
endif
$(U)/quality.json: $(UNITS)
	$(SPEECHGPT) unit-quality --units $< --manifest $(DATA)/manifest.jsonl --codebook $(CODEBOOK) \
	  --device $(DEVICE) $(QUALITY_OPTIONS) --out $@

# -- vocoder
$(U)/vocoder/done.json: $(C)/config/vocoder.yaml $(UNITS)
	$(LAUNCH) vocoder --config $< --manifest $(DATA)/manifest.jsonl --units $(UNITS) --codebook $(CODEBOOK) \
	  $(if $(TORCHRUN),,--device $(DEVICE)) --out $(@D)

# -- language model
$(U)/instruct.jsonl: $(C)/config/instruct.yaml $(LM_UNITS) $(CHAT)
	$(SPEECHGPT) instruct --config $< --units $(LM_UNITS) --chat $(CHAT) --out $@
$(U)/chain.jsonl: $(C)/config/chain.yaml $(QA_FILE) $(QA_UNITS)
	$(SPEECHGPT) chain --config $< --qa $(QA_FILE) --units $(QA_UNITS) --out $@
$(C)/tokenizer/tokenizer.json: $(C)/config/tokenizer.yaml $(DATA)/manifest.jsonl $(CHAT) $(PROSE_TEXT)
	$(SPEECHGPT) tokenizer --config $< --text $(DATA)/manifest.jsonl $(CHAT) $(PROSE_TEXT) data/tasks/*.txt \
	  $(if $(LLAMA),--from "$(LLAMA)") --out $(@D)
$(U)/lm/config.json: $(C)/config/llama.yaml $(C)/tokenizer/tokenizer.json
	$(SPEECHGPT) init-lm --config $< --tokenizer $(C)/tokenizer --units $(K) $(if $(LLAMA),--base "$(LLAMA)") --out $(@D)
$(U)/stage1/done.json: $(C)/config/stage1.yaml $(U)/lm/config.json $(UNITS)
	$(HIDE)$(LAUNCH) train --config $< --model $(U)/lm --data $(UNITS) $(STAGE1_TEXT) --out $(@D)
$(U)/stage2/done.json: $(C)/config/stage2.yaml $(U)/stage1/done.json $(U)/instruct.jsonl
	$(HIDE)$(LAUNCH) train --config $< --model $(U)/stage1 --data $(U)/instruct.jsonl --out $(@D)
# What a preset says about questions that nobody speaks.
TYPED := $(patsubst %,$(U)/chain-typed.jsonl,$(wildcard $(CONFIG)/chain-typed.yaml))
$(U)/chain-typed.jsonl: $(C)/config/chain-typed.yaml $(QA_FILE)
	$(SPEECHGPT) chain --config $< --qa $(QA_FILE) --out $@
$(U)/stage3/done.json: $(C)/config/stage3.yaml $(U)/stage2/done.json $(U)/chain.jsonl $(TYPED) $(U)/instruct.jsonl
	$(HIDE)$(LAUNCH) train --config $< --model $(U)/stage2 --data $(U)/chain.jsonl $(TYPED) --mix $(U)/instruct.jsonl --out $(@D)
$(U)/llm/config.json: $(U)/stage3/done.json
	$(SPEECHGPT) merge-lora --adapter $(U)/stage3 --base $(U)/stage2 --out $(@D)
$(U)/round-%.yaml: $(C)/config/round.yaml
	@mkdir -p $(@D); sed 's/^seed:.*/seed: $*/' $< > $@
$(U)/round-1/done.json: BEFORE = $(U)/llm
$(foreach n,$(filter-out 1,$(ROUNDS)),$(eval $(U)/round-$n/done.json: BEFORE = $(U)/round-$(word $n,0 $(ROUNDS)))\
  $(eval $(U)/round-$n/done.json: $(U)/round-$(word $n,0 $(ROUNDS))/done.json))
$(ROUNDS:%=$(U)/round-%/done.json): $(U)/round-%/done.json: $(U)/round-%.yaml $(U)/llm/config.json $(U)/chain.jsonl $(TYPED) $(U)/instruct.jsonl
	$(HIDE)$(LAUNCH) train --config $< --model $(BEFORE) --data $(U)/chain.jsonl $(TYPED) --mix $(U)/instruct.jsonl --out $(@D)
$(U)/round/config.json: $(ROUNDS:%=$(U)/round-%/done.json)
	$(SPEECHGPT) average $(ROUNDS:%=$(U)/round-%) --out $(@D)
# A LLaMA that starts from fresh weights first sees text in stage 1.
BASE = $(or $(LLAMA),$(shell sed -n 's/^base: *//p' $(CONFIG)/llama.yaml))
STAGE1_TEXT = $(if $(BASE),,--mix $(DATA)/manifest.jsonl $(CHAT) $(PROSE_TEXT))

# -- the model, measured
$(MODEL): $(C)/config/model.yaml $(LLM_MADE) $(U)/vocoder/done.json
	$(SPEECHGPT) assemble --config $< --encoder "$E" --codebook $(CODEBOOK) --llm $(LLM) --vocoder $(U)/vocoder \
	  --stage-config $(C)/config/stage3.yaml --out $(@D)
$(U)/report/report.json: $(C)/config/eval.yaml $(MODEL) $(U)/quality.json
	$(SPEECHGPT) eval --config $< --model $(U)/model --manifest $(DATA)/manifest.jsonl $(if $(QA),$(C)/qa/spoken/manifest.jsonl) \
	  --units $(UNITS) --qa $(QA_FILE) \
	  --stage $(foreach n,1 2 3,stage$n=$(U)/stage$n) --unit-quality $(U)/quality.json \
	  --device $(DEVICE) --out $(@D)
