# Everything a newcomer needs: `make demo`, `make test`. Each target installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-without-dali test-all lint types docs bench gpu-check gpu-results clean

install: $(VENV)/.all

demo: $(VENV)/.demo
	$(BIN)/fastanc demo

test: $(VENV)/.all
	$(BIN)/python -m pytest -n 2 -m "not slow"

# As on a machine without DALI, which a package of that name before it hides.
test-without-dali: export PYTHONPATH := $(CURDIR)/tests/support/without_dali
test-without-dali: test

test-all: $(VENV)/.all
	$(BIN)/python -m pytest

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell fastanc pipelines benchmarks tests docs README.md

types: $(VENV)/.all
	@# mypy cannot follow the mapping of pipelines/ to fastanc.pipelines, so it is shown the installed layout.
	@rm -rf build/types && mkdir -p build/types && cp -r fastanc build/types/ && rm -f build/types/fastanc/pipelines && cp -r pipelines build/types/fastanc/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml

docs: $(VENV)/.all
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs
	@echo build/docs/index.html

bench: $(VENV)/.all
	OMP_NUM_THREADS=$$(env -u OMP_NUM_THREADS nproc) $(BIN)/python -m benchmarks.run_all

gpu-check: $(VENV)/.all
	$(BIN)/python -m benchmarks.gpu_check

gpu-results: $(VENV)/.all
	$(BIN)/python -m benchmarks.gpu_check --results

# uv installs in well under a minute what takes pip four and a half; where it is missing, pip brings it into .venv. Without
# it (an old pip, a mirror that lacks it) pip does the same.
define install
	@test -x $(BIN)/python || { command -v uv >/dev/null 2>&1 && uv venv --quiet --python $(PYTHON) $(VENV); } \
		|| $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null 2>&1 || test -x $(BIN)/uv \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	@uv=$$(command -v uv || echo $(BIN)/uv); if test -x "$$uv"; then \
		"$$uv" pip install --quiet --compile-bytecode --python $(VENV) --constraint constraints.txt -e '.[$(1)]'; \
	else \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt -e '.[$(1)]'; \
	fi
endef

$(VENV)/.demo: pyproject.toml constraints.txt
	$(call install,demo)
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt
	$(call install,all)
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
