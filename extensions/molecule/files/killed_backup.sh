#!/bin/sh
# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# killed_backup.sh LAB HOST ARGUMENT...: runs ansible-playbook ARGUMENT..., and kills it and the copy on the lab host while it copies.
lab=$1 host=$2 tries=600
shift 2
ansible-playbook "$@" &
until "$lab" exec "$host" -- pgrep -x qemu-img -a | grep -q ' convert '; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || exit 1
    sleep 0.1
done
kill -KILL $!
"$lab" exec "$host" -- pkill -KILL -x qemu-img
wait $!
[ $? -eq 137 ]
