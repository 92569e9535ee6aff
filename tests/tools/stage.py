# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""stage.py NAME | --all: runs one part of the test suite, or all of it, and counts what was really executed.

A stage fails if one of its commands does, if it counted a failed test, if it skipped one, or if it ran fewer tests than
it has to. Logs are in build/log/. --all runs the lanes side by side; the stages of one lane share a copy of the
collection and follow each other.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "log"
RUN = str(ROOT / "tests" / "tools" / "run")


@dataclass
class Count:
    """What one stage's log says: tests passed and failed, its runners' closing lines, and complaints that fail it."""

    passed: int = 0
    failed: int = 0
    closing: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """A part of the suite: its lane, its commands (all run, whatever the first ones say), and the reader of its log."""

    lane: str
    commands: tuple[tuple[str, ...], ...]
    count: Callable[[str], Count]


def user(*command: str) -> tuple[str, ...]:
    """The command in the copy of the checkout's owner."""
    return (RUN, *command)


def root(*command: str, lane: str = "") -> tuple[str, ...]:
    """The command as root, where the lab can be, in the copy of a lane."""
    return (RUN, f"--root={lane}" if lane else "--root", *command)


def tool(name: str, *command: str) -> tuple[str, ...]:
    """A command without a test count of its own: it is one check."""
    return user("tests/tools/check", name, *command)


def count_pytest(log: str) -> Count:
    """pytest's summary lines, as in `3 failed, 40 passed in 0.52s`."""
    count = Count(
        closing=re.findall(r"^(?:=+ )?((?:\d+ [a-z]+(?:, )?)+ in [\d.]+s.*?|no tests ran in .*?)(?: =+)?$", log, re.M)
    )
    for number, word in re.findall(r"(\d+) ([a-z]+)", " ".join(line.split(" in ")[0] for line in count.closing)):
        if word == "passed":
            count.passed += int(number)
        elif word in ("failed", "error", "errors"):
            count.failed += int(number)
        elif word not in ("warning", "warnings"):
            count.complaints.append(f"{number} tests {word}")
    return count


def count_checks(log: str) -> Count:
    """The lines of tests/tools/check."""
    closing = re.findall(r"^check .*: (?:passed|failed)$", log, re.M)
    failed = sum(line.endswith("failed") for line in closing)
    return Count(len(closing) - failed, failed, closing)


def count_sanity(log: str) -> Count:
    """ansible-test sanity; it says "All targets skipped" and succeeds when it sees no files, so its lines are counted."""
    ran = len(re.findall(r"^Running sanity test ", log, re.M))
    failed = sum(int(number) for number in re.findall(r"^(?:ERROR|FATAL): The (\d+) sanity test", log, re.M))
    closing = re.findall(r"^WARNING: Skipping .*$", log, re.M) + [
        f"ansible-test sanity: {ran} tests run, {failed} failed"
    ]
    missing = re.compile(r".* on Python [\d.]+ because it could not be found\.$")
    complaints = [line for line in closing[:-1] if not missing.match(line)]
    return Count(ran - failed, failed, closing, complaints + ([] if ran > 20 else [f"only {ran} sanity tests ran"]))


def integration_targets(group: str = "") -> set[str]:
    """The targets that a run without arguments has to execute, or one with a group, which is an alias of theirs."""
    found = set()
    for target in (ROOT / "tests" / "integration" / "targets").glob("*"):
        aliases = target / "aliases"
        words = set(aliases.read_text().split()) if aliases.exists() else set()
        helper = target.name.startswith(("setup_", "prepare_")) or {"hidden", "unsupported"} & words
        if target.is_dir() and not helper and (not group or group in words):
            found.add(target.name)
    return found


def count_integration(log: str, group: str = "") -> Count:
    """ansible-test integration: one test for each target."""
    wanted = integration_targets(group)
    ran = set(re.findall(r"^Running (\S+) integration test role$", log, re.M)) & wanted
    failed = sum(int(number) for number in re.findall(r"^(?:ERROR|FATAL): The (\d+) integration test", log, re.M))
    missing = sorted(wanted - ran)
    closing = [f"ansible-test integration: {len(ran)} targets run, {failed} failed"]
    return Count(len(ran) - failed, failed, closing, [f"target {name} did not run" for name in missing])


def count_molecule(log: str) -> Count:
    """Molecule's details: each scenario has to converge, to change nothing the second time, and to be verified."""
    details = re.findall(r"^(\S+) > (converge|idempotence|verify): (.*)$", log, re.M)
    passed = [f"{scenario} > {action}" for scenario, action, result in details if result == "Executed: Successful"]
    scenarios = [path.parent.name for path in (ROOT / "extensions" / "molecule").glob("*/molecule.yml")]
    wanted = [
        f"{name} > {action}"
        for name in scenarios
        if name != "default"
        for action in ("converge", "idempotence", "verify")
    ]
    missing = [f"{name} did not succeed" for name in sorted(set(wanted) - set(passed))]
    return Count(len(passed), len(details) - len(passed), re.findall(r"^\S+ +: actions=.*$", log, re.M), missing)


def half(number: int, lane: str) -> Stage:
    """The integration targets of one group."""
    group = f"shippable/posix/group{number}"
    command = root("env", f"LAB_NAME=integration{number}", "tests/tools/integration", f"{group}/", lane=lane)
    return Stage(lane or "root", (command,), lambda log: count_integration(log, group))


STAGES = {
    "units": Stage(
        "user",
        (user("env", f"PYTHONPATH={ROOT}/build/tree", "pytest", "-q", "-n", "2", "tests/unit", "tests/tools"),),
        count_pytest,
    ),
    "lint": Stage(
        "user",
        (
            tool("ruff", "ruff", "check", "."),
            tool("yamllint", "yamllint", "--strict", "."),
            tool("shellcheck", "tests/tools/shellcheck-all"),
            tool("ansible-lint", "ansible-lint", "--offline", "--strict"),
        ),
        count_checks,
    ),
    "docs-lint": Stage(
        "user",
        (
            tool(
                "antsibull-docs",
                "antsibull-docs",
                "lint-collection-docs",
                "--plugin-docs",
                "--validate-collection-refs",
                "self",
                ".",
            ),
            tool("antsibull-changelog", "antsibull-changelog", "lint"),
        ),
        count_checks,
    ),
    "package": Stage("user", (tool("package", "tests/tools/package", str(ROOT / "build" / "dist")),), count_checks),
    "sanity": Stage("user", (user("tests/tools/sanity"),), count_sanity),
    "integration": Stage("root", (root("tests/tools/integration"),), count_integration),
    # The two halves of the same, which --all runs side by side.
    "integration-1": half(1, ""),
    "integration-2": half(2, "second"),
    "lab-test": Stage(
        "user",
        (
            # test_linux needs a download: make long.
            root("pytest", "-q", "-p", "no:cacheprovider", "--ignore=tests/lab/test_linux.py", "tests/lab", lane="molecule"),
        ),
        count_pytest,
    ),
    "molecule": Stage("user", (root("tests/tools/molecule", lane="molecule"),), count_molecule),
}


EVERY = tuple(name for name in STAGES if name != "integration")


@dataclass(frozen=True)
class Outcome:
    """One stage's end."""

    name: str
    count: Count
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the stage stands."""
        return not self.count.failed

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED"
        return f"{self.name:<12} {verdict:<6} {self.count.passed:5} passed {self.count.failed:3} failed {self.seconds:6.1f} s"


def run_stage(name: str, echo: bool) -> Outcome:
    """Run a stage's commands into its log; echo shows them as they come."""
    stage, log, started, broken = STAGES[name], LOGS / f"{name}.log", time.monotonic(), []
    parts: list[tuple[str, float]] = []
    with log.open("w", encoding="utf-8") as file:
        for command in stage.commands:
            with subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    begun = re.match(r"Running (\S+) integration test role$", line)
                    if begun:
                        parts.append((begun[1], time.monotonic()))
                    if echo:
                        print(line, end="", flush=True)
            if process.returncode:
                broken.append(f"exit code {process.returncode}: {' '.join(command[1:])}")
    count = stage.count(log.read_text(encoding="utf-8"))
    if not count.passed and not count.failed:
        count.complaints.append("no test ran")
    ends = [moment for dummy, moment in parts[1:]] + [time.monotonic()]
    count.closing += [f"{part} {end - begun:.0f} s" for (part, begun), end in zip(parts, ends)]
    count.complaints += broken
    # A stage that broke off is a failure in the sum, too.
    count.failed = count.failed or int(bool(count.complaints))
    return Outcome(name, count, time.monotonic() - started)


def report(outcome: Outcome, with_log: bool) -> None:
    """Print a finished stage in one piece: the lanes share the terminal."""
    lines = [f"--- {outcome.name}"]
    if with_log and not outcome.ok:
        lines += (LOGS / f"{outcome.name}.log").read_text(encoding="utf-8").splitlines()[-80:]
    lines += (
        outcome.count.closing
        + [f"{outcome.name}: {complaint}" for complaint in outcome.count.complaints]
        + [str(outcome)]
    )
    print("\n".join(lines), flush=True)


def run_all() -> list[Outcome]:
    """All stages, lane beside lane."""
    outcomes: list[Outcome] = []
    lock = threading.Lock()
    interrupted = threading.Event()

    def lane(names: list[str]) -> None:
        for name in names:
            if interrupted.is_set():
                return
            outcome = run_stage(name, echo=False)
            with lock:
                outcomes.append(outcome)
                report(outcome, with_log=True)

    lanes = {stage.lane: [name for name in EVERY if STAGES[name].lane == stage.lane] for stage in STAGES.values()}
    threads = [threading.Thread(target=lane, args=(names,)) for names in lanes.values()]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        interrupted.set()
        raise
    return outcomes


def main() -> int:
    """Run what was asked for; the last line counts all tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", choices=STAGES)
    what.add_argument("--all", action="store_true")
    options = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    if os.geteuid() and any(
        RUN in command and command[1].startswith("--root")
        for name, stage in STAGES.items()
        if options.all or name == options.name
        for command in stage.commands
    ):
        # A password is asked for now, not in the middle of two lanes.
        subprocess.run(["sudo", "true"], check=True)
    if options.all:
        outcomes = run_all()
        print("---", *outcomes, sep="\n")
    else:
        outcomes = [run_stage(options.name, echo=True)]
        report(outcomes[0], with_log=False)
    if len(outcomes) != (len(EVERY) if options.all else 1):
        print("a lane broke off")
        return 1
    passed, failed = (sum(getattr(outcome.count, word) for outcome in outcomes) for word in ("passed", "failed"))
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
