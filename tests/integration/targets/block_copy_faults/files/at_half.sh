#!/bin/sh
# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# at_half.sh GUEST COMMAND: runs the command once half of the job on the guest's disk vda is done.
until virsh blockjob "$1" vda --raw | awk -F= '/ cur=/ {cur = $2} / end=/ {end = $2} END {exit !(end > 0 && 2 * cur >= end)}'; do
    sleep 0.1
done
eval "$2"
