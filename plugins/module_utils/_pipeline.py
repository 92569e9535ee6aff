# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one path of every module: look, decide, show or do, look again, and undo what failed.

The only file that knows AnsibleModule and both sides. The first error is the one reported; whatever cleaning up adds
is told beside it. What is past the plan's fence is never undone, and nothing is removed before the look that proves
the fence was rightly crossed.
"""

from __future__ import annotations

import gc
import signal
import sys
import traceback
from dataclasses import replace
from typing import Optional

from ansible.module_utils.basic import missing_required_lib

from ._core import domain_xml
from ._core.backup_checks import kept_lines, left_over, unmet
from ._core.errors import JobFailed, LiveStorageError, Moved, VerifyFailed
from ._core.model import Needs
from ._core.pivot import agrees, writes
from ._core.plan import ABORT, COMMIT, COPY, DELETE, FREEZE, PIVOT, RESTART, WAIT, Plan
from ._core.render import diff_text, domains_result, images_result, job_result, steps_result
from ._core.verify import definitions, disk_results, mismatches, needed_again, same_as_before, still_kept
from ._edge import libvirt_host
from ._edge.host import Host

LOOKS = 3  # a job may end between two looks: then the plan is made anew, nothing having been done yet
PACKAGES = (("libvirt", "python3-libvirt", libvirt_host, "libvirt"), ("lxml", "python3-lxml", domain_xml, "etree"))


class _Interrupted(BaseException):
    """SIGTERM, SIGHUP or SIGINT: the run is to end, but not before it has cleaned up."""


def run(module, operation) -> None:
    """Carry out ``operation`` (a planner of ``_core.ops``) for an AnsibleModule and exit it."""
    _require_libraries(module)
    if not operation.CHANGES:
        gc.disable()  # a short life with many small values, and no cycles worth looking for: 5,000 guests took 5.2 s, then 4.4 s
    try:
        result = _Run(module, operation).result()
    except LiveStorageError as error:
        module.fail_json(**_failure(operation, error, {}))
    except _Failed as failed:
        module.fail_json(**_failure(operation, failed.error, failed.facts))
    except Exception as error:  # a defect of ours or a surprise of the host's: one sentence, and the trace for the report
        module.fail_json(**_failure(operation, error, {}))
    module.exit_json(**result)


def _require_libraries(module) -> None:
    for name, package, holder, attribute in PACKAGES:
        if getattr(holder, attribute) is None:
            message = missing_required_lib(name, reason="(the package %s of Debian and EL) for %s" % (package, sys.executable))
            module.fail_json(msg=message, code="missing_library")


class _Failed(Exception):
    """A failure after which the guest was looked at again."""

    def __init__(self, error: BaseException, facts: dict):
        super().__init__(str(error))
        self.error, self.facts = error, facts


def _failure(operation, error: BaseException, facts: dict) -> dict:
    """The keys of a success, and the reason."""
    own = dict(getattr(error, "facts", {}))
    job = job_result(own.pop("last_job", None))
    failure = {"changed": False}
    if not operation.CHANGES:
        failure.update(operation.NOTHING)
    else:
        failure.update(domains=[], steps=[], spoils=[], rolled_back=None, job=job, diff={"before": "", "after": ""})
        failure.update({"images": []} if operation.IMAGES else {})
        failure.update({"disk_results": [], "quiesced": None} if operation.PER_DISK else {})
        failure.update(_more(operation))
    failure.update(own, msg=str(error))
    if isinstance(error, LiveStorageError):
        failure["code"] = error.code
    elif isinstance(error, _Interrupted):
        failure["code"] = "interrupted"
    else:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        failure.update(code="unexpected", msg="Unexpected %s: %s" % (type(error).__name__, error), exception=trace)
    return dict(failure, **facts)


class _Run:
    def __init__(self, module, operation):
        self.module, self.operation = module, operation
        self.request = operation.request(module.params)
        self.host = Host(module.params["uri"], operation.CHANGES)
        self.done = []

    def result(self) -> dict:
        try:
            seen = self.host.observe(self.request.needs)
            plan = self.operation.plan(self.request, seen)
            if not self.operation.CHANGES:
                self._warn(plan.warnings)
                return self.operation.report(self.request, seen)
            for dummy in range(LOOKS):
                if not plan.steps or self.module.check_mode:
                    self._warn(plan.warnings)
                    self._warn([plan.failing[1]] if plan.failing is not None else [])
                    return self._show(plan, plan.after if plan.changes else plan.before)
                before, first = seen, plan
                seen = self.host.observe(self.request.needs)
                plan = self.operation.plan(self.request, seen)
                if before.identity == seen.identity and plan.steps == first.steps:
                    self._warn(plan.warnings)
                    return self._show(plan, self._apply(plan))
            raise Moved("moved", "The guest kept changing while this task looked at it, nothing was done: run it again.")
        finally:
            self.host.close()

    def _apply(self, plan: Plan) -> tuple:
        """Do the steps; the guests as they are afterwards. Raises _Failed."""
        kept = _on_signals(_interrupt)
        cut = next((position for position, step in enumerate(plan.steps) if step.action == DELETE), len(plan.steps))
        try:
            now = self._worked(plan, cut)
            for step in plan.steps[cut:]:
                self._clean_up(step, now)
            self._warn(self.host.notes)
            if plan.failing is not None:
                raise _ending(plan)
            return now.domains
        except BaseException as error:
            _on_signals(signal.SIG_IGN)  # what follows must not be interrupted half-way
            raise self._failed(plan, _interruption(error)) from error
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _worked(self, plan: Plan, cut: int):
        """Do the steps before ``cut``; a look at what is then, verified."""
        while len(self.done) < cut:
            try:
                self._do(plan.steps[len(self.done) : cut])
            except JobFailed as error:
                if self._happened(plan) is None:
                    raise
                self._warn(["%s Yet the chain is as planned." % error])  # libvirt said canceled or failed, the chain says done
        return self._verified(plan)

    def _happened(self, plan: Plan):
        """A look that shows that the fence step, the last that was begun, did what was planned of the running guest; or None."""
        if not plan.is_fence(len(self.done) - 1):
            return None
        if self.done[-1].action == RESTART:  # one that was interrupted goes on
            self.host.settle()
        now = self._look()
        only = self.done[-1].disk if plan.fences else None
        return now if now is not None and not mismatches(plan, now.domains, with_config=False, only=only) else None

    def _do(self, steps) -> None:
        for step in steps:
            self.done.append(step)
            self.host.do(step)

    def _clean_up(self, step, now) -> None:
        needed = needed_again(step, now) if step.action == DELETE else []
        if needed:
            raise Moved("in_use", "The file %s was not removed: %s." % (step.detail["path"], "; ".join(needed)))
        self._do([step])

    def _verified(self, plan: Plan):
        ends = [step for step in plan.steps if step.action == ABORT]
        asked = any(step.detail["unseen"] for step in ends)
        needs = replace(self.request.needs, qemu=True, doubts=False) if asked else self.request.needs
        now = self.host.observe(_following(needs, plan))
        astray = self._astray(now, asked) if ends else []
        if astray:
            error = VerifyFailed("stale_pivot", "The job was ended, but its pivot had begun before: run the same task again, which protects the next start.")
            error.keep, error.stands = True, "; ".join(astray)
            raise error
        wrong = mismatches(plan, now.domains) + (still_kept(plan, now) if plan.settles and needs.snapshots else []) + unmet(plan, now)
        if wrong:
            raise VerifyFailed("verify_failed", "The result is not what was planned: %s." % "; ".join(wrong))
        return now

    def _failed(self, plan: Plan, error: BaseException) -> _Failed:
        """After an error: find out what is so, undo what may be undone, and say exactly how the guest stands."""
        kept = plan.crossed(len(self.done))
        over = (kept > 0 and not plan.fences) or self._happened(plan) is not None
        complaints = [] if over or getattr(error, "keep", False) else self._undo(self.done[kept:])
        return _Failed(error, self._account(plan, error, complaints))

    def _undo(self, steps: list) -> list:
        complaints = []
        backwards = list(reversed(steps))
        for step in sorted(backwards, key=lambda step: step.action != FREEZE):  # a frozen guest hangs, and merging back may take long
            try:
                self.host.undo(step)
            except Exception as trouble:
                complaints.append("Undoing the %s failed: %s" % (step.action, trouble))
        return complaints

    def _look(self, asking: bool = False):
        """A fresh look, or None. ``asking`` QEMU itself: libvirt's word is not enough where a pivot may have been cut off."""
        needs = replace(self.request.needs, qemu=True, doubts=False) if asking else self.request.needs
        try:
            return self.host.observe(needs)
        except LiveStorageError:
            return None

    def _account(self, plan: Plan, error: BaseException, complaints: list) -> dict:
        """Where the guest stands after a failure: its chain, and whether it is as it was before."""
        asked = any(step.action in (PIVOT, ABORT) for step in self.done)
        now = self._look(asked)
        facts = {"changed": True, "spoils": list(plan.spoils), "steps": steps_result(plan, self.done)}
        self._warn(self.host.notes)
        stands = getattr(error, "stands", None)
        if stands is not None:  # libvirt's own word about the guest is wrong or not known, whatever the look says
            told = ["The guest is not as it was before: %s." % stands]
            facts.update(rolled_back=False)
            facts.update({} if now is None else self._shown(plan, now.domains, kept_lines(now)))
        elif now is None:
            told = ["The guest cannot be looked at now: nothing is known about its chain."]
        else:
            left = same_as_before(plan, now.domains) + self._removed(now) + self._astray(now, asked) + self._unfinished(plan, now)
            left += left_over(plan, self.done, now)
            told = ["The guest is not as it was before: %s." % "; ".join(left) if left else "The guest is as it was before."]
            facts.update(self._shown(plan, now.domains, kept_lines(now)), changed=bool(left), rolled_back=not left)
            job = self._job(plan, now.domains)
            facts.update({"job": job} if job else {})
        sentence = str(error) if isinstance(error, (LiveStorageError, _Interrupted)) else "Unexpected %s: %s" % (type(error).__name__, error)
        return dict(facts, msg=" ".join([sentence] + told + complaints))

    def _unfinished(self, plan: Plan, now) -> list:
        """What an earlier phase of this run has begun and still goes on, and definitions that a fence was crossed without."""
        running = [(domain, disk) for domain in now.domains for disk in domain.disks if disk.job is not None and disk.target in plan.touched]
        phased = running if self.module.params.get("phase") == "finish" else []
        found = ["the %s job on disk %s of guest %s goes on" % (disk.job.type, disk.target, domain.name) for domain, disk in phased]
        crossed = plan.crossed(len(self.done)) > 0 and not plan.fences
        return found + (definitions(plan, now.domains) if crossed else [])

    def _astray(self, now, asked: bool) -> list:
        """What QEMU writes to other images than libvirt has, of the disks that a job, its pivot or its end was begun on.

        ``asked``: QEMU had to be asked, so that an answer which does not say it is told, too. Ending a job that was about to be pivoted
        by somebody else, before the daemon died, lets QEMU pivot (9.0).
        """
        begun = {step.disk for step in self.done if step.action in (PIVOT, ABORT, COPY, COMMIT, WAIT)}
        disks = [(domain, disk) for domain in now.domains if domain.active for disk in domain.disks if disk.target in begun]
        found = []
        for domain, disk in disks:
            same = agrees(disk, now.qemu.get(domain.uuid))
            if same is False:
                image = writes(disk, now.qemu.get(domain.uuid))
                found.append("QEMU writes disk %s of guest %s to %s" % (disk.target, domain.name, image[1] if image else "another image"))
            elif same is None and asked:
                found.append("QEMU could not be asked which image it writes disk %s of guest %s to" % (disk.target, domain.name))
        return found

    def _removed(self, now) -> list:
        paths = [step.detail["path"] for step in self.done if step.action == DELETE]
        return ["%s was removed" % path for path in paths if path in now.files and not now.files[path].exists]

    def _show(self, plan: Plan, domains: tuple) -> dict:
        return {
            "changed": plan.changes,
            "steps": steps_result(plan, self.done),
            "spoils": list(plan.spoils),
            "rolled_back": None,
            "job": self._job(plan, domains),
            **self._shown(plan, domains),
        }

    def _shown(self, plan: Plan, domains: tuple, told: Optional[str] = None) -> dict:
        """The guests and images as they are (or would be), and how far each disk is where a plan works on several."""
        found = {"domains": domains_result(domains), "diff": self._diff(plan, domains, told)}
        if self.operation.IMAGES:
            found["images"] = images_result(domains)
        if self.operation.PER_DISK:
            found.update(disk_results=disk_results(plan, domains), quiesced=self.host.quiesced if self.done and plan.quiesces else plan.quiesces)
        return {**found, **_more(self.operation), **plan.facts, **self.host.facts}

    def _warn(self, warnings) -> None:
        for warning in warnings:
            self.module.warn(warning)

    def _job(self, plan: Plan, domains: tuple):
        running = [disk.job for domain in domains for disk in domain.disks if disk.job is not None and disk.target in plan.touched]
        return job_result(running[0]) if running else None

    def _diff(self, plan: Plan, after: tuple, told: Optional[str]) -> dict:
        """``told``: what is to be said beside the chains, where it is not as planned."""
        return {"before": diff_text(plan.before) + plan.told[0], "after": diff_text(after) + (plan.told[1] if told is None else told)}


def _more(operation) -> dict:
    """The keys that only this module returns, as long as nothing is known of them."""
    return dict(getattr(operation, "MORE", {}))


def _following(needs: Needs, plan: Plan) -> Needs:
    """Images by themselves are looked at where the plan puts them: a chain whose active layer was merged begins further down."""
    bare = [domain for domain in plan.after if domain.bare]
    if not bare:
        return needs
    active = [domain.disks[0].chain.active for domain in bare]
    keys = tuple(key if layer is None or layer.path is None else (layer.path, layer.format) for layer, key in zip(active, needs.bare))
    return replace(needs, bare=keys, names=tuple(domain.name for domain in bare))


def _ending(plan: Plan) -> LiveStorageError:
    """The failure in which a plan ends that could only keep a harm from growing."""
    error = VerifyFailed(*plan.failing)
    error.keep, error.stands = True, plan.stands
    return error


def _interrupt(number, frame) -> None:
    raise _Interrupted("The task was interrupted by the signal %d." % number)


def _interruption(error: BaseException) -> BaseException:
    """What libvirt's binding makes a SystemError of, where the signal came while it called our error handler."""
    return error.__cause__ if isinstance(error, SystemError) and isinstance(error.__cause__, _Interrupted) else error


def _on_signals(action) -> dict:
    """Handle the signals that end a run, but for those that are ignored already, as under nohup; what was there before."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    for number, handler in kept.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, action)
    return kept
