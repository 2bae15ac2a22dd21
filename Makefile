# traind: `make demo` to see it, `make test` to prove it, `make serve` to use it.
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check docs nullgpu soak soak-ci bench clean

PYTHON := .venv/bin/python
EXTRAS := trainer,png,notify,tensorboard,dev,docs
export TORCH_INDEX_URL

help: ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: .venv/.ready ## Make the virtual environment (TORCH_INDEX_URL=… for another torch build)

.venv/.ready: pyproject.toml constraints.txt docker/install.sh
	@echo "Setting up .venv (once; some minutes) …"
	@sh docker/install.sh .venv $(EXTRAS)
	@touch $@

demo: setup ## Train a small GPT: watch, pause, resume, extend, report
	@.venv/bin/traind demo

serve: setup ## Run the daemon in the foreground on loopback
	@.venv/bin/traind serve

check: setup ## Linters, types, import rules and migrations alone
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/pyright
	@.venv/bin/lint-imports --no-cache
	@TRAIND_DATA_DIR=$$(mktemp -d) sh -c '.venv/bin/alembic upgrade head && .venv/bin/alembic check; \
		status=$$?; rm -rf "$$TRAIND_DATA_DIR"; exit $$status'

docs: setup ## Build the documentation into docs/_build
	@$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build

test: check docs ## Everything: checks and all tests (about 18 minutes on 2 cores), then line coverage
	@$(PYTHON) -m pytest -n 2 --dist loadfile --ignore tests/nullgpu --cov --cov-report=
	@$(PYTHON) -m coverage report --format=total | sed 's/.*/coverage of server and trainer: &%/'

nullgpu: setup ## Tests on a null GPU: torch's CUDA build (5 GB, once) over stubs of the driver
	@[ -n "$$TRAIND_NULLGPU_PYTHON" ] || $(PYTHON) -m tests.nullgpu.install .venv-cuda
	@TRAIND_TEST_REQUIRE=nullgpu $(PYTHON) -m pytest -n 2 --dist loadgroup tests/nullgpu

soak: setup ## Long fault campaigns: SECONDS=3600 SEED=…; appends to the fault table
	@$(PYTHON) -m tests.soak --seconds $(or $(SECONDS),3600) $(if $(SEED),--seed $(SEED))

soak-ci: setup ## A short share of every campaign
	@$(PYTHON) -m tests.soak --ci

bench: setup ## Benchmarks: ratios against the plain reference; PARTS="step packing …" for some
	@$(PYTHON) -m tests.bench $(PARTS)

clean: ## Remove what the targets made, never a data directory
	@rm -rf .venv .venv-cuda .nullgpu .demo .coverage* build dist *.egg-info
