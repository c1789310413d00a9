# Every target does its own set-up, in .venv; nothing else has to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm

.PHONY: setup demo test slow fuzz engines lint bench wheel clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: setup
	$(BIN)/regear demo -o demo

# One thread a worker: two threads collapse when another process takes a core.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu and not engines"

slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# Ten million random operations on the suffix index under sanitizers; the CMake option REGEAR_FUZZ builds the program alone.
fuzz: setup
	$(BIN)/python -m pytest -m slow tests/native/test_fuzz.py --durations=1

# vLLM pins other versions, so it has an environment of its own (3.5 GB). Its optional media packages break the import.
$(VLLM)/.ready: tests/engines/requirements.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check -q -r tests/engines/requirements.txt
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

engines: setup $(VLLM)/.ready
	OMP_NUM_THREADS=1 REGEAR_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest -m engines tests/engines

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/mla_quality.py
	$(BIN)/python benchmarks/mla_rope.py
	$(BIN)/python benchmarks/mla_frontier.py
	$(BIN)/python benchmarks/mla_long.py
	$(BIN)/python benchmarks/mla_decode.py
	$(BIN)/python benchmarks/kv_schemes.py
	$(BIN)/python benchmarks/any_size.py
	$(BIN)/python benchmarks/engine_exact.py
	$(BIN)/python benchmarks/engine_decode.py
	$(BIN)/python benchmarks/engine_passes.py
	$(BIN)/python benchmarks/engine_verify.py
	$(BIN)/python benchmarks/engine_rollouts.py
	$(BIN)/python benchmarks/draft_budget.py
	$(BIN)/python benchmarks/suffix_index.py
	$(BIN)/python benchmarks/suffix_rollouts.py

# The wheel, installed into an environment of its own, must work without this checkout.
wheel: setup
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel/log 2>&1 || (cat build/wheel/log; exit 1)
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt build/wheel/*.whl
	cd build/wheel && env/bin/regear doctor && env/bin/regear ls -q && env/bin/python -c "import regear.models, regear.conversion.mla"

clean:
	rm -rf $(VENV) $(VLLM) build dist demo demo.run
