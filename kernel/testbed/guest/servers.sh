# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# An iperf3 for each flow. The client names the congestion control, and the server sets it too: with DCTCP it is the
# receiver's part to echo each mark.

for port in $PORTS; do
	if pgrep -F "/var/run/l4s-iperf3-$port.pid" >/dev/null 2>&1; then
		echo "already running: port $port"
	else
		daemon -f -r -P "/var/run/l4s-iperf3-$port.pid" iperf3 -s -p "$port"
	fi
done
