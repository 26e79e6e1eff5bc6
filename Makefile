# The two commands a newcomer needs are `make demo` and `make test`; each sets itself up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test setup check portable slow data bench gpu docs viewer peers oldest lock check-lock wheelhouse sbom release container brats

demo: $(VENV)/.runtime  ## train, predict, evaluate and report on simulated brain MRI
	$(BIN)/python scripts/train.py experiment=demo_mri

test: setup check  ## style, types, import rules and all quick tests
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

setup: $(VENV)/.installed  ## the developers' environment, from requirements.lock, and the viewer where npm is
	@test -f $(NIIVUE)/niivue.umd.js || { command -v npm >/dev/null && $(MAKE) --silent viewer; } || \
	  echo "No viewer of scans yet, as npm is missing or failed; once it works: make viewer"

$(VENV)/.installed: requirements.lock $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet -r requirements.lock
	touch $@

# what a user needs, without the tools of tests and the extras
$(VENV)/.runtime: requirements-runtime.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "make setup needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %s.%s. Name another: make setup PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -r requirements-runtime.lock
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, where pip takes one
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

check: setup  ## ruff, mypy --strict, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A processor with other instructions computes other last digits. NumPy warns of features that it is
# told to disable and that the processor lacks, so those that it has are listed.
FEATURES := from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__; \
  print(*filter(__cpu_features__.get, __cpu_dispatch__))

portable: setup  ## tests of computed numbers, with the instructions that the oldest processors have
	features=$$($(BIN)/python -c '$(FEATURES)') && PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 \
	  ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem \
	  NPY_DISABLE_CPU_FEATURES="$$features" $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal \
	  tests/golden tests/flow tests/inference tests/evaluation

slow: setup  ## tests that take over a minute
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m slow

data: setup  ## tests on real scans (LESIONSEG_DATA, or ../shared/data)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m data

bench: setup  ## every speed claim, quickly, and the test of one
	for b in benchmarks/bench_*.py; do $(BIN)/python $$b --quick || exit 1; done
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m bench

gpu:  ## speed and memory of training and inference on this machine's GPU, in ten minutes
	PYTHONPATH=. $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py

docs: $(if $(wildcard $(BIN)/mkdocs),,setup)  ## the site, into site/: pages, notebooks and the API from its docstrings; no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

NIIVUE := lesionseg/reporting/niivue
NIIVUE_SHA256 := 47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af
NIIVUE_PACKAGE := build/niivue/node_modules/@niivue/niivue

viewer: $(NIIVUE)/niivue.umd.js  ## NiiVue and its licences by npm, for serve and report.viewer=true; wheels made afterwards bring it

$(NIIVUE)/niivue.umd.js:
	rm -rf build/niivue && mkdir -p build/niivue $(NIIVUE)
	npm install --silent --ignore-scripts --omit=dev --no-audit --no-fund --prefix build/niivue @niivue/niivue@0.69.0
	$(PYTHON) -c 'import hashlib, sys; sys.exit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2] and "NiiVue is not what it was: its hash differs")' $(NIIVUE_PACKAGE)/dist/niivue.umd.js $(NIIVUE_SHA256)
	cd $(NIIVUE_PACKAGE) && tar -xzf $$(npm pack --silent @niivue/niivue@0.43.3) --strip-components=1 package/LICENSE  # later ones lack it
	cd build/niivue/node_modules && find . -type f -iname 'licen[cs]e*' | sort | xargs tail -n +1 > $(CURDIR)/$(NIIVUE)/LICENCES.txt
	mv $(NIIVUE_PACKAGE)/dist/niivue.umd.js $(NIIVUE)
	rm -r build/niivue

peers: .peers/.installed  ## the packages that benchmarks and tests compare with

.peers/.installed: benchmarks/peers/peers.txt
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet -r benchmarks/peers/peers.txt
	touch $@

brats: .brats/.installed  ## the official evaluation of BraTS, with which a slow test compares (AGPL: never part of lesionseg)

.brats/.installed:
	$(PYTHON) -m venv .brats
	.brats/bin/python -m pip install --quiet BraTS-evaluation==0.0.10
	touch $@

oldest: .oldest/.installed  ## the oldest packages that pyproject.toml allows, with which a slow test runs the commands

# the oldest release of some packages has no wheel, so the first one that has is taken
.oldest/.installed: pyproject.toml
	$(PYTHON) -m venv .oldest
	.oldest/bin/python -m pip install --quiet 'uv>=0.9'
	.oldest/bin/uv --no-config --quiet pip install --python .oldest/bin/python --resolution lowest-direct \
	  --torch-backend cpu --only-binary :all: --no-binary antlr4-python3-runtime --no-binary lesionseg -e .
	touch $@

lock:  ## write both locks anew, for every platform; versions in them stay unless pyproject.toml forbids
	.ci/lock $(PYTHON)

wheelhouse: $(VENV)/.runtime  ## wheelhouse/: every wheel a machine without an index needs
	$(BIN)/python -m pip wheel --quiet --wheel-dir wheelhouse -r requirements-runtime.lock .

release:  ## dist/: wheel, source archive, hashes and notes, tried on Python 3.11 to 3.13; publishes nothing
	.ci/release $(ADDRESS)

container:  ## the image by buildah, and in it a short training and a prediction without network
	.ci/container

check-lock:  ## resolve requirements.lock as a new user would, on Linux, macOS and Windows
	.ci/check-lock $(PYTHON)

sbom: .sbom/.installed  ## sbom.json: all that a user installs (CycloneDX), then its known holes as PyPI lists them
	.sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  --output-file sbom.json requirements-runtime.lock
	.sbom/bin/pip-audit --disable-pip --no-deps --requirement requirements-runtime.lock

.sbom/.installed:
	$(PYTHON) -m venv .sbom
	.sbom/bin/python -m pip install --quiet 'cyclonedx-bom>=7,<8' 'pip-audit>=2.10,<3'
	touch $@
