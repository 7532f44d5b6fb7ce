# make demo: the quickstart. make test: every check, under the three backends.
PYTHON ?= python3
VENV ?= .venv
DEMO_BACKEND := $(or $(KERAS_BACKEND),jax)
BACKENDS ?= tensorflow jax torch
PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.demo-$(DEMO_BACKEND)
	KERAS_BACKEND=$(DEMO_BACKEND) TF_CPP_MIN_LOG_LEVEL=2 \
		$(VENV)/bin/python examples/quickstart.py

test: lint
	@failed=0; for backend in $(BACKENDS); do \
		echo "== pytest under $$backend"; \
		KERAS_BACKEND=$$backend $(VENV)/bin/python -m pytest -q -n 2 || failed=1; \
	done; exit $$failed

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[$*,plot]" scikit-learn
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[tensorflow,jax,torch,data,export,plot,test]"
	touch $@
