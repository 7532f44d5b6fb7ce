# make demo: the quickstart. make test: every check, under the three backends; what is
# the same under each, marked `once`, under the first.
# make docs: the site, served on http://127.0.0.1:8000. make figures: its figures anew.
PYTHON ?= python3
VENV ?= .venv
DEMO_BACKEND := $(or $(KERAS_BACKEND),jax)
BACKENDS ?= torch tensorflow jax
PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint docs figures clean

demo: $(VENV)/.demo-$(DEMO_BACKEND)
	KERAS_BACKEND=$(DEMO_BACKEND) TF_CPP_MIN_LOG_LEVEL=2 \
		$(VENV)/bin/python examples/quickstart.py

test: lint
	@failed=0; which=""; for backend in $(BACKENDS); do \
		echo "== pytest under $$backend"; \
		KERAS_BACKEND=$$backend $(VENV)/bin/python -m pytest -q -n 2 \
			--dist loadgroup -m "$$which" || failed=1; \
		which="not once"; \
	done; exit $$failed

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir build/site

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs serve

# make figures MODEL=lkca.keras BESIDE=vit.keras DATA=~/data
figures: $(VENV)/.test
	$(VENV)/bin/python docs/make_figures.py --model $(MODEL) --beside $(BESIDE) \
		--data-dir $(DATA)

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[$*,plot]" scikit-learn
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[tensorflow,jax,torch,data,tfds,docs,export,plot,test]"
	touch $@
