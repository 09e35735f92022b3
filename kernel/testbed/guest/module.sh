# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# The scheduler's module and the daemon, on the router.

cd /var/l4s/src || exit
if [ -n "$MODULE" ]; then
	install -m 0555 "$MODULE" /boot/modules/dn_sched_l4s.ko
else
	if [ ! -d /usr/src/sys ]; then
		[ -n "$SOURCES" ] || {
			echo "module: no /usr/src/sys here: set src to the src.txz of release $(uname -r)" >&2
			exit 1
		}
		tar -C / -xf "$SOURCES" '*usr/src/sys/*'
	fi
	sources=$(awk '$2 == "__FreeBSD_version" { print $3; exit }' /usr/src/sys/sys/param.h)
	[ "$sources" = "$(uname -K)" ] || {
		echo "module: /usr/src is of $sources, the kernel of $(uname -K): set src to that of $(uname -r)" >&2
		exit 1
	}
	make -C freebsd all install KMODDIR=/boot/modules
fi
kldxref /boot/modules
cc -std=c11 -O2 -Icore -Ibridge -o l4s-bridged bridge/*.c
install -m 0555 l4s-bridged /usr/local/sbin/l4s-bridged
