# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# iperf3: from the folder that was brought, or from the network.

if command -v iperf3 >/dev/null; then
	echo "already there: iperf3"
elif [ -n "$PACKAGES" ]; then
	pkg add /var/l4s/src/"$PACKAGES"/*.pkg
else
	env ASSUME_ALWAYS_YES=yes pkg install -y iperf3
fi
