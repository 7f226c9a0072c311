# `make demo` and `make test` do everything on a bare machine: Debian, Python 3.11, pip, make, C++.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ark-installed

.PHONY: demo test test-all lint env real clean

demo: env  ## train on three generated datasets with unlike labels: about 5 minutes
	$(BIN)/ark fit --config configs/quickstart.yaml --run.overwrite=true

test: lint  ## style, types, floors and the fast tests
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow"

test-all: lint  ## the slow tests too
	$(BIN)/python -m pytest -n auto --dist loadgroup

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

real: env  ## the real chest X-rays of ARK_DATA (default ../shared/data): under 40 minutes
	$(BIN)/ark shards write --overwrite=true configs/datasets/nih14.yaml configs/datasets/wingspan.yaml configs/datasets/covid_cxr.yaml
	$(BIN)/ark fit --config configs/recipes/chest_xrays.yaml --run.overwrite=true

env: $(STAMP)

# torch and torchvision as a pair first: their CPU-only wheels do not match each other.
# mmcv-lite and mmengine ask for opencv-python, which wants a display's libGL; the headless build
# that albumentations brings has the same `cv2`, so it alone must own those files.
$(STAMP): setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch torchvision
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip uninstall -q -y opencv-python
	$(BIN)/python -m pip install -q --no-deps --force-reinstall -c constraints.txt opencv-python-headless
	touch $@

clean:
	rm -rf runs data .pytest_cache .mypy_cache .ruff_cache
