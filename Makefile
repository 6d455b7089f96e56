# Each target stands alone: it makes .venv first if that is missing or out of date.
VARIANT ?= lin
AUTOENCODER ?= m2l
ARGS ?=
RATIO ?= 64
RATE ?=
MINUTES ?=
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

SHELL := bash
BIN := .venv/bin
READY := .venv/ready
# progress bars on a terminal, few words in a log
INSTALL = $(BIN)/pip install $$([ -t 1 ] || echo -q) --no-compile --disable-pip-version-check -c constraints.txt
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# threads that wait must not spin while another process (the one that renders music) needs their core: three times faster on two cores
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help env train surprisal family test lab export readme site clean

help:  ## show this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-10s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(READY)  ## make .venv with everything pinned in constraints.txt (several GB, some minutes)

# the papermill in .venv fills in an output path where none is given; see .ci/papermill
$(READY): constraints.txt settings.ini setup.py pyproject.toml
	@.ci/python .venv
	@echo "Installing the pinned packages into .venv: several GB, some minutes."
	$(INSTALL) -e ".[all,dev]" music2latent x-transformers
	@# linear-cae asks for numpy < 2 and works with 2: without its metadata `pip check` stays true of all the rest
	$(INSTALL) --no-deps --force-reinstall linear-cae
	@rm -rf .venv/lib/python*/site-packages/linear_cae-*.dist-info
	@printf '#!/bin/sh\nexec "%s/python" "%s/.ci/papermill" "$$@"\n' "$(CURDIR)/$(BIN)" "$(CURDIR)" > $(BIN)/papermill
	@$(BIN)/pip check --disable-pip-version-check
	@touch $@

# the notebook's own output goes straight to the terminal, so that its progress bar lives there
train: $(READY)  ## train nbs/train.ipynb: make train [VARIANT=lin] [ARGS="-p steps 100"]; results in runs/VARIANT
	@mkdir -p runs/$(VARIANT)
	$(BIN)/papermill nbs/train.ipynb runs/$(VARIANT)/train.ipynb -p variant $(VARIANT) $(ARGS) \
		--no-progress-bar --stdout-file - --stderr-file -

surprisal: $(READY)  ## train nbs/train_surprisal.ipynb: make surprisal [AUTOENCODER=runs/align] [ARGS="-p steps 100"]; results in runs/surprisal-NAME
	@mkdir -p runs/surprisal-$(notdir $(subst :,-,$(AUTOENCODER)))
	$(BIN)/papermill nbs/train_surprisal.ipynb runs/surprisal-$(notdir $(subst :,-,$(AUTOENCODER)))/train_surprisal.ipynb \
		-p autoencoder $(AUTOENCODER) $(ARGS) --no-progress-bar --stdout-file - --stderr-file -

# on a machine that is lent for minutes there is no time to install: there python3 will do if it has what training needs
LENT := $(if $(filter family,$(MAKECMDGOALS)),$(if $(wildcard $(READY)),,$(shell python3 -c "import torch, numpy, soundfile, soxr, einops, safetensors" 2>/dev/null && echo python3)))
family: $(if $(LENT),,$(READY))  ## train what is missing of a family: make family [RATIO=64] [RATE=44100] [MINUTES=12] [ARGS=--status]; results in runs/family-RATIO
	$(or $(LENT),$(BIN)/python) -m latentalign.tools.family --ratio $(RATIO) $(if $(RATE),--rate $(RATE)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

# both run even if the first fails; one thread for each of the $(WORKERS) notebooks or files of tests that run at a time
test: $(READY)  ## run the notebooks of the chapters, then the tests in tests
	@status=0; export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1; \
	echo "nbdev_test: running the notebooks, $(WORKERS) at a time"; \
	$(BIN)/nbdev_test --n_workers $(WORKERS) --do_print --timing || status=1; \
	$(BIN)/pytest tests --numprocesses $(WORKERS) --dist loadfile || status=1; \
	exit $$status

# the notebooks are trusted first: JupyterLab keeps the sounds and tables of others from being shown
lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter trust nbs/*.ipynb nbs/*/*.ipynb
	$(BIN)/jupyter lab nbs

export: $(READY)  ## write latentalign/*.py from the notebooks and clean the notebooks
	$(BIN)/python .ci/tidy
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: $(READY)  ## write README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme

# the tools that build the site are an extra of their own, which all else does without
$(BIN)/sphinx-build: $(READY)
	$(INSTALL) -e ".[site]"
	@$(BIN)/pip check --disable-pip-version-check
	@touch $@

site: $(BIN)/sphinx-build  ## build the web site from notebooks and README into _docs/site, and check its links and players
	$(BIN)/python .ci/site

clean:  ## remove .venv and everything that can be made again; runs/ and data/ stay
	rm -rf .venv build dist *.egg-info _proc _docs .pytest_cache
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
