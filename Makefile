# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

STAGES := units lint docs-lint package sanity lab-test integration integration-1 integration-2 molecule

LONG = $(patsubst tests/integration/targets/%/aliases,%,$(shell grep -lx unsupported tests/integration/targets/*/aliases))

.PHONY: help demo test setup $(STAGES) bench faults long property generations libvirt-xml clean
help:
	@echo 'make demo         a live block move on a real guest, in a lab host of its own'
	@echo 'make test         all tests; or one part of them: $(STAGES)'
	@echo 'make bench        the benchmarks'
	@echo 'make faults       the long fault matrix: daemons, guests and runs killed at every stage'
	@echo 'make long         integration that takes too long or needs a download, such as freezing a real Linux guest'
	@echo 'make property     random sequences of snapshots, pulls, commits and copies against what they are predicted to give'
	@echo 'make generations  integration on the libvirt and QEMU of a newer Debian, which is fetched'
	@echo 'make libvirt-xml  the XML reader on the test data of libvirt itself, whose source is fetched'
	@echo 'make setup        only what the above need: Debian packages and build/venv'
	@echo 'make clean        takes the labs down and removes build/'

setup:
	@tests/tools/setup

demo: setup
	@tests/tools/run --root tests/demo/run

test: setup
	@/usr/bin/python3 tests/tools/stage.py --all

$(STAGES): setup
	@/usr/bin/python3 tests/tools/stage.py $@

bench: setup
	@tests/tools/run --root tests/bench/run

faults: setup
	@tests/tools/run --root tests/faults/run

long: setup
	@tests/tools/run --root pytest -q -p no:cacheprovider tests/lab/test_linux.py
	@tests/tools/run --root tests/tools/integration --allow-unsupported $(LONG)

property: setup
	@tests/tools/run --root tests/property/run

generations: setup
	@tests/tools/generations

libvirt-xml: setup
	@tests/tools/libvirt-xml

clean:
	@tests/tools/clean
