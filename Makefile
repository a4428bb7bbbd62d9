# `make demo` and `make test` first set up everything that they need in $(VENV).

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: sbom audit demo docs docs-record docs-reference pictures test test-unit k8s-check cluster-test cluster-e2e lint fuzz old-tensorflow lock check-resolve clean help
.PHONY: bench bench-accuracy bench-backbones bench-client bench-decoding bench-engines bench-fine-tune bench-food-101 bench-head bench-hostile bench-label-errors bench-label-page bench-labelling bench-labelling-million bench-peers bench-planning bench-planning-10m bench-rescore bench-resident bench-server bench-similar bench-start bench-training

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | expand -t 26

demo: $(VENV)/demo.stamp ## Train, export, score, serve and predict on real photos
	$(BIN)/hubhead demo

JOBS ?= 2
test: test-unit ## Run all tests, JOBS=2 files at a time (each needs up to 7 GB of memory)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --ignore tests/unit

test-unit: $(VENV)/dev.stamp ## Run the tests that need no TensorFlow, no Beam, no sockets and no processes
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/unit

k8s-check: $(VENV)/dev.stamp ## Render every overlay of k8s/ with kubectl and check it, without a cluster
	HUBHEAD_REQUIRE_PROGRAMS=1 $(BIN)/python -m pytest tests/k8s

cluster-test: $(VENV)/dev.stamp ## Apply every overlay to a Kubernetes control plane (needs etcd, kubectl and, on first use, Go and 10 minutes)
	$(BIN)/python -m tests.support.kubernetes.binaries >/dev/null || test -z "$$HUBHEAD_REQUIRE_PROGRAMS"
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m cluster tests/k8s

cluster-e2e: $(VENV)/dev.stamp ## Run overlays/local in containers: train, promote, roll back and lose servers under load (Linux, root; says what it needs)
	$(BIN)/python -m tests.support.kubernetes

lint: $(VENV)/dev.stamp ## Check style, types, import order and wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.support.language

docs: $(VENV)/dev.stamp ## Build the documentation into build/docs/index.html
	$(BIN)/sphinx-build -q -E -n -W --keep-going -d build/doctrees -c docs . build/docs
	@echo "The documentation is in build/docs/index.html."

docs-reference: $(VENV)/dev.stamp ## Write the tables of docs/reference and docs/benchmarks.md that follow from code and records
	$(BIN)/python -m tests.support.reference

pictures: $(VENV)/dev.stamp ## Take the pictures of docs/pictures in headless Chromium, from runs on drawn photos
	$(BIN)/python -m tests.support.pictures

docs-record: $(VENV)/dev.stamp ## Run the commands that the documentation shows with outputs, and record these again, PAGES=docs/tutorial.md
	$(BIN)/python -m tests.support.docs $(PAGES)

bench: $(VENV)/dev.stamp ## Measure the throughput of the model variants
	$(BIN)/python -m tests.bench --output docs/benchmarks/bench.json

bench-planning: $(VENV)/dev.stamp ## Measure the planning of 10,000 to 1,000,000 photos: seconds and memory
	$(BIN)/python -m tests.bench.planning --output docs/benchmarks/planning.json

bench-planning-10m: $(VENV)/dev.stamp ## Measure the planning of 10 million photos: 25 minutes, 5 GB of disk
	$(BIN)/python -m tests.bench.planning --photos 10000000 --output docs/benchmarks/planning-10m.json

bench-rescore: $(VENV)/dev.stamp ## Measure hubhead rescore of a million photos, beside scoring from the files: 4 GB of disk
	$(BIN)/python -m tests.bench.rescore --output docs/benchmarks/rescore.json

bench-server: $(VENV)/dev.stamp ## Compare the local server with serving.runtime and bare gRPC; overload it to twice its capacity
	$(BIN)/python -m tests.bench.server --output docs/benchmarks/server.json

bench-hostile: $(VENV)/dev.stamp ## Measure the latency of a good caller of hubhead serve beside hostile ones
	$(BIN)/python -m tests.bench.hostile --output docs/benchmarks/hostile.json

bench-client: $(VENV)/dev.stamp ## Measure the start of the client, and downscaling before sending (needs make demo)
	$(BIN)/python -m tests.bench.client --output docs/benchmarks/client.json

# The peers are in an environment of their own: the extra `bench` is large. PEERS=PATH uses another one.
PEERS ?= build/peers
$(PEERS)/bench.stamp: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --no-build-isolation --editable '.[bench]'
	@touch $@

bench-peers: $(PEERS)/bench.stamp ## Compare hubhead score and serve with what users would write instead, 25 minutes (PEERS=build/peers: environment with hubhead[bench])
	$(PEERS)/bin/python -m tests.bench.peers --output docs/benchmarks/peers.json --plot docs/benchmarks/peers.svg

bench-decoding: $(VENV)/dev.stamp ## Measure decoding: speed, agreement with an area-resized original (on Debian), memory
	$(BIN)/python -m tests.bench.decoding --output docs/benchmarks/decoding.json

bench-accuracy: $(VENV)/dev.stamp ## Measure accuracy on the sample photos: heads, calibration, abstention, --aspect
	$(BIN)/python -m tests.bench.heads --output docs/benchmarks/heads.json
	$(BIN)/python -m tests.bench.abstention --output docs/benchmarks/abstention.json
	$(BIN)/python -m tests.bench.accuracy --output docs/benchmarks/aspect.json
	$(BIN)/python -m tests.bench.keras_resizing --output docs/benchmarks/keras-resizing.json
	$(BIN)/python -m tests.bench.gate --output docs/benchmarks/gate.json

bench-backbones: $(VENV)/dev.stamp ## Compare the backbones that hubhead builds: accuracy, log-loss, photos/s
	$(BIN)/python -m tests.bench.backbones --output docs/benchmarks/backbones.json

bench-engines: $(VENV)/dev.stamp ## Compare engines for the backbone: conversion, speed by batch, differences, memory
	$(BIN)/python -m tests.bench.engines --output docs/benchmarks/engines.json

bench-labelling: $(VENV)/dev.stamp ## Simulate labelling with the true labels: labels needed by strategy
	$(BIN)/python -m tests.bench.labelling --part strategies --output docs/benchmarks/labelling.json --plot docs/pictures/labelling.svg

CLEANLAB ?=
bench-label-errors: $(VENV)/dev.stamp ## Measure how many flipped labels are among the suspected ones, CLEANLAB=python of an environment with cleanlab
	$(BIN)/python -m tests.bench.labelling --part suspects $(CLEANLAB:%=--cleanlab %) --output docs/benchmarks/label-errors.json

bench-labelling-million: $(VENV)/dev.stamp ## Measure ranking and answers among a million photos to label: 3 GB of disk
	$(BIN)/python -m tests.bench.labelling.million --output docs/benchmarks/labelling-million.json

bench-label-page: $(VENV)/dev.stamp ## Measure the time from an answer to the next photo, in headless Chromium
	$(BIN)/python -m tests.bench.label_page --output docs/benchmarks/label-page.json

bench-similar: $(VENV)/dev.stamp ## Measure hubhead similar among a million embeddings: seconds and memory
	$(BIN)/python -m tests.bench.similar --output docs/benchmarks/similar.json

bench-head: $(VENV)/dev.stamp ## Measure the fit of a head on 1,000 to 1,000,000 embeddings: seconds and memory
	$(BIN)/python -m tests.bench.head --output docs/benchmarks/head.json

bench-start: $(VENV)/dev.stamp ## Compare hubhead predict and train, as whole processes, with the import of TensorFlow
	$(BIN)/python -m tests.bench.start --output docs/benchmarks/start.json

bench-resident: $(VENV)/dev.stamp ## Compare a process per photo with a resident model: seconds per photo
	$(BIN)/python -m tests.bench.resident --output docs/benchmarks/resident.json

bench-food-101: $(VENV)/dev.stamp ## Measure train and score at the size of Food-101 (on Debian): photos/s, seconds, memory
	$(BIN)/python -m tests.bench.food_101 --output docs/benchmarks/food-101.json

bench-training: $(VENV)/dev.stamp ## Measure hubhead train, first run and from the embedding store
	$(BIN)/python -m tests.bench.training --output docs/benchmarks/training.json

bench-fine-tune: $(VENV)/dev.stamp ## Compare input sizes, views and fine-tuning by cross-validation: some hours
	$(BIN)/python -m tests.bench.fine_tune --output docs/benchmarks/fine-tune.json

FUZZ ?= 20000
fuzz: $(VENV)/dev.stamp ## Fuzz the decoders with damaged photos and headers, FUZZ=20000 examples per property
	HUBHEAD_FUZZ_EXAMPLES=$(FUZZ) $(BIN)/python -m pytest tests/integration/trainer/test_preprocessing.py tests/integration/trainer/test_image_headers.py -k "damaged or arbitrary or reference or counts_only_scans or height_and_width"

OLD_TENSORFLOW ?= 2.19.1
old-tensorflow: $(VENV)/dev.stamp ## Test a bundle with OLD_TENSORFLOW=2.19.1, in a separate environment
	test -x build/tensorflow-$(OLD_TENSORFLOW)/bin/python || $(PYTHON) -m venv build/tensorflow-$(OLD_TENSORFLOW)
	build/tensorflow-$(OLD_TENSORFLOW)/bin/python -m pip install --quiet tensorflow-cpu==$(OLD_TENSORFLOW)
	HUBHEAD_OLD_TENSORFLOW=build/tensorflow-$(OLD_TENSORFLOW)/bin/python $(BIN)/python -m pytest tests/integration/test_old_tensorflow.py

# The programs are in an environment of their own: they are no dependency of hubhead.
SUPPLY_CHAIN := build/supply-chain
$(SUPPLY_CHAIN)/stamp:
	$(PYTHON) -m venv $(SUPPLY_CHAIN)
	$(SUPPLY_CHAIN)/bin/python -m pip install --quiet 'cyclonedx-bom>=7,<8' 'pip-audit>=2.9,<3'
	@touch $@

sbom: $(VENV)/dev.stamp $(SUPPLY_CHAIN)/stamp ## Write a software bill of materials (CycloneDX) of the locked packages to build/sbom.cdx.json
	$(SUPPLY_CHAIN)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file build/sbom.cdx.json requirements.txt
	$(BIN)/python -m tests.support.bill_of_materials build/sbom.cdx.json

audit: $(SUPPLY_CHAIN)/stamp ## Look up known vulnerabilities of the locked packages with pip-audit
	$(SUPPLY_CHAIN)/bin/pip-audit --requirement requirements.txt --disable-pip --vulnerability-service osv --timeout 20 \
	  --progress-spinner off

lock: $(VENV)/dev.stamp ## Resolve the version ranges of pyproject.toml again, into the two lock files
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra train --extra formats --extra metrics --extra query --extra s3 --extra gs --extra az --extra http --extra build --universal --python-version 3.11 \
	  --upgrade \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet -o requirements.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --constraint requirements.txt \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet -o requirements-dev.txt

check-resolve: ## Install the version ranges of pyproject.toml without the lock files, and import everything
	rm -rf build/resolve build/client
	$(PYTHON) -m venv build/resolve && $(PYTHON) -m venv build/client
	build/resolve/bin/python -m pip install --quiet '.[train,formats,metrics,query,s3,gs,az,http]'
	cd build && resolve/bin/python -c "import hubhead, trainer.training.run, trainer.commands.demo, batch.jobs.score, serving.server, \
	  serving.runtime, onnxruntime, tf2onnx, tensorflow, tensorflow_hub, apache_beam, pyarrow, scipy, threadpoolctl, PIL, pi_heif, aiohttp, \
	  duckdb, fsspec, s3fs, gcsfs, adlfs, jinja2, msgspec, tensorboard, prometheus_client, opentelemetry.trace, grpc_health.v1.health, grpc_reflection.v1alpha.reflection; print('all imported')"
	build/client/bin/python -m pip install --quiet .
	cd build && client/bin/python -c "import serving.client, importlib.util as u; \
	  assert u.find_spec('tensorflow') is None; print('client imported without TensorFlow')"
	cd build && client/bin/hubhead --help >/dev/null
	rm -rf build/resolve build/client

clean: ## Remove everything built here; the cache of photos and weights is kept
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# The environment: the locked packages with their hashes, then hubhead itself as an editable installation.
# The stamp is written last, so that an interrupted installation is repeated.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "hubhead needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/demo.stamp
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements-dev.txt
	@touch $@
