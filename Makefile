PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check bench style

$(VENV)/demo: pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints-cpu.txt -e '.[demo]'
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(BIN)/pip install -c constraints-cpu.txt -e '.[dev,onnx,openvino,compressed-tensors,server,dashboard,ray,slurm]'
	touch $@

demo: $(VENV)/demo
	$(BIN)/python -m quantlab.finetune
	$(BIN)/python -m quantlab.run -m +sweeps=paper_table

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# SHARED=<folder with models/minilm-qnli and data/glue/qnli>: two of the four parts need it.
bench: $(VENV)/dev
	$(BIN)/python tests/benchmarks/speed.py $(if $(SHARED),--shared $(SHARED))

style: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
