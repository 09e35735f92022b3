# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# What the router records of a run. The kernel's lines get a file of their own: /var/log/messages is rotated and
# packed at a megabyte, which is some seconds of them.

lines=/var/log/l4s-kernel.log
if [ "$ACTION" = start ]; then
	rm -rf "$FOLDER"
	mkdir -p "$FOLDER"
	if [ "$LOGS" != binary ]; then
		mkdir -p /etc/syslog.d
		echo "kern.*	$lines" >/etc/syslog.d/l4s.conf
		: >"$lines"
		service syslogd restart
		sysctl "$LOG_SYSCTL=1"
	fi
	if [ "$TCPDUMP" = yes ]; then
		daemon -f -p /var/run/l4s-tcpdump.pid tcpdump -i "$BOTTLENECK" -s 96 -w "$FOLDER/$BOTTLENECK.pcap"
	fi
else
	if [ "$LOGS" != binary ]; then
		sysctl "$LOG_SYSCTL=0"
		sleep 1
		cp "$lines" "$FOLDER/messages"
	fi
	pkill -F /var/run/l4s-tcpdump.pid 2>/dev/null || true
	{
		ipfw -a list
		ipfw pipe show
		ipfw sched show
		ipfw queue show
	} >"$FOLDER/ipfw.txt"
	sysctl kern.version kern.hz net.inet.ip.dummynet >"$FOLDER/sysctl.txt"
fi
