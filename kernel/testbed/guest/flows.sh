# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Starts the flows of one source, and comes back at once.

rm -rf "$FOLDER"
mkdir -p "$FOLDER"
if [ "$PURGE" = yes ]; then sysctl net.inet.tcp.hostcache.purgenow=1; fi
if [ "$SIFTR" = yes ]; then
	kldload -n siftr
	sysctl net.inet.siftr.logfile="$FOLDER/siftr-$HOST.log"
	sysctl net.inet.siftr.enabled=1
fi
for flow in $FLOWS; do # CONGESTION-CONTROL:PORT:CONNECTIONS
	name=${flow%%:*} port=${flow#*:} connections=${flow##*:}
	port=${port%:*} pid=/var/run/l4s-$name.pid
	# Left by a run that was interrupted.
	pkill -F "$pid" 2>/dev/null || true
	sysctl -n net.inet.tcp.cc.available | grep -qw "$name" || {
		echo "flows: this kernel has no $name: kldload cc_$name, or provision again" >&2
		exit 1
	}
	daemon -f -p "$pid" sh -c "sleep $BEGIN; exec iperf3 -c $SERVER -p $port -t $DURATION -P $connections -C $name \
		-J >$FOLDER/$name.json"
done
