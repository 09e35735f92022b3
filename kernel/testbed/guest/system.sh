# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Names, addresses, routes, boot settings of one machine. Restarts it where something had to be changed.

mkdir -p /var/l4s/src /var/l4s/results
changed=no

want_rc() { # NAME VALUE
	[ "$(sysrc -qn "$1" 2>/dev/null || true)" = "$2" ] && return
	sysrc "$1=$2"
	changed=yes
}

want_line() { # FILE KEY VALUE
	touch "$1"
	grep -Fqx "$2=$3" "$1" && return
	awk -v key="$2=" 'index($0, key) != 1' "$1" >"$1.l4s"
	echo "$2=$3" >>"$1.l4s"
	cat "$1.l4s" >"$1"
	rm "$1.l4s"
	changed=yes
}

for lan in $LANS; do # NUMBER/ADDRESS/MAC
	number=${lan%%/*} address=${lan#*/} hardware=${lan##*/}
	address=${address%/*} interface=
	for each in $(ifconfig -l ether); do
		if ifconfig "$each" ether | grep -qi "$hardware"; then interface=$each; fi
	done
	[ -n "$interface" ] || { echo "system: no interface has $hardware" >&2; exit 1; }
	[ "$interface" = "lan$number" ] || want_rc "ifconfig_${interface}_name" "lan$number"
	# With offloads on, the queue would see packets of up to 64 KiB instead of those of the wire.
	want_rc "ifconfig_lan$number" "inet $address/24 -tso -lro -txcsum -rxcsum"
done
names=
for route in $ROUTES; do # NETWORK:GATEWAY
	name=l4s$(echo "${route%%/*}" | tr -d .)
	names="$names${names:+ }$name"
	want_rc "route_$name" "-net ${route%:*} ${route##*:}"
done
want_rc static_routes "$names"
want_rc gateway_enable "$FORWARD"

want_line /boot/loader.conf kern.hz "\"$HZ\""
# Else loading ipfw locks everybody out, this script too.
want_line /boot/loader.conf net.inet.ip.fw.default_to_accept '"1"'
want_line /boot/loader.conf cc_newreno_load '"YES"'
want_line /boot/loader.conf cc_dctcp_load '"YES"'
want_line /etc/sysctl.conf net.inet.tcp.ecn.enable 1
want_line /etc/sysctl.conf net.inet.tcp.cc.dctcp.ect1 "$ECT1"

if [ "$changed" = no ]; then
	echo "already as it should be"
else
	kenv l4s_restarts=1 # see booted.sh
	shutdown -r now
fi
