#!/bin/sh
# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# killed_push.sh LAB HOST TARGET ARGUMENT...: runs ansible-playbook ARGUMENT..., and kills it and its workers, which would go on without it, once QEMU
# has begun to write to TARGET on the lab host.
lab=$1 host=$2 target=$3
shift 3
ansible-playbook "$@" &
timeout 60 "$lab" exec "$host" -- sh -c "until test -s '$target'; do sleep 0.1; done" || exit 1
workers=$(pgrep -P $!)
# shellcheck disable=SC2086
kill -KILL $! $workers
wait $!
[ $? -eq 137 ]
