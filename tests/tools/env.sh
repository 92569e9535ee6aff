# shellcheck shell=bash disable=SC2034
# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Paths and the environment of every run, to be sourced. What runs as root gets a tree and a home of its own, so that
# none of its files stands in the way of the next run by the checkout's owner.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
BUILD=$ROOT/build
VENV=$BUILD/venv
LOGS=$BUILD/log

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -- "$@"; fi; }

# use_work DIR: DIR/tree is the collection path and DIR/home the home of all that follows.
use_work() {
    local name
    TREE=$1/tree/ansible_collections/livestorage/libvirt
    for name in "${!ANSIBLE_@}" "${!MOLECULE_@}" "${!PYTHON@}"; do unset "$name"; done
    # A caller's pip settings must outlive the change of home.
    export PIP_CONFIG_FILE=${PIP_CONFIG_FILE:-$HOME/.config/pip/pip.conf}
    export HOME=$1/home ANSIBLE_HOME=$1/home/.ansible ANSIBLE_COLLECTIONS_PATH=$1/tree
    # The local connection would expand the default's ~root from passwd.
    export ANSIBLE_REMOTE_TMP=$1/home/.ansible/tmp
    export PATH=$VENV/bin:$BUILD/pythons:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    export LAB_BASE=${LAB_BASE:-$BUILD/lab} LC_ALL=C.UTF-8 NO_COLOR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    umask 022
    mkdir -p "$HOME"
}
