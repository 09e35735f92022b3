# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Waits for the flows of one source, and looks at what they say.

for flow in $FLOWS; do
	name=${flow%%:*} left=$PATIENCE
	while pgrep -F "/var/run/l4s-$name.pid" >/dev/null 2>&1; do
		[ "$left" -gt 0 ] || { echo "flows: $name on $HOST does not end" >&2; exit 1; }
		left=$((left - 1))
		sleep 1
	done
	grep -q '"end"' "$FOLDER/$name.json" || { echo "flows: $FOLDER/$name.json on $HOST has no end" >&2; exit 1; }
	if grep '"error"' "$FOLDER/$name.json" >&2; then
		echo "flows: $name on $HOST failed, as above" >&2
		exit 1
	fi
done
if [ "$SIFTR" = yes ]; then sysctl net.inet.siftr.enabled=0; fi
