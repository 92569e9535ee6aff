# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The suite's own gate: what has to fail it does fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import stage


@pytest.mark.parametrize(
    ("log", "passed", "failed", "complaints"),
    [
        ("40 passed in 0.52s\n", 40, 0, 0),
        ("50 passed in 150.21s (0:02:30)\n", 50, 0, 0),
        ("=== 1 failed, 40 passed, 2 warnings in 0.52s ===\n", 40, 1, 0),
        ("3 passed, 1 error in 0.5s\n", 3, 1, 0),
        ("3 passed, 2 skipped in 0.5s\n", 3, 0, 1),
        ("3 passed, 1 xfailed in 0.5s\n", 3, 0, 1),
        ("no tests ran in 0.01s\n", 0, 0, 0),
        ("ImportError while loading conftest\n", 0, 0, 0),
    ],
)
def test_pytest(log, passed, failed, complaints):
    count = stage.count_pytest(log)
    assert (count.passed, count.failed, len(count.complaints)) == (passed, failed, complaints)


def test_checks():
    count = stage.count_checks("check ruff: passed\nno check: passed\ncheck yamllint: failed\n")
    assert (count.passed, count.failed) == (1, 1)


def sanity_log(number):
    return "".join(f'Running sanity test "{name}"\n' for name in range(number))


def test_sanity():
    count = stage.count_sanity(sanity_log(24) + "FATAL: The 2 sanity test(s) listed below (out of 26) failed.\n")
    assert (count.passed, count.failed, count.complaints) == (22, 2, [])


@pytest.mark.parametrize("log", ["WARNING: All targets skipped.\n", sanity_log(20)])
def test_sanity_that_saw_nothing(log):
    assert stage.count_sanity(log).complaints


def test_sanity_that_skipped():
    """A Python version that the machine lacks is no fault; a tool that it lacks is."""
    log = sanity_log(24) + 'WARNING: Skipping sanity test "import" on Python 3.14 because it could not be found.\n'
    assert stage.count_sanity(log).complaints == []
    log += 'WARNING: Skipping sanity test "shellcheck" because shellcheck is not installed.\n'
    assert len(stage.count_sanity(log).complaints) == 1


def test_integration(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    for name in ("one", "two", "three", "setup_host", "helper"):
        (tmp_path / "tests" / "integration" / "targets" / name).mkdir(parents=True)
    (tmp_path / "tests" / "integration" / "targets" / "helper" / "aliases").write_text("hidden\n")
    (tmp_path / "tests" / "integration" / "targets" / "two" / "aliases").write_text("destructive\nhalf\n")
    log = "Running one integration test role\nRunning two integration test role\nERROR: The 1 integration test(s) listed below\n"
    count = stage.count_integration(log)
    assert (count.passed, count.failed, count.complaints) == (1, 1, ["target three did not run"])
    assert stage.count_integration("Running one integration test role\n", "half").complaints == ["target two did not run"]


def test_each_target_is_in_one_half():
    halves = [stage.integration_targets(f"shippable/posix/group{number}") for number in (1, 2)]
    assert halves[0] | halves[1] == stage.integration_targets()
    assert not halves[0] & halves[1]


def test_molecule(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    for name in ("default", "move"):
        scenario = tmp_path / "extensions" / "molecule" / name
        scenario.mkdir(parents=True)
        (scenario / "molecule.yml").touch()
    log = "move > converge: Executed: Successful\nmove > idempotence: Executed: Failed (Ansible return code was 2)\n"
    count = stage.count_molecule(log)
    assert (count.passed, count.failed) == (1, 1)
    assert count.complaints == ["move > idempotence did not succeed", "move > verify did not succeed"]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("true",), "no test ran"),
        (("sh", "-c", "echo 3 passed in 1s; exit 1"), "exit code 1: -c echo 3 passed in 1s; exit 1"),
    ],
)
def test_a_stage_that_breaks_off_counts_as_a_failure(tmp_path, monkeypatch, command, complaint):
    monkeypatch.setattr(stage, "LOGS", tmp_path)
    monkeypatch.setitem(stage.STAGES, "probe", stage.Stage("user", (command,), stage.count_pytest))
    outcome = stage.run_stage("probe", echo=False)
    assert (outcome.ok, outcome.count.failed, outcome.count.complaints) == (False, 1, [complaint])
