# make quickstart: set up .venv and show three of the modalities. make test: run all checks. Either needs git, make and Python
# 3.11, 3.12 or 3.13 with its venv module.
VENV := .venv
# one that runs, not one that is only found: version managers leave commands of versions that are not chosen
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do $$p -c '$(FITS)' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements/lock.txt
# What is imported is compiled once. Images often forbid it, and then every process compiles torch again: three seconds, and
# diffusers ten.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install system lock quickstart assets test test-all lint fmt unit check-one test-lowest test-latest release-check smoke clean

install: $(STAMP)

# exactly what the lock says, then one kernel of every binary package, so that a pair that does not fit fails here, and
# not in the middle of a run; then what every modality imports, which is compiled by it
$(STAMP): pyproject.toml setup.py $(LOCK) tools/install.py
	@$(or $(PYTHON),false) -c '$(FITS)' 2>/dev/null || { echo "make install: needs Python 3.11, 3.12 or 3.13 with its venv module (found: $(or $(PYTHON),none)); on Debian and Ubuntu: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) tools/install.py $(VENV) $(LOCK) '.[all,dev]'
	@$(BIN)/python -c "import soundfile, torchaudio, open3d" 2>/dev/null || $(MAKE) --no-print-directory system
	@$(BIN)/xmodal-kd doctor --kernels
	@$(BIN)/xmodal-kd list models >/dev/null
	@touch $(STAMP)

# what the wheels do not bring: soundfile's libsndfile on some platforms, Open3D's libusb, GL and OpenMP on bare ones
LIBRARIES := libsndfile1 libusb-1.0-0 libegl1 libgl1 libgomp1 libx11-6
system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && apt-get install -y -qq $(LIBRARIES); } >$(VENV).system.log 2>&1 || \
		{ echo "make install: apt-get could not install $(LIBRARIES): see $(VENV).system.log" >&2; exit 1; }; \
	else echo "make install: a system library is missing; on Debian and Ubuntu, as root: apt-get install $(LIBRARIES)" >&2; exit 1; fi
	@$(BIN)/python -c "import soundfile, torchaudio, open3d" 2>$(VENV).system.log || { tail -n 1 $(VENV).system.log >&2; exit 1; }

# the versions that were tested together, for every supported Python and platform; pins that still fit stay as they are,
# all are renewed by: make lock UPGRADE=--upgrade
lock:
	@$(BIN)/uv pip compile pyproject.toml --extra all --extra gpu --extra dev --universal --python-version 3.11 \
		--quiet --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --output-file $(LOCK) $(UPGRADE)

# a small run of speech, of diffusion and of points on data and teachers that are in assets; what is finished is not run
# again, and what was killed goes on. Two at once: make -j2 quickstart
QUICKSTART := $(patsubst %,runs/quickstart/%/report.html,speech diffusion points)
quickstart: $(QUICKSTART)
	@$(BIN)/xmodal-kd report runs/quickstart --index

$(QUICKSTART): runs/quickstart/%/report.html: | install
	$(BIN)/xmodal-kd run quickstart/$* --resume

# the teachers of the quickstart, trained anew: about seven minutes on one idle core
assets: install
	$(BIN)/python assets/make_teachers.py

test: install lint unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

# what lint would complain of and a program can mend
fmt: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# tests in three processes, for two cores: one waits for what another makes, or for a process of its own. They share what
# takes long to make, and a worker that is done takes half of what another has left
WORKERS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal
unit: install
	$(PYTEST)

# with the cases that only a complete matrix has
test-all: install
	$(PYTEST) -m 'full or not full'

# what concerns one loss alone: oracle, properties, in the objective, docstring, its line in docs/methods.md
ONE = "[$(LOSS)] or [$(LOSS)- or -$(LOSS)] or -$(LOSS)-"
check-one: install
	@test -n "$(LOSS)" || { echo "make check-one: which loss? make check-one LOSS=kd (xmodal-kd list losses)" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/losses tests/objective/test_losses_objective.py -k $(ONE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/project -k "made_of or not_built or xmodal_kd.losses"

# both ends of the ranges in pyproject.toml, each in an environment of its own; docs/versions.md gets what came of it
test-lowest test-latest: test-%: install
	@$(BIN)/python tools/versions.py $*

# sdist and wheel, built and tried by name
release-check: install
	@$(BIN)/python tools/release_check.py

# new cases each time: kills, malformed recipes, hostile folders, full disks, dead ranks; counts go into docs/reliability.md
.PHONY: torture
torture: install
	cd tests && OMP_NUM_THREADS=1 PYTHONPATH=.. ../$(BIN)/python -m torture --write --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

# the pages under docs and the API reference as a site in build/site; a broken link is an error. In an environment of its own
.PHONY: docs
DOCS := $(VENV)-docs
docs: install
	@test -x $(DOCS)/bin/mkdocs || { $(BIN)/uv venv --quiet --clear $(DOCS) && \
		$(BIN)/uv pip install --quiet --python $(DOCS)/bin/python mkdocs mkdocs-material 'mkdocstrings[python]'; }
	@$(DOCS)/bin/python tools/docs_site.py

smoke: install
	$(BIN)/xmodal-kd run smoke/speech
	$(BIN)/xmodal-kd run smoke/diffusion
	$(BIN)/xmodal-kd run smoke/points
	$(BIN)/xmodal-kd run smoke/images

clean:
	rm -rf $(VENV)* build dist *.egg-info runs .mypy_cache .ruff_cache .pytest_cache
