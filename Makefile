# make quickstart: set up .venv and show all three modalities. make test: run all checks. Either needs git, make, Python 3.11 or 3.12 with its venv module.
VENV := .venv
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install system quickstart assets test lint unit smoke clean

install: $(STAMP)

$(STAMP): pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or 3.12 with its venv module; on Debian and Ubuntu: apt-get install python3 python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	@$(BIN)/python -c "import soundfile, torchaudio, open3d" 2>/dev/null || $(MAKE) --no-print-directory system
	@touch $(STAMP)

# what the wheels do not bring: soundfile's libsndfile on some platforms, Open3D's libusb, GL and OpenMP on bare ones
LIBRARIES := libsndfile1 libusb-1.0-0 libgl1 libgomp1 libx11-6
system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq $(LIBRARIES); \
	else echo "a system library is missing: on Debian and Ubuntu, as root: apt-get install $(LIBRARIES)"; exit 1; fi
	@$(BIN)/python -c "import soundfile, torchaudio, open3d"

# one small run of each modality on data and teachers that are in assets; what is finished is not run again, and what
# was killed goes on. Two at once: make -j2 quickstart
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
	$(BIN)/mypy

unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# new cases each time: kills, malformed recipes, hostile folders, full disks, dead ranks; counts go into docs/reliability.md
.PHONY: torture
torture: install
	cd tests && OMP_NUM_THREADS=1 PYTHONPATH=.. ../$(BIN)/python -m torture --write --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

smoke: install
	$(BIN)/xmodal-kd run smoke/speech
	$(BIN)/xmodal-kd run smoke/diffusion
	$(BIN)/xmodal-kd run smoke/points

clean:
	rm -rf $(VENV) build dist *.egg-info runs .mypy_cache .ruff_cache .pytest_cache
