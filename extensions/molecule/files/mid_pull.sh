#!/bin/sh
# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# mid_pull.sh GUEST DISK COMMAND...: becomes COMMAND as soon as a block job runs on the disk.
guest=$1 disk=$2 tries=1200
shift 2
until [ -n "$(virsh --quiet blockjob "$guest" "$disk" --raw)" ]; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || exit 1
    sleep 0.05
done
exec "$@"
