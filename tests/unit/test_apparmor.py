# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What AppArmor's profiles let QEMU write to, and the way out where they do not.

``apparmor/bookworm`` is a host with a guest of three layers: the profile is Debian 12's, its .files what virt-aa-helper 9.0.0 wrote, and
some lines of the abstractions. ``apparmor/libvirt-12.8`` is what virt-aa-helper 12.8.0 wrote for the same guest.
Every verdict of ``COMPILED`` is that of the automaton which apparmor_parser 3.0.8 made of these rules, or 4.1.0 where one has a priority.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.apparmor import Confinement, included, left_out, loaded_mode, obstacle, writable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Observed
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.confinement import confinement
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE

PROFILE = "libvirt-11111111-2222-4333-8444-555555555555"
FOLDER = HERE / "apparmor"
ACTIVE, MIDDLE, BASE = "/srv/vm1/active.qcow2", "/srv/vm1/middle.qcow2", "/srv/template.qcow2"
DENIAL, ALLOWANCE = 'deny "%s" w,' % BASE, '"%s" rwk,' % BASE
OLD, NEW = (11, 3, 0), (12, 1, 0)
REMEDY = (
    "take that line out of /etc/apparmor.d/libvirt/%s.files, load the profile afresh (apparmor_parser -r /etc/apparmor.d/libvirt/%s) and run this task again; "
    "the guest stays confined and runs on." % (PROFILE, PROFILE)
)


def real(**changes) -> Confinement:
    return replace(confinement("apparmor", PROFILE, str(FOLDER / "bookworm")), **changes)


def written(folder) -> list:
    return [line.strip() for line in (folder / (PROFILE + ".files")).read_text(encoding="utf-8").splitlines()]


FILES = written(FOLDER / "bookworm" / "etc" / "apparmor.d" / "libvirt")


def with_files(lines, profile=()) -> Confinement:
    """The same host with other lines in the .files that libvirt writes, or further ones in the profile itself."""
    rules = real().rules
    start = rules.index(FILES[0])
    return real(rules=(*rules[:start], *lines, *rules[start + len(FILES) : -1], *profile, rules[-1]))


def of(*rules, mode="enforce", unreadable=(), profile="t") -> Confinement:
    return Confinement("apparmor", profile, mode, ("profile %s flags=(attach_disconnected, mediate_deleted) {" % profile, *rules, "}"), unreadable)


# A real host


@pytest.mark.parametrize(
    ("path", "may"),
    [
        (ACTIVE, True),
        (MIDDLE, False),
        (BASE, False),
        ("/srv/install.iso", False),
        ("/srv/other", False),
        ("/dev/kvm", True),
        ("/dev/pts/1", True),
        ("/dev/pts/x", False),
        ("/dev/fb0", False),  # in a comment
        ("/run/shmpulse-shm-1", True),
        ("/run/qemu/a/b.so", False),
        ("/run/libvirt/qemu/vm1.pid", True),
        ("/var/lib/libvirt/qemu/domain-3-vm1/monitor.sock", True),
        ("/var/lib/libvirt/qemu/domain-3-vm1/", False),
        # A variable, and rules for the owner.
        ("/home/me/.pulse-cookie", None),
        ("/proc/1/task/2/comm", None),
        ("/var/lib/libvirt/qemu/nvram/vm1_VARS.fd", None),
    ],
)
def test_what_a_real_profile_lets_qemu_write_to(path, may):
    assert writable(real(), path) is may


def test_the_sentence_names_the_rule_the_file_and_the_command():
    why = "AppArmor forbids QEMU to write to %s (the rule %s of the profile %s wins over every rule that allows it; " % (BASE, DENIAL, PROFILE)
    assert obstacle(real(), OLD, BASE) == why + "libvirt before 12.1 makes it anew after each commit): " + REMEDY
    assert obstacle(real(), None, BASE) == obstacle(real(), OLD, BASE)
    assert obstacle(real(), OLD, ACTIVE) is None


def test_a_rule_of_an_older_libvirt_stays_until_it_is_taken_out():
    """virt-aa-helper only adds its line when a commit starts: what the guest was started with stays before it."""
    said = obstacle(real(), NEW, BASE)
    assert "; a libvirt before 12.1 has left it there): " in said and said.endswith(REMEDY)


@pytest.mark.parametrize(
    ("lines", "profile", "hinders"),
    [
        (FILES, (), True),
        # What libvirt does when a commit starts, and what an administrator's own rule could do.
        (FILES + [ALLOWANCE], (), True),
        (FILES, (ALLOWANCE,), True),
        # What the sentence says, and what libvirt adds to it then.
        ([line for line in FILES if line != DENIAL], (), False),
        ([line for line in FILES if line != DENIAL] + [ALLOWANCE], (), False),
        # It is no longer there, but for another layer.
        ([line for line in FILES if line != DENIAL.replace(BASE, MIDDLE)], (), True),
        # Read by AppArmor from 4.1 on.
        (FILES, ("priority=1 " + ALLOWANCE,), False),
        (FILES, ("priority=-1 " + ALLOWANCE,), True),
    ],
)
def test_what_takes_the_obstacle_away(lines, profile, hinders):
    found = with_files(lines, profile)
    assert (obstacle(found, OLD, BASE) is not None) == hinders
    assert writable(found, ACTIVE) is True


def test_no_libvirt_from_12_1_on_is_hindered():
    found = with_files(written(FOLDER / "libvirt-12.8"))
    assert [writable(found, path) for path in (ACTIVE, MIDDLE, BASE)] == [True, False, False]
    assert [obstacle(found, version, BASE) for version in (None, OLD, NEW)] == [None] * 3


@pytest.mark.parametrize(
    ("mode", "may", "hinders"),
    # In complain mode, too, the kernel enforces the rules that deny.
    [("enforce", False, True), ("complain", False, True), (None, False, True), ("unconfined", True, False)],
)
def test_the_modes_of_a_profile(mode, may, hinders):
    found = real(mode=mode)
    assert writable(found, BASE) is may and (obstacle(found, OLD, BASE) is not None) == hinders
    assert writable(found, "/srv/other") is (mode in ("complain", "unconfined"))


def test_another_model_is_no_obstacle_here():
    assert obstacle(Confinement("selinux", "system_u:system_r:svirt_t:s0:c1,c2"), OLD, BASE) is None
    assert obstacle(Confinement("apparmor", PROFILE), OLD, BASE) is None  # nothing could be read


def test_a_rule_that_an_administrator_wrote_is_his_to_narrow():
    said = obstacle(with_files([ALLOWANCE], ["audit deny /srv/** rw,"]), OLD, BASE)
    assert "the rule audit deny /srv/** rw, of the profile %s" % PROFILE in said and "12.1" not in said
    assert "): narrow that rule, in the file of that profile or in one that it includes, load" in said and said.endswith(REMEDY.partition("load")[2])


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["/srv/** r,"], "(no rule of the profile mine allows it, and that is not one of libvirt's own): add the rule %s to that profile, load" % ALLOWANCE),
        (["/srv/** rw,", DENIAL], "): narrow that rule,"),
        (["/srv/** rw,"], None),
        (["@{HOME}/** rw,"], None),
    ],
)
def test_a_profile_that_libvirt_does_not_manage(rules, said):
    """libvirt adds nothing to a label that its administrator chose."""
    found = obstacle(of(*rules, profile="mine"), OLD, BASE)
    if said is None:
        assert found is None
    else:
        assert said in found and found.endswith("(apparmor_parser -r and its file) and run this task again; the guest stays confined and runs on.")


# The label of a guest

GUEST = "<domain type='kvm'><name>vm1</name><uuid>u1</uuid><devices/>%s</domain>"
DAC = "<seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label><imagelabel>+64055:+64055</imagelabel></seclabel>"
LABELLED = "<seclabel type='dynamic' model='apparmor' relabel='yes'>\n <label>%s</label>\n <imagelabel>%s</imagelabel>\n</seclabel>" % (PROFILE, PROFILE)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("", ()),
        (LABELLED + DAC, (("apparmor", PROFILE), ("dac", "+64055:+64055"))),
        ("<seclabel type='static' model='apparmor' relabel='no'><label>\n  mine\n</label></seclabel>", (("apparmor", "mine"),)),
        # Of a guest that is off, and of one that is not confined.
        ("<seclabel type='dynamic' model='apparmor' relabel='yes'/>", ()),
        ("<seclabel type='none' model='apparmor'/><seclabel type='none'/>", ()),
        ("<devices><disk><source file='/a'><seclabel model='apparmor'><label>x</label></seclabel></source></disk></devices>", ()),
    ],
)
def test_the_labels_that_a_guest_runs_under(labels, expected):
    assert parse_domain(GUEST % labels, True).seclabels == expected


def test_a_label_makes_no_other_guest():
    one, other = (parse_domain(GUEST % labels, True) for labels in (LABELLED, DAC))
    assert one == other and one.seclabels != other.seclabels
    assert Observed((one,), confinement={"u1": real()}).identity == Observed((other,)).identity


# AppArmor's language

COMPILED = [
    # Who wins.
    ("/a/b rw,", "/a/b", True),
    ("/a/b r,", "/a/b", False),
    ("/a/b a,", "/a/b", False),
    ("/a/b rw, deny /a/b w,", "/a/b", False),
    ("deny /a/b wk, /a/b rwk,", "/a/b", False),
    ("deny /a/b r, /a/b rwk,", "/a/b", True),
    ("deny /a/b x, /a/b rwk,", "/a/b", True),
    ("audit deny file w /a/b, /a/b w,", "/a/b", False),
    ("audit allow /a/b w,", "/a/b", True),
    ("/a/** rw, deny /a/b/ w,", "/a/b", True),
    ("/a/** rw, deny /a/b/ w,", "/a/b/", False),
    # The forms of a rule.
    ("w /a/b,", "/a/b", True),
    ("file rw /a/b,", "/a/b", True),
    ("file /a/b rw,", "/a/b", True),
    ("file,", "/a/b", True),
    ("/a/b rw -> other,", "/a/b", True),
    ("/a/b rwix,", "/a/b", True),
    ("link /a/b -> /c,", "/a/b", False),
    ("/a/b l -> /c,", "/a/b", False),
    ("/a/b w,/a/c w,", "/a/c", True),
    ("/a/b\nw,", "/a/b", True),
    ("/a/b w, # deny /a/b w,", "/a/b", True),
    ("/a/b#c w,", "/a/b#c", True),
    ('"/a/b c" w,', "/a/b c", True),
    ("/a/b\\ c w,", "/a/b c", True),
    ("/a/b,c w,", "/a/b,c", True),
    ("network inet stream, /a/b w,", "/a/b", True),
    ("unix (send, receive) type=stream peer=(label=x), /a/b w,", "/a/b", True),
    # The patterns.
    ("/a/* w,", "/a/b", True),
    ("/a/* w,", "/a/", False),
    ("/a/* w,", "/a/b/c", False),
    ("/a* w,", "/a", True),
    ("/a/*/c w,", "/a/b/c", True),
    ("/a/*/c w,", "/a/b/d/c", False),
    ("/a/** w,", "/a/b/c", True),
    ("/a/** w,", "/a/", False),
    ("/a** w,", "/a", True),
    ("/a/**/c w,", "/a/b/d/c", True),
    ("/a/**/c w,", "/a/c", False),
    ("/a/**c w,", "/a/c", True),
    ("/a/x?y w,", "/a/xay", True),
    ("/a/x?y w,", "/a/x/y", False),
    ("/a/x?y w,", "/a/xéy", False),  # two bytes
    ("/a/[b-d]e w,", "/a/ce", True),
    ("/a/[b-d]e w,", "/a/ae", False),
    ("/a/[^b]e w,", "/a/ce", True),
    ("/a/[^b]e w,", "/a/be", False),
    ("/a[^b]c w,", "/a/c", True),
    ("/a/{b,c}d w,", "/a/cd", True),
    ("/a/{,b}d w,", "/a/d", True),
    ("/a/{b{1,2},c} w,", "/a/b2", True),
    ("/a/{b{1,2},c} w,", "/a/b", False),
    ("/a/b\\*c w,", "/a/b*c", True),
    ("/a/b\\*c w,", "/a/bxc", False),
    ('"/a/b\\"c" w,', '/a/b"c', True),
    ("/a/b\\053c w,", "/a/b+c", True),
    ("/a/b\\tc w,", "/a/b\tc", True),
    ("/a/+($.)| w,", "/a/+($.)|", True),
    ("/a/b^c w,", "/a/b^c", True),
    ("/a//b w,", "/a/b", True),
    ("//a w,", "/a", False),
    # Other profiles in the same braces.
    ("^hat { /a/b w, } /a/c r,", "/a/b", False),
    ("profile child { /a/b w, } /a/c r,", "/a/b", False),
    ("profile child { deny /a/b w, } /a/b w,", "/a/b", True),
    # Priorities: of the rules that speak of writing, those of the highest one decide.
    ("priority=1 /a/b rwk, deny /a/b w,", "/a/b", True),
    ("priority=1 /a/b rk, /a/b rwk,", "/a/b", True),
    ("priority=-1 deny /a/b w, /a/b rw,", "/a/b", True),
    ("priority=2 deny /a/b w, priority=1 /a/b rw,", "/a/b", False),
    ("all,", "/a/b", True),
]


@pytest.mark.parametrize(("rules", "path", "may"), COMPILED)
def test_the_language_is_understood_as_apparmor_understands_it(rules, path, may):
    assert writable(of(rules), path) is may


@pytest.mark.parametrize(
    ("rules", "path"),
    [
        ("owner /a/b rw,", "/a/b"),
        ("deny owner /a/b w, /a/b rw,", "/a/b"),
        ("@{HOME}/b rw,", "/a/b"),
        ("/a/@{x} rw,", "/a/b"),
        ("deny @{HOME}/** w, /a/b rw,", "/a/b"),
        ("owner { /a/b w, }", "/a/b"),
        # AppArmor 4.1 takes it for a rule that allows.
        ("audit { deny /a/b w, } /a/b w,", "/a/b"),
        ("if ${x} { deny /a/b w, } /a/b w,", "/a/b"),
        # What no parser takes, or each in its way.
        ("/a/[b*]c w,", "/a/bc"),
        ("/a/{b w,", "/a/b"),
        ("/a/[z-a] w,", "/a/b"),
        ("/a/\\x62 w,", "/a/b"),
    ],
)
def test_what_cannot_be_known_is_left_open(rules, path):
    assert writable(of(rules), path) is None and obstacle(of(rules, profile=PROFILE), OLD, path) is None


@pytest.mark.parametrize(("rules", "path"), [("@{HOME}/b rw,", "/a/c"), ("owner /a/b rw,", "/a/c"), ("/a/[b*]c w,", "/c")])
def test_what_cannot_concern_a_path_leaves_nothing_open(rules, path):
    assert writable(of(rules), path) is False


def test_a_file_that_cannot_be_read_leaves_it_open_but_for_what_is_denied():
    for rules, may in (("/a/b w,", None), ("/a/c w,", None), ("deny /a/b w,", False)):
        assert writable(of(rules, unreadable=("/x",)), "/a/b") is may
    assert writable(of("/a/c w,", mode="complain", unreadable=("/x",)), "/a/b") is None


@pytest.mark.parametrize(
    ("lines", "may"),
    [
        (["profile other {", "/a/b w,", "}"], None),
        ([], None),
        (["profile other { /a/b w, }", "profile t { /a/c w, }"], False),
        (["profile t { /a/c w, }", "profile other { /a/b w, }"], False),
        (['profile "t" { /a/b w, }'], True),
        (["@{x} = {a,b}", "$y = {", "profile t /usr/bin/t { /a/b w, }"], None),  # what no parser takes
        (["@{x} = {a,b}", "@{x} += {c,{d,e}}", "${y}=true", "abi <abi/3.0>,", "alias / -> /mnt/,", "profile t /usr/bin/t { /a/b w, }"], True),
    ],
)
def test_only_the_profile_itself_counts(lines, may):
    assert writable(Confinement("apparmor", "t", "enforce", tuple(lines)), "/a/b") is may


def test_a_profile_that_is_called_by_its_program():
    found = Confinement("apparmor", "/usr/bin/kvm", "enforce", ("/usr/bin/kvm flags=(complain) {", "/a/b w,", "}"))
    assert writable(found, "/a/b") is True


# Its files


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  #include <abstractions/libvirt-qemu>", ("abstractions/libvirt-qemu", True, False)),
        ("include <tunables/global>", ("tunables/global", True, False)),
        ("  include if exists <abstractions/libvirt-qemu.d>", ("abstractions/libvirt-qemu.d", True, True)),
        ("  #include if exists <libvirt/libvirt-1.files>", ("libvirt/libvirt-1.files", True, True)),
        ('include "/etc/mine"', ("/etc/mine", False, False)),
        ("#include /etc/mine", ("/etc/mine", False, False)),
        ("  # include <tunables/global>", None),
        ("  # includes", None),
        ("/include/x r,", None),
        ("included <x>", None),
    ],
)
def test_the_lines_that_include(line, expected):
    found = included(line)
    assert (found if found is None else tuple(found)) == expected


@pytest.mark.parametrize(
    ("name", "left"),
    [("site.local", False), ("x.dpkg-old", True), ("x~", True), (".x.swp", True), ("README", True), ("mine.rpmnew", True), ("my-readme", False)],
)
def test_the_files_of_a_directory_that_apparmor_passes_over(name, left):
    assert left_out(name) is left


@pytest.mark.parametrize(
    ("listing", "mode"),
    [
        ("libvirtd (enforce)\nlibvirt-1 (enforce)\n", "enforce"),
        ("libvirt-1 (complain)\n", "complain"),
        ("libvirt-1 (kill)\n", "enforce"),
        ("libvirt-1 (unconfined)\n", "unconfined"),
        ("libvirt-1 (something new)\n", None),
        ("libvirt-11 (enforce)\n", "unconfined"),
        ("a libvirt-1 (enforce)\n", "unconfined"),
        ("", "unconfined"),
    ],
)
def test_the_mode_in_which_the_kernel_has_a_profile(listing, mode):
    assert loaded_mode(listing, "libvirt-1") == mode
