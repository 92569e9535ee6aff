# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The profile of a guest as it is read from the kernel and from files, on real trees of files."""

from __future__ import annotations

import os

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.apparmor import Confinement, writable
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import confinement as edge
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.confinement import confinement
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE

BOOKWORM = HERE / "apparmor" / "bookworm"
PROFILE = "libvirt-11111111-2222-4333-8444-555555555555"


@pytest.fixture(name="host")
def _host(tmp_path):
    """A host whose guest has a profile with one rule and these lines, and what else there is below /etc/apparmor.d."""

    def host(*lines, **files):
        policy = tmp_path / "etc" / "apparmor.d"
        (policy / "libvirt").mkdir(parents=True)
        (policy / "libvirt" / "libvirt-1").write_text("\n".join(["profile libvirt-1 {", *lines, "  /last w,", "}"]))
        for name, text in files.items():
            path = policy / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return host


def rules(root, label="libvirt-1") -> list:
    """The lines between the first and the last two of the profile, and the names of what could not be read."""
    found = confinement("apparmor", label, str(root))
    assert found.rules[:1] + found.rules[-2:] == ("profile libvirt-1 {", "/last w,", "}")
    return [list(found.rules[1:-2]), [os.path.relpath(path, root / "etc" / "apparmor.d") for path in found.unreadable]]


def test_a_real_host():
    found = confinement("apparmor", PROFILE, str(BOOKWORM))
    assert (found.model, found.profile, found.mode, found.unreadable) == ("apparmor", PROFILE, "enforce", ())
    # The values of its variables, the console's rules, QEMU's, and those that libvirt wrote, in this order.
    order = ["@{HOMEDIRS}=/home/", "profile %s flags=(attach_disconnected) {" % PROFILE, "/dev/console rw,", "/dev/kvm rw,", '"/srv/template.qcow2" rk,', "}"]
    places = [found.rules.index(line) for line in order]
    assert places == sorted(places) and places[-1] == len(found.rules) - 1
    assert not any(line.startswith(("#include", "include")) for line in found.rules)


def test_another_model_reads_nothing(monkeypatch):
    monkeypatch.setattr(edge, "_Policy", None)
    assert confinement("selinux", "a:b:c") == Confinement("selinux", "a:b:c")


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        (["#include <a/b>"], {"a__b": "/x r,\n\n  /y r,\n"}, [["/x r,", "/y r,"], []]),
        (["include <a>"], {"a__2": "/2 r,", "a__1": "/1 r,", "a__1.dpkg-old": "/old r,", "a__README": "/no r,"}, [["/1 r,", "/2 r,"], []]),
        (["include <a>"], {"a": "/1 r,\ninclude <b>\n/3 r,", "b": "/2 r,"}, [["/1 r,", "/2 r,", "/3 r,"], []]),
        (["include if exists <none>", "/x r,"], {}, [["/x r,"], []]),
        (["include <none>", "/x r,"], {}, [["/x r,"], ["none"]]),
        (["# include <none>"], {}, [["# include <none>"], []]),
        (['include "/etc/apparmor.d/a"'], {"a": "/1 r,"}, [["/1 r,"], []]),
        (["/x r,\udcff"], {}, None),
    ],
)
def test_what_is_included_stands_in_its_place(host, lines, files, expected):
    if expected is None:
        root = host()
        (root / "etc" / "apparmor.d" / "libvirt" / "libvirt-1").write_bytes(b"profile libvirt-1 {\n/x\xff r,\n/last w,\n}\n")
        expected = [["/x\ufffd r,"], []]
    else:
        root = host(*lines, **files)
    assert rules(root) == expected


def test_a_path_beside_the_policy_is_read_below_the_root(host, tmp_path):
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "mine").write_text("/mine rw,")
    assert rules(host('#include "/opt/mine"')) == [["/mine rw,"], []]


def test_a_circle_ends(host):
    found, unreadable = rules(host("include <a>", a="/a r,\ninclude <b>", b="/b r,\ninclude <a>"))
    assert set(found) == {"/a r,", "/b r,"} and len(found) <= edge.DEEPEST and unreadable in (["a"], ["b"])


def test_a_wide_circle_ends(host):
    """Each doubles what is to be read."""
    assert rules(host("include <a>", a="include <a>\n" * 50)) == [[], ["a"]]


def test_a_directory_in_a_directory_is_passed_over(host):
    root = host("include <d>", d__a="/a r,", d__e__b="/b r,")
    os.symlink(".", root / "etc" / "apparmor.d" / "d" / "loop")
    os.mkfifo(root / "etc" / "apparmor.d" / "d" / "fifo")
    assert rules(root) == [["/a r,"], []]


def test_too_much_is_left_out_and_named(host, monkeypatch):
    monkeypatch.setattr(edge, "MOST_BYTES", 200)
    found, unreadable = rules(host("include <a>", "include <b>", a="/a r,\n" * 10, b="/b r,\n" * 40))
    assert found == ["/a r,"] * 10 and unreadable == ["b"]


def test_what_is_no_file_is_not_waited_for(host):
    root = host("include <fifo>", "include <broken>", "include <gone>")
    os.mkfifo(root / "etc" / "apparmor.d" / "fifo")
    os.symlink("nowhere", root / "etc" / "apparmor.d" / "broken")
    assert rules(root) == [[], ["fifo", "broken", "gone"]]


def test_what_may_not_be_read_is_named(host, monkeypatch):
    real, listed = os.open, os.listdir

    def refuse(path, flags, *more):
        if str(path).endswith("/secret"):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *more)

    def hide(path):
        if str(path).endswith("/hidden"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(edge.os, "open", refuse)
    monkeypatch.setattr(edge.os, "listdir", hide)
    assert rules(host("include <secret>", "include <hidden>", "/x r,", secret="/s r,", hidden__a="/h r,")) == [["/x r,"], ["secret", "hidden"]]


@pytest.mark.parametrize("label", ["libvirt-2", "../libvirt/libvirt-1", "", ".", "/usr/bin/kvm", "libvirt-1//child", "a b", "x\n", "\0"])
def test_a_label_without_a_file_of_its_name(host, label):
    found = confinement("apparmor", label, str(host()))
    assert found.rules == () and len(found.unreadable) == 1 and writable(found, "/last") is None


def test_a_profile_that_is_none_of_libvirts(host):
    root = host(mine="profile mine {\n/mine w,\n}")
    assert writable(confinement("apparmor", "mine", str(root)), "/mine") is True


@pytest.mark.parametrize(
    ("listing", "mode"), [(None, None), ("", "unconfined"), ("libvirt-1 (complain)\nlibvirtd (enforce)\n", "complain"), ("libvirtd (enforce)\n", "unconfined")]
)
def test_the_mode_is_the_kernels(host, listing, mode):
    root = host()
    if listing is not None:
        folder = root / "sys" / "kernel" / "security" / "apparmor"
        folder.mkdir(parents=True)
        (folder / "profiles").write_text(listing)
    assert confinement("apparmor", "libvirt-1", str(root)).mode == mode
