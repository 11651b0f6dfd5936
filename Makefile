# Every target does its own set-up: a fresh clone needs Python 3.11 (with venv), git and make.

PYTHON ?= python3.11
WORKERS ?= 2
BIN := .venv/bin
MARK := .venv/.installed
export OMP_WAIT_POLICY := PASSIVE
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: install demo serve check test test-costs test-gpu soak bench bench-gpu docs tutorial dist format lock audit clean

install: $(MARK)  ## make .venv from the lock files

$(MARK): requirements.lock requirements-demo.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 with venv or set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(MARK)

demo: $(MARK)  ## prompts to release on SmolLM2-135M, on this machine
	$(BIN)/deepspec run --target smollm2-135m --algorithm dspark

serve: $(MARK)  ## a Prefect server on loopback with every deployment
	$(BIN)/deepspec up

check: $(MARK)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: $(MARK)  ## everything but soak and benchmarks
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-costs: $(MARK)  ## the same, and the seconds of the processor that each file takes, its processes included
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -p tests.costs

test-gpu: $(MARK)  ## every stage, the golden numbers and the kernels on a GPU, test by test; skipped where there is none
	$(BIN)/python -u -m pytest -n 0 -v tests/cuda tests/interpreted/*.py tests/cache/test_leaving.py

soak: $(MARK)  ## all kills and faults, many seeds
	$(BIN)/python -m pytest -m soak --timeout 2700

bench: $(MARK)  ## the measurements that the docs quote
	$(BIN)/python -m pytest -m bench tests/benchmarks -s --timeout 3600

bench-gpu: $(MARK)  ## what a card has to show, tests and tables, kept in build/card; MINUTES=14: no longer than that
	$(BIN)/python -m tests.benchmarks.on_a_card build/card $(if $(MINUTES),--minutes $(MINUTES))

docs: $(MARK)  ## the site, in build/site; fails at a link that leads nowhere
	@test -x .venv-docs/bin/mkdocs || { $(PYTHON) -m venv .venv-docs && \
		.venv-docs/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock; }
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

tutorial: $(MARK)  ## do what docs/tutorial.md says, in an empty folder, and check its figures
	$(BIN)/python -m docs.tutorial

dist: $(MARK)  ## wheel and source distribution, in dist
	$(BIN)/pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist .

format: $(MARK)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(MARK)  ## write the locks from what is installed: exact pins, and the same with hashes for the image
	$(BIN)/python infra/lock.py
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile requirements.lock --generate-hashes --no-deps --no-annotate --no-header --quiet \
		--python-version 3.11 --output-file requirements.hashed.lock
	$(BIN)/uv pip compile requirements-docs.in --generate-hashes --no-annotate --no-header --quiet \
		--python-version 3.11 --universal --output-file requirements-docs.lock

audit: $(MARK)  ## known vulnerabilities in what the lock pins
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement requirements.hashed.lock --require-hashes --disable-pip --strict

clean:
	rm -rf .venv .venv-docs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
