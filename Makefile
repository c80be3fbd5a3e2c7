# make demo | test | test-avx2 | test-gpu | fuzz | interop | bench | format | page | smollm2. Each does all its own set-up, which takes no time once done.
# make demo ends in the explorer; make demo SERVE=0 leaves it out.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVE ?= 1
# compiled Python is kept, whatever the environment says: some hundred processes begin
export PYTHONDONTWRITEBYTECODE :=
# three processes of one thread each, as tests also wait; whole files each, in the order of tests/conftest.py
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-avx2 test-gpu fuzz interop bench format page smollm2 types kernels
demo: $(READY) $(if $(filter 0,$(SERVE)),,page)
	$(BIN)/monosem demo $(if $(filter 0,$(SERVE)),,--explore)

page: $(READY)
	$(BIN)/python web/build.py

test: $(READY) page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(MAKE) --no-print-directory -j 2 types kernels
	$(PYTEST)

# what each of the processes of tests would else do for itself on a fresh clone, beside what is checked without them
types: page
	$(BIN)/pyright
	$(BIN)/python web/build.py check
	$(BIN)/pytest --collect-only >/dev/null

kernels: $(READY)
	$(BIN)/python tests/compile_kernels.py

# as on a processor with AVX2 and no more: without AVX-512, AMX and fast bfloat16
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 NUMBA_CPU_NAME=haswell
test-avx2: $(READY) page
	$(AVX2) $(BIN)/python tests/compile_kernels.py
	$(AVX2) $(PYTEST)

# with a GPU that is pretended: what would meet on two devices there fails here; of kernels and of speed it shows nothing
ROOMS ?= tests/docs tests/analysis tests/circuits tests/evaluation tests/explain tests/interventions tests/steering
test-gpu: $(READY) page
	PYTHONPATH=tests $(PYTEST) -p pretended_gpu $(ROOMS)

# 15,400 damaged files of eleven kinds; FUZZ_CASES=n takes n of each kind
fuzz: $(READY)
	FUZZ_CASES=$(or $(FUZZ_CASES),1400) $(BIN)/pytest tests/fuzz

# with the real libraries, each in its own virtual environment in PEERS: what they write is read, what we write they read
PEERS ?= tests/interop/.peers
interop: $(READY)
	$(BIN)/python tests/interop/peers/set_up.py $(PEERS)
	MONOSEM_PEERS=$(abspath $(PEERS)) MONOSEM_CASES=$(abspath $(PEERS))/cases $(BIN)/pytest tests/interop tests/interventions/test_other_models.py tests/circuits/test_circuit_tracer.py

smollm2: $(READY)
	$(BIN)/python recipes/smollm2/model.py recipes/smollm2/work/model
	$(BIN)/python recipes/smollm2/text.py recipes/smollm2/work
	$(BIN)/monosem train recipes/smollm2/run.yaml

bench: $(READY)
	$(BIN)/python benchmarks/run.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@
