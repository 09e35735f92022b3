# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Has the machine come back from its restart? The kernel's environment does not outlive one.

[ ! -e /firstboot ]
if kenv -q l4s_restarts >/dev/null 2>&1; then exit 1; fi
