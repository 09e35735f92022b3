# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# One machine: is it what it should be?

failed=0

verdict() { # STATUS WHAT REMEDY
	if [ "$1" -eq 0 ]; then
		echo "ok    $HOST: $2"
	else
		echo "FAIL  $HOST: $2: $3"
		failed=1
	fi
}

equal() { # SYSCTL VALUE REMEDY
	value=$(sysctl -n "$1" 2>/dev/null || echo missing)
	[ "$value" = "$2" ] && status=0 || status=1
	verdict "$status" "$1 is $value" "must be $2: $3"
}

equal kern.hz "$HZ" "provision again"
equal net.inet.ip.forwarding "$FORWARD" "sysrc gateway_enable, and restart"
equal net.inet.tcp.ecn.enable 1 "else TCP negotiates no ECN, and there is nothing to mark"
equal net.inet.tcp.cc.dctcp.ect1 "$ECT1" "else nothing, or too much, is in ECT(1)"
for lan in $LANS; do # NUMBER:ADDRESS
	name=lan${lan%%:*}
	ifconfig "$name" 2>/dev/null | grep -q "inet ${lan#*:} " && status=0 || status=1
	verdict "$status" "$name has ${lan#*:}" "provision again"
	# shellcheck disable=SC2016 # the $ is grep's
	on=$(ifconfig "$name" 2>/dev/null | grep -m 1 'options=' | grep -Eo 'TSO4|TSO6|LRO|[RT]XCSUM(_IPV6)?' |
		grep -v IPV6 | tr '\n' ' ' || true)
	[ -z "$on" ] && status=0 || status=1
	verdict "$status" "$name offloads on: ${on:-none}" "ifconfig $name -tso -lro -txcsum -rxcsum"
done
exit "$failed"
