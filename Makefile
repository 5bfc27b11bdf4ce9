# What people type. Each target finds what it needs and says in one line what is missing.
#   make demo PYTHON=3.12        another Python: a version, `newest` (the default), or a path
PYTHON ?= newest
VENV ?= .venv
JOBS ?= 2
PRESET ?= test
PYTEST_ARGS ?=
SUITE ?= all

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

RUN := $(VENV)/run $(VENV)/bin/python
CPP_FILES = $(shell find core binding tests/core tests/fuzz benchmarks \
	\( -name '*.h' -o -name '*.cc' \) -print 2>/dev/null | sort)
PY_FOLDERS = $(wildcard python tests benchmarks examples scripts docs)

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build cpploop into .venv (PYTHON= chooses the interpreter)
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	@$(RUN) -c 'import cpploop, sys; print("cpploop", cpploop.__version__, "in $(VENV), Python", sys.version.split()[0])'

.PHONY: demo
demo: ## Serve the example application on cpploop, check every answer, compare the loops
	@scripts/venv.sh --with demo "$(PYTHON)" "$(VENV)"
	@$(RUN) examples/demo/run.py

.PHONY: test
test: test-core test-python ## Run the engine's tests and the Python tests

.PHONY: test-core
test-core: ## Run the engine's tests
	@scripts/need.sh compiler cmake ninja gtest
	cmake --preset $(PRESET) --log-level=WARNING
	cmake --build --preset $(PRESET) -j $(JOBS)
	@scripts/ctest.sh $(PRESET) $(JOBS)

.PHONY: test-python
test-python: ## Run the Python tests (PYTEST_ARGS= is passed on)
	@scripts/venv.sh --try demo "$(PYTHON)" "$(VENV)"
	$(RUN) -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.PHONY: asan
asan: ## Run the engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/sanitized.sh core asan $(JOBS)

.PHONY: asan-python
asan-python: ## Run the Python tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/sanitized.sh python "$(PYTHON)" $(PYTEST_ARGS)

.PHONY: asan-conformance
asan-conformance: ## Run the interpreter's own asyncio tests with the sanitized extension
	@scripts/sanitized.sh conformance "$(PYTHON)" $(CONFORMANCE_ARGS)

.PHONY: asan-tls
asan-tls: ## Run the TLS tests, ours and the interpreter's own, each way of doing TLS, with the sanitized extension
	@scripts/sanitized.sh tls "$(PYTHON)" $(PYTEST_ARGS)

.PHONY: tsan
tsan: ## Run the engine's tests under ThreadSanitizer
	@scripts/sanitized.sh core tsan $(JOBS)

.PHONY: portable
portable: portable-core portable-python ## Run the tests on kqueue, without what only Linux has (CPPLOOP_LIBKQUEUE= names its source)

.PHONY: portable-core
portable-core: ## Run the engine's tests on kqueue
	@scripts/need.sh compiler cmake ninja gtest
	@scripts/libkqueue.sh >/dev/null
	cmake --preset portable --log-level=WARNING
	cmake --build --preset portable -j $(JOBS)
	@scripts/ctest.sh portable $(JOBS)

.PHONY: portable-python
portable-python: ## Run the Python tests on kqueue (PYTEST_ARGS= is passed on)
	@scripts/libkqueue.sh >/dev/null
	@scripts/venv.sh --define CPPLOOP_PORTABLE=ON "$(PYTHON)" build/venvs/portable
	build/venvs/portable/run build/venvs/portable/bin/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.PHONY: python-debug
python-debug: ## Run some Python tests with PYTHONMALLOC=debug, and some with -X dev
	@scripts/sanitized.sh debug "$(PYTHON)" $(PYTEST_ARGS)

.PHONY: sanitize
sanitize: asan tsan asan-python asan-conformance python-debug ## Run the engine, the Python tests and the conformance run under all of these

.PHONY: fuzz
fuzz: ## Run every fuzz target for one second under libFuzzer
	@scripts/need.sh clang cmake ninja
	cmake --preset fuzz -D CMAKE_CXX_COMPILER="$$(command -v clang++-16 || command -v clang++)"
	cmake --build --preset fuzz -j $(JOBS)
	@scripts/ctest.sh fuzz

.PHONY: matrix
matrix: ## Run everything on every Python at hand, TLS each way, sanitizers; writes docs/dev/matrix.md
	@python3 scripts/matrix.py $(MATRIX_ARGS)

.PHONY: conformance
conformance: ## Run the interpreter's own asyncio tests on cpploop
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	$(RUN) tests/conformance/run.py $(CONFORMANCE_ARGS)

.PHONY: ecosystem
ecosystem: ## Run other projects' own tests on asyncio and on cpploop (SUITE=uvicorn ECOSYSTEM_ARGS=--short)
	@scripts/need.sh compiler cmake ninja
	@python3 tests/ecosystem/run.py --python "$(PYTHON)" $(ECOSYSTEM_ARGS) $(SUITE)

.PHONY: soak
soak: ## Run everything a loop does for an hour and look whether anything grows (SOAK_ARGS=--short)
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	$(RUN) tests/soak/run.py $(SOAK_ARGS)

# Those whose tests have a loop of their own for each thread and do not look at the process.
PARALLEL_FILES := call_soon create_server sendfile sock_calls stream_feed streams \
  transport_buffered transport_close transport_read transport_tcp transport_write
PARALLEL_PYTHON ?= 3.13t

.PHONY: parallel
parallel: ## Python tests that fit, each in four threads at once on free-threaded Python (PARALLEL_PYTHON=3.13t)
	@scripts/venv.sh --with parallel "$(PARALLEL_PYTHON)" build/venvs/$(PARALLEL_PYTHON)
	CPPLOOP_TESTS=cpploop build/venvs/$(PARALLEL_PYTHON)/run build/venvs/$(PARALLEL_PYTHON)/bin/python -m pytest -q \
	  --parallel-threads=4 --skip-thread-unsafe=True $(PARALLEL_FILES:%=tests/python/test_%.py)

.PHONY: stress
stress: ## Cancelled connections with tagged payloads under faults, for minutes (STRESS_ARGS="--seed 7")
	@scripts/venv.sh --define CPPLOOP_FAULTS=ON "$(PYTHON)" build/venvs/faults
	build/venvs/faults/run build/venvs/faults/bin/python tests/stress/run.py --seconds 300 $(STRESS_ARGS)

.PHONY: differential
differential: ## Compare the loops on random scripts for ten minutes (DIFFERENTIAL_ARGS="--seed 7 --kind tls")
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	$(RUN) tests/differential/run.py --seconds 600 $(DIFFERENTIAL_ARGS)

ON_RING := scripts/on_backend.sh io_uring

.PHONY: ring
ring: ring-python ring-conformance ring-differential ring-stress ring-soak ## Run every suite on io_uring, each by its own target, too (PYTHON=3.14)

.PHONY: ring-python
ring-python: ## Run the Python tests on io_uring (PYTEST_ARGS= is passed on)
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	CPPLOOP_TESTS=cpploop $(ON_RING) "$(VENV)" -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.PHONY: ring-conformance
ring-conformance: ## Run the interpreter's own asyncio tests on io_uring
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	$(ON_RING) "$(VENV)" tests/conformance/run.py $(CONFORMANCE_ARGS)

.PHONY: ring-differential
ring-differential: ## Compare the loops on random scripts on io_uring, without faults and with them
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	@scripts/venv.sh --define CPPLOOP_FAULTS=ON "$(PYTHON)" build/venvs/faults
	$(ON_RING) "$(VENV)" tests/differential/run.py --seconds 120 $(DIFFERENTIAL_ARGS)
	$(ON_RING) build/venvs/faults tests/differential/run.py --seconds 120 --faults benign=0.1 $(DIFFERENTIAL_ARGS)

.PHONY: ring-stress
ring-stress: ## Cancelled connections under faults, the ring's own among them, on io_uring
	@scripts/venv.sh --define CPPLOOP_FAULTS=ON "$(PYTHON)" build/venvs/faults
	$(ON_RING) build/venvs/faults tests/stress/run.py --seconds 300 $(STRESS_ARGS)

.PHONY: ring-soak
ring-soak: ## Run everything a loop does on io_uring (SOAK_ARGS=--short)
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	$(ON_RING) "$(VENV)" tests/soak/run.py $(SOAK_ARGS)

.PHONY: ring-refused
ring-refused: ## Run the Python tests where io_uring is asked for and a filter refuses it, as containers do
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	CPPLOOP_TESTS=cpploop CPPLOOP_BACKEND=io_uring $(RUN) tests/python/fence.py EPERM \
	  io_uring_setup,io_uring_enter,io_uring_register \
	  $(RUN) -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.PHONY: differential-faults
differential-faults: ## Random scripts while system calls fail, ten minutes: compared, then under hard faults
	@scripts/venv.sh --define CPPLOOP_FAULTS=ON "$(PYTHON)" build/venvs/faults
	build/venvs/faults/run build/venvs/faults/bin/python tests/differential/run.py --seconds 300 \
	  --faults benign=0.1,pressure=0.1 $(DIFFERENTIAL_ARGS)
	build/venvs/faults/run build/venvs/faults/bin/python tests/differential/run.py --seconds 300 \
	  --faults benign=0.1,pressure=0.1,hard=0.02 $(DIFFERENTIAL_ARGS)

# ROW=name measures one row with every loop; names, globs and families are welcome, too.
ROW ?=
# The rivals have wheels for 3.14; PYTHON= says otherwise.
BENCH_PYTHON ?= $(if $(filter newest,$(PYTHON)),$(shell scripts/pythons.sh find 3.14 >/dev/null 2>&1 && echo 3.14 || echo newest),$(PYTHON))
BENCH := .venv-bench/run .venv-bench/bin/python

.PHONY: bench-venv
bench-venv:
	@scripts/venv.sh --pgo "$(BENCH_PYTHON)" .venv-bench
	@.venv-bench/run scripts/need.sh openssl
	@if [ ! -e .venv-bench/.rivals ] || [ benchmarks/requirements.txt -nt .venv-bench/.rivals ]; then \
	  benchmarks/setup.sh --run "$(CURDIR)/.venv-bench/run" .venv-bench/bin/python .venv-bench \
	  && touch .venv-bench/.rivals; \
	fi

.PHONY: bench
bench: bench-venv ## Compare the loops, each row with its best rivals; ROW=name: that row, every loop (BENCH_ARGS=--plan)
	$(BENCH) benchmarks/run.py $(if $(ROW),--set row --rows '$(ROW)') $(BENCH_ARGS)

.PHONY: bench-full
bench-full: bench-venv ## Compare every loop in every row for hours; goes on where it was stopped
	$(BENCH) benchmarks/run.py --set full $(BENCH_ARGS)

.PHONY: bench-ring
bench-ring: bench-venv ## Compare epoll and io_uring with the rivals that have a ring; goes on where it was stopped
	$(BENCH) benchmarks/run.py --set bench --rows ring --loops "$$($(BENCH) benchmarks/backends.py)" $(BENCH_ARGS)

.PHONY: regression
regression: ## Count instructions per operation and compare with the baseline (GATE_ARGS=--update)
	@scripts/need.sh valgrind
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	$(RUN) benchmarks/gate.py $(GATE_ARGS)

.PHONY: docs
docs: ## Build the documentation's site into site/, warnings as errors, and check what it needs
	@scripts/venv.sh --no-build --no-test --with docs "$(PYTHON)" build/venvs/docs
	build/venvs/docs/run build/venvs/docs/bin/python scripts/site.py

.PHONY: wheels
wheels: ## Build the sdist and a wheel for each Python at hand, and check them (WHEELS_ARGS="--python 3.13")
	@scripts/need.sh compiler cmake ninja
	@"$$(scripts/pythons.sh find newest)" scripts/wheels.py $(WHEELS_ARGS)

.PHONY: lint
lint: ## Check the format, the Python code, the types and what no file may hold
	@scripts/venv.sh --with lint "$(PYTHON)" "$(VENV)"
	$(RUN) scripts/hygiene.py
	$(if $(CPP_FILES),$(VENV)/bin/clang-format --dry-run --Werror $(CPP_FILES))
	$(VENV)/bin/ruff format --check $(PY_FOLDERS)
	$(VENV)/bin/ruff check $(PY_FOLDERS)
	$(VENV)/bin/mypy

.PHONY: tidy
tidy: ## Build everything with warnings as errors, and run clang-tidy over the engine and the binding
	@scripts/need.sh compiler cmake ninja gtest
	@scripts/venv.sh --with lint "$(PYTHON)" "$(VENV)"
	cmake --fresh --preset ci-full --log-level=WARNING -D Python_EXECUTABLE="$(abspath $(VENV)/bin/python)"
	cmake --build --preset ci-full -j $(JOBS)
	$(RUN) scripts/tidy.py --build build/ci-full --jobs $(JOBS) $(TIDY_ARGS)

.PHONY: format
format: ## Format the C++ and the Python code
	@scripts/venv.sh --no-build --with lint "$(PYTHON)" "$(VENV)"
	$(if $(CPP_FILES),$(VENV)/bin/clang-format -i $(CPP_FILES))
	$(VENV)/bin/ruff check --fix --select I $(PY_FOLDERS)
	$(VENV)/bin/ruff format $(PY_FOLDERS)

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf build .venv .venv-bench benchmarks/build dist site .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
