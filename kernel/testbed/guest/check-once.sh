# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# How often was each of so many packets in the queue?

count=$(ipfw -a list 100 | awk '{ print $2; exit }')
if [ "$AS_PUBLISHED" = yes ]; then
	# In and out, there and back; this ssh's own packets come on top.
	[ "$count" -ge $((4 * PACKETS)) ] || {
		echo "FAIL  router: $count matches for $PACKETS packets and their answers: expected $((4 * PACKETS)) or more"
		exit 1
	}
	echo "ok    router: $count matches for $PACKETS packets and their answers: four and more each, as published"
elif [ "$count" -eq "$PACKETS" ]; then
	echo "ok    router: $count matches for $PACKETS packets: each once, no answer"
else
	echo "FAIL  router: $count matches for $PACKETS packets: the rule must match on one way, in one direction"
	exit 1
fi
