# make demo, make demo-style: train on two small datasets and generate images, on any machine.
# make fast: the quick tests.  make test: all checks and tests.  They need only Python 3.10 to 3.12 and make.
# make ascend-dryrun: compiles the graphs for Ascend without a card, at full size, too (x86-64, 3 GB of memory).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TINY := checkpoints/tiny_sd_xl_base
CONFIG := --config configs/training/tiny_textual_inversion.yaml
# All tests: three workers for two cores, since they also wait for processes, pages and signals. More than four workers
# would take too much memory (up to 6 GB each).
WORKERS = $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 ))
# With jemalloc, where it is installed, MindSpore compiles graphs in three quarters of the time.
JEMALLOC = "$$(find /usr/lib -name libjemalloc.so.2 2>/dev/null | head -n 1)"
PYTEST = LD_PRELOAD=$(JEMALLOC) $(BIN)/python -m pytest --maxprocesses 4 --dist worksteal
APT := $(if $(filter 0,$(shell id -u)),,sudo )apt-get
# They make the stand-ins for CANN's libraries of tools/ascend_dryrun, and compile the CPU's operators.
COMPILER = command -v g++ >/dev/null && command -v nm >/dev/null || { $(APT) update -qq && $(APT) install -y -qq g++ binutils; }
DRYRUN := $(BIN)/python tools/ascend_dryrun/dryrun.py

.PHONY: install demo demo-style check lint types layers fast test ascend-dryrun clean

install: $(VENV)/installed

$(VENV)/installed: requirement.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirement.txt
	touch $@

# Of clip-anytorch and k-diffusion the tests use one file each; the rest needs torchvision and more: hence --no-deps.
$(VENV)/checked: $(VENV)/installed requirement-test.txt
	$(BIN)/pip install -q -r requirement-test.txt
	$(BIN)/pip install -q --no-deps clip-anytorch==2.6.0 k-diffusion==0.1.1.post1
	touch $@

$(VENV)/tested: $(VENV)/checked
	command -v mpirun >/dev/null || { $(APT) update -qq && $(APT) install -y -qq openmpi-bin; }
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || { $(APT) update -qq && $(APT) install -y -qq chromium chromium-driver; }
	$(COMPILER)
	test -n $(JEMALLOC) || { $(APT) update -qq && $(APT) install -y -qq libjemalloc2; }
	touch $@

$(TINY).ckpt: $(TINY).safetensors | $(VENV)/installed
	$(BIN)/python tools/convert_weights/convert.py $(CONFIG) --source $< --target $@ --overwrite

# The initializer tokens are words that the tiny model knows: paris is the name of one of its styles.
OBJECT := --data_path datasets/humbug --placeholder_token "<humbug>" --initializer_token heart
STYLE := --data_path datasets/confetti --placeholder_token "<confetti>" --initializer_token paris \
    --learnable_property style

demo: CONCEPT := $(OBJECT)
demo: PROMPT := a <humbug> on a blue background
demo-style: CONCEPT := $(STYLE)
demo-style: PROMPT := a blue star in the style of <confetti>
demo demo-style: $(VENV)/installed $(TINY).ckpt
	$(BIN)/python train_textual_inversion.py $(CONFIG) $(CONCEPT) --save_path runs/$@ --infer_during_train True
	$(BIN)/python demo/sampling_without_streamlit.py $(CONFIG) --save_path outputs/$@ \
	    --textual_inversion_weight runs/$@/tiny-SD-XL_100_ti.ckpt --prompt "$(PROMPT)"
	@echo "images: outputs/$@   embedding files, sample images, log: runs/$@   model: $(TINY).ckpt"

check: lint types layers

lint: $(VENV)/checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/checked
	$(BIN)/mypy

layers: $(VENV)/checked
	$(BIN)/lint-imports

fast: $(VENV)/checked
	$(PYTEST) -n logical -m "not graph and not e2e and not reference and not browser"

test: check $(VENV)/tested
	$(PYTEST) -n $(WORKERS)

ascend-dryrun: $(VENV)/installed
	$(COMPILER)
	$(DRYRUN) $(CONFIG) --precisions float16 bfloat16 float32
	$(DRYRUN) $(CONFIG) --precision float16 --graphs update --variants
	$(DRYRUN) $(CONFIG) --precision float16 --graphs train_step denoiser --card ascend910
	$(DRYRUN) --precision float16 --graphs train_step
	$(DRYRUN) --config configs/training/sd_v1.5_textual_inversion.yaml --precision float16 --graphs train_step

clean:
	rm -rf $(VENV) runs/demo runs/demo-style outputs/demo outputs/demo-style $(TINY).ckpt
