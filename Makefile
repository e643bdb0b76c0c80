# Everything runs in .venv, which is made from the hash-locked requirements.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# More arguments: make serve SERVE_ARGS="--bind 127.0.0.1:9000", make test PYTEST_ARGS="-k cli",
# make bench BENCH_ARGS="--only lookups --no-peers"
SERVE_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Tests wait for real servers most of the time: twice as many processes as cores, of two.
TEST_PROCESSES ?= 4

.DEFAULT_GOAL := help
.PHONY: help serve test fuzz lint format bench wheel lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(INSTALLED) ## start the store and the API with a demo application
	@$(BIN)/belong serve --demo $(SERVE_ARGS)

# 5: nothing was selected, which is an error only if neither has anything.
test: $(INSTALLED) ## run all tests: together, then those that measure time
	@$(BIN)/python -m pytest -m "not alone" --numprocesses $(TEST_PROCESSES) --dist worksteal \
		$(PYTEST_ARGS); together=$$?; [ $$together -eq 0 ] || [ $$together -eq 5 ] || exit $$together; \
	$(BIN)/python -m pytest -m alone $(PYTEST_ARGS); alone=$$?; \
	[ $$alone -eq 5 ] && exit $$together || exit $$alone

fuzz: $(INSTALLED) ## 20,000 requests made of the OpenAPI document
	@FUZZ_REQUESTS=20000 $(BIN)/python -m pytest tests/test_fuzz.py $(PYTEST_ARGS)

lint: $(INSTALLED) ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED) ## put the code into shape
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: $(INSTALLED) ## measure everything, beside what people would use instead: 35 minutes
	@$(BIN)/python -m bench $(BENCH_ARGS)

wheel: $(INSTALLED) ## build dist/belong-*.whl
	@$(BIN)/python -m hatchling build --target wheel

lock: ## lock the newest versions that pyproject.toml allows (needs uv)
	uv pip compile --quiet --universal --upgrade --generate-hashes --python-version 3.11 \
		--no-annotate --custom-compile-command "make lock" --group dev \
		--output-file requirements.txt pyproject.toml

clean: ## remove what make made, not the data
	rm -rf $(VENV) .peers dist tests/node/node_modules bench/peers/fastify/node_modules \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis
	find service tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# `pip install --editable`: a changed file of service/ or lua/ needs no new install.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or \
		sys.exit("belong needs Python 3.11 or newer, and this is " + v + ": make PYTHON=python3.12 …")'
	@echo "Installing into $(VENV): once, and again when requirements.txt or pyproject.toml changes"
	@test -x $(BIN)/python || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes --requirement requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable .
	@touch $@
