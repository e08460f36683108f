# make demo         install, pretrain on Fashion-MNIST (scattered digits where it cannot be had), evaluate, write runs/demo/report.html
# make check        style, types and the fast tests
# make test         install, check style and types, run every test
# make coverage     every test, and which lines none of them runs
# make test-extras  install the extras too, and run the tests that need them
# make wheels       check that every dependency has a wheel of the pinned version for every Python
# make oldest       the fast tests with the oldest versions that pyproject.toml allows, in build/oldest
# make wheel        build the package, install it by itself, and train with what is in it
# make lint         style and types only
# make docs         the site of docs/ in build/site; fails on a dead link or a page in no menu
# make bench        the speed of views, step and losses beside the textbook's and other projects'
# make tables       the tables of methods and settings in docs/ on DATA, a folder with train/CLASS and val/CLASS (hours)

PYTHON ?= python3
MINUTES ?= 2.2
DATA ?= imagenette128
JOBS ?= 2
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: demo check style types fast-tests-of-files fast-tests-of-rooms test coverage test-extras wheels oldest wheel lint docs bench tables clean

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/python recipes/demo.py --minutes $(MINUTES) --out runs/demo

check: style
	$(MAKE) --no-print-directory --jobs=3 --output-sync types fast-tests-of-files fast-tests-of-rooms

style: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/pyright

lint: style types

# Two plain processes: they start in half the time that workers of pytest-xdist take.
fast-tests-of-files: .venv/installed-test
	$(PYTEST) -m "not slow" tests/test_*.py tests/data

fast-tests-of-rooms: .venv/installed-test
	$(PYTEST) -m "not slow" $(filter-out tests/data/,$(wildcard tests/*/))

test: lint
	$(PYTEST) -n $(JOBS) --dist loadfile

coverage: .venv/installed-test
	COVERAGE_CORE=sysmon $(PYTEST) -n $(JOBS) --dist loadfile --cov --cov-report=term:skip-covered

test-extras: .venv/installed-extras
	$(PYTEST) -m extra

wheels: .venv/installed
	$(BIN)/python .ci/wheels.py

wheel: .venv/installed
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel/site build/wheel/*.whl
	cd build/wheel && PYTHONPATH=$$PWD/site ../../$(BIN)/python -c "import simdino; assert 'wheel/site' in simdino.__file__, simdino.__file__"
	cd build/wheel && PYTHONPATH=$$PWD/site ../../$(BIN)/python -m simdino pretrain digits --steps 2 --out run

oldest:
	mkdir -p build
	$(PYTHON) .ci/oldest.py > build/oldest.txt
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --disable-pip-version-check --quiet --requirement build/oldest.txt pytest pytest-timeout
	build/oldest/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest -q -m "not slow"

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

bench: .venv/installed-test
	test -d $(DATA)/train || { echo "make bench DATA=FOLDER: a folder with train/CLASS and val/CLASS"; exit 2; }
	$(PIP) --requirement benchmarks/requirements.txt
	$(BIN)/python benchmarks/views.py $(DATA)
	$(BIN)/python benchmarks/channels.py
	$(BIN)/python benchmarks/step.py --shapes tiny 28px --batches 8
	$(BIN)/python benchmarks/step.py --memory --shapes tiny --batches 8
	$(BIN)/python benchmarks/update.py
	$(BIN)/python benchmarks/loss.py --repeats 3
	$(BIN)/python benchmarks/knn.py --queries 4000 --repeats 3
	$(BIN)/python benchmarks/index.py --count 100000 --threads 1
	$(BIN)/python benchmarks/features.py $(DATA) --images 256
	$(BIN)/python benchmarks/linear.py --sizes 64 --classes 10 1000
	$(BIN)/python benchmarks/end_to_end.py $(DATA)
	$(BIN)/python benchmarks/start.py --repeats 3
	$(BIN)/python benchmarks/tables.py

tables: .venv/installed-test
	test -d $(DATA)/train || { echo "make tables DATA=FOLDER: a folder with train/CLASS and val/CLASS"; exit 2; }
	$(PIP) --requirement benchmarks/requirements.txt
	$(BIN)/python benchmarks/sweep_weight.py $(DATA)
	$(BIN)/python benchmarks/methods.py $(DATA)
	$(BIN)/python benchmarks/methods.py $(DATA) --steps 200
	$(BIN)/python benchmarks/robustness.py $(DATA)
	$(BIN)/python benchmarks/continued.py $(DATA)
	$(BIN)/python benchmarks/precision.py $(DATA)
	$(BIN)/python benchmarks/records.py $(DATA)
	$(BIN)/python benchmarks/tables.py

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing simdino into .venv: 6 GB on disk, most of it torch with its CUDA parts; minutes, by your line."
	$(PIP) --editable .
	touch $@

.venv/installed-test: .venv/installed
	@echo "Installing ruff, pyright and pytest into .venv: half a minute."
	$(PIP) --quiet --editable '.[test]'
	touch $@

.venv/installed-extras: .venv/installed-test
	@echo "Installing the extras into .venv: a minute."
	$(PIP) --quiet --editable '.[timm,hf,onnx,dicom,geo,heif,coco,index,umap,transformers]'
	$(PIP) --quiet --editable '.[crf]' || echo "pydensecrf2 cannot be compiled here; its tests are skipped"
	touch $@

.venv/installed-docs: .venv/installed
	@echo "Installing mkdocs into .venv: seconds."
	$(PIP) --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv runs build
