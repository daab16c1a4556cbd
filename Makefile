# make demo    broker, model and sample messages in one process (no Java, no Docker)
# make test    every suite, one representative of each kind; real Kafka needs Java 17+ and Maven, or XNLI_TEST_KAFKA=host:port
# make acceptance  every test, the slow ones too, at full size, with ten times the examples of Hypothesis, then the fault matrix: long
# make explore the delivery state machine with 2,000 examples that nobody chose, under each guarantee; EXAMPLES=N for others
# make lint    ruff and mypy --strict
# make faults  the fault matrix on real Kafka; XNLI_TEST_FAULTS_MESSAGES=100000 for its full size
# make fuzz    hostile bytes against decoding and validation
# make bench   the engine against its peers
# make helm    Helm, built by Go into .cache, for the tests of the chart
# make audit   known vulnerabilities among the dependencies (asks the service of PyPI); make sbom: what there is, as CycloneDX
# make checkpoint  train the shipped checkpoint again

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# Another package index, such as one that has a CPU build of torch: make demo EXTRA_INDEX_URL=...
ifdef EXTRA_INDEX_URL
export PIP_EXTRA_INDEX_URL := $(EXTRA_INDEX_URL)
endif
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test acceptance explore lint faults fuzz bench helm audit sbom checkpoint clean

$(VENV)/installed: pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint deploy/constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --constraint deploy/constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/xnli-worker demo

# The jars of Kafka and the registry come first, or the first test's time limit would pay for the download; without Java
# or Maven the tests themselves say what is missing. Two processes share the files: what waits for a broker leaves its
# core to the other.
test: $(VENV)/installed-dev
	-$(BIN)/python -m tests.brokers.java
	$(BIN)/python -m pytest -n 2 --dist loadfile

acceptance: $(VENV)/installed-dev
	-$(BIN)/python -m tests.brokers.java
	-command -v helm || $(MAKE) helm
	XNLI_TEST_MESSAGES=20000 XNLI_TEST_POISON_MESSAGES=10000 XNLI_TEST_OUTAGE_S=60 \
		$(BIN)/python -m pytest -m "" --hypothesis-profile=acceptance --timeout=600
	$(BIN)/python -m tests.faults.matrix

EXAMPLES ?= 2000
explore: $(VENV)/installed-dev
	$(BIN)/python -m tests.property.explore --examples $(EXAMPLES)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.matrix

fuzz: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.fuzz_decode
	if $(BIN)/python -c 'import atheris' 2>/dev/null; then $(BIN)/python -m tests.faults.fuzz_atheris; fi

bench: $(VENV)/installed-dev
	$(PIP) install --constraint deploy/constraints.txt --editable '.[peers]'
	$(BIN)/python -m tests.bench.engine

# The chart's tests look for it here.
HELM := .cache/helm/helm
helm: $(HELM)
$(HELM):
	GOBIN=$(CURDIR)/$(@D) go install helm.sh/helm/v3/cmd/helm@v3.22.0

# Tools of their own folder: what is looked at is what the worker runs with, by name and version, and not the tools.
TOOLS := .cache/tools
$(TOOLS)/installed: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install pip-audit cyclonedx-bom
	touch $@

# Strict: what the service does not know would else pass for sound.
audit: $(TOOLS)/installed
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement deploy/constraints.txt

sbom: $(TOOLS)/installed $(VENV)/installed
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --mc-type application \
		--output-reproducible --of JSON --output-file .cache/sbom.cdx.json
	@echo .cache/sbom.cdx.json

checkpoint: $(VENV)/installed-dev
	$(BIN)/python -m tests.checkpoint.train

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
