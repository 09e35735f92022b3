# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# The router: module, scheduler and the one rule.

failed=0

verdict() { # STATUS WHAT REMEDY
	if [ "$1" -eq 0 ]; then
		echo "ok    router: $2"
	else
		echo "FAIL  router: $2: $3"
		failed=1
	fi
}

kldstat -q -n dn_sched_l4s.ko && status=0 || status=1
verdict "$status" "module dn_sched_l4s is loaded" "kldload dn_sched_l4s, before ipfw names its scheduler"
[ -c /dev/l4s ] && status=0 || status=1
verdict "$status" "/dev/l4s is there" "the module makes it"
ipfw sched show | grep -qi l4s && status=0 || status=1
verdict "$status" "scheduler 1 is l4s" "ipfw sched 1 config pipe 1 type l4s, after the module is loaded"
rules=$(ipfw list | grep -c ' queue ' || true)
[ "$rules" -eq 1 ] && status=0 || status=1
verdict "$status" "$rules rules lead into a queue" "must be one: ipfw list"
if [ "$AS_PUBLISHED" = no ]; then
	ipfw list 100 | grep -q " out xmit $BOTTLENECK\$" && status=0 || status=1
	verdict "$status" "rule 100 matches on the way out of $BOTTLENECK only" "else packets are shaped twice"
fi
exit "$failed"
