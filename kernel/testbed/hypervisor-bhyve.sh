# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# bhyve, on FreeBSD as root: LANs are bridges without an address of this machine; management is a bridge that has
# one. The way out for packages is the administrator's to give (pf's nat), or packages and src bring them.

hv_check() {
	need bhyve "it is part of FreeBSD (amd64 with VT-x and EPT, or AMD-V)"
	need bhyvectl "it is part of FreeBSD"
	if [ "$DRY_RUN" = no ]; then
		[ "$(id -u)" -eq 0 ] || die "bhyve needs root"
		[ -r "$cfg_bhyve_firmware" ] || die "$cfg_bhyve_firmware: not there: pkg install edk2-bhyve"
	fi
}

hv_management() {
	SSH_ADDRESS=$cfg_bhyve_prefix.$((10 + $(host_number "$1")))
	SSH_PORT=22
	GUEST_ADDRESS=$SSH_ADDRESS/24
	GUEST_GATEWAY=$cfg_bhyve_prefix.1
}

# Names of interfaces have at most 15 characters: no prefix of any length.
bridge() { # LAN (0: management)
	echo "l4sbr$1"
}

# bhyve knows a tap by its name, so they are not renamed: machine and LAN are in the number.
tap() { # MACHINE LAN
	echo "tap20$(host_number "$1")$2"
}

hv_networks() {
	run kldload -n vmm if_bridge if_tuntap nmdm
	run sysctl net.link.tap.up_on_open=1
	for lan in 0 1 3 5; do
		probe ifconfig "$(bridge "$lan")" || run ifconfig bridge create name "$(bridge "$lan")"
		run ifconfig "$(bridge "$lan")" up
	done
	run ifconfig "$(bridge 0)" inet "$cfg_bhyve_prefix.1/24"
	for host in $HOSTS; do
		for lan in 0 $(host_lans "$host"); do
			lan=${lan%%:*}
			probe ifconfig "$(tap "$host" "$lan")" && continue
			run ifconfig "$(tap "$host" "$lan")" create
			run ifconfig "$(bridge "$lan")" addm "$(tap "$host" "$lan")"
		done
	done
}

hv_networks_destroy() {
	for host in $HOSTS; do
		for lan in 0 $(host_lans "$host"); do
			run -m ifconfig "$(tap "$host" "${lan%%:*}")" destroy
		done
	done
	for lan in 0 1 3 5; do
		run -m ifconfig "$(bridge "$lan")" destroy
	done
}

hv_exists() {
	probe test -e "$VMS/$(vm "$1").raw"
}

hv_running() {
	probe test -e "/dev/vmm/$(vm "$1")"
}

hv_create() {
	name=$(vm "$1")
	run cp "$WORK/base.raw" "$VMS/$name.raw.part"
	run mv "$VMS/$name.raw.part" "$VMS/$name.raw"
}

hv_start() {
	name=$(vm "$1")
	# Bridges and taps do not outlive a restart of this machine.
	hv_networks
	set -- "$1" bhyve -A -H -P -c "$cfg_cpus" -m "${cfg_memory_mb}M" -s 0,hostbridge -s 1,lpc \
		-l "bootrom,$cfg_bhyve_firmware" -l "com1,/dev/nmdm_${name}A" -s "2,ahci-hd,$VMS/$name.raw" \
		-s "3,ahci-cd,$VMS/$name-seed.iso" -s "4,virtio-net,$(tap "$1" 0),mac=$(mac "$1" 0)"
	slot=5
	for lan in $(host_lans "$1"); do
		lan=${lan%%:*}
		set -- "$@" -s "$slot,virtio-net,$(tap "$1" "$lan"),mac=$(mac "$1" "$lan")"
		slot=$((slot + 1))
	done
	shift
	set -- "$@" "$name"
	# bhyve ends with 0 where the machine only restarts.
	run daemon -f -p "$VMS/$name.pid" sh -c "while $*; do bhyvectl --destroy --vm=$name; done; bhyvectl --destroy --vm=$name"
}

hv_wait_off() {
	run -w 90 test ! -e "/dev/vmm/$(vm "$1")"
}

hv_power_off() {
	run -m bhyvectl --force-poweroff --vm="$(vm "$1")"
}

hv_destroy() {
	run rm -f "$VMS/$(vm "$1").raw" "$VMS/$(vm "$1").raw.part" "$VMS/$(vm "$1").pid"
}
