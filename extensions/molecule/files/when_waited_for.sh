#!/bin/sh
# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# when_waited_for.sh COMMAND...: becomes COMMAND as soon as a job is looked at whose end is waited for.
tries=1200
until pgrep -f '[A]nsiballZ_block_job_info' >/dev/null; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || exit 1
    sleep 0.05
done
exec "$@"
