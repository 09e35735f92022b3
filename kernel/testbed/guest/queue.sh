# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# The bottleneck, made anew: empty queues, a control law without memory. queue_rules (topology.sh) follows.

kldload -n ipfw dummynet
kldload -n dn_sched_l4s
for parameter in $L4S_SYSCTLS; do
	sysctl "net.inet.ip.dummynet.l4s.$parameter"
done
# Idle queues keep their state; a packet that leaves the queue does not go through the rules again.
sysctl net.inet.ip.dummynet.expire=0 net.inet.ip.fw.one_pass=1
ipfw -q -f flush
ipfw -q -f pipe flush
