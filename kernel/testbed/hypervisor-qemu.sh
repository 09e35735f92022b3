# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# QEMU, without root: each LAN is a cable between two machines (two UDP ports of 127.0.0.1); management is user-mode
# networking with a port of 127.0.0.1 forwarded to ssh. KVM where this machine has it, else emulation, which is too
# slow for results.

hv_check() {
	need "$cfg_qemu" "install QEMU (Debian: apt-get install qemu-system-x86 qemu-utils), or set qemu to its name"
	need qemu-img "install QEMU's tools (Debian: apt-get install qemu-utils)"
	[ "$DRY_RUN" = yes ] || [ -w /dev/kvm ] || say "no access to /dev/kvm: emulated machines are too slow for results"
}

hv_management() {
	SSH_ADDRESS=127.0.0.1
	SSH_PORT=$((cfg_ssh_port + $(host_number "$1") - 1))
	GUEST_ADDRESS=DHCP
	GUEST_GATEWAY=
}

hv_networks() {
	say "QEMU's links between the machines come and go with them"
}

hv_networks_destroy() {
	say "no networks to remove"
}

hv_exists() {
	probe test -e "$VMS/$(vm "$1").qcow2"
}

# A number in a file may by now be another program's.
alive() { # MACHINE
	echo "ps -o args= -p \"\$(cat '$VMS/$(vm "$1").pid')\" | grep -Fq -e '-name $(vm "$1") -machine'"
}

hv_running() {
	probe sh -c "$(alive "$1")"
}

hv_create() {
	name=$(vm "$1")
	# An overlay: what is written goes there, the base stays as it is.
	run qemu-img create -q -f qcow2 -F raw -b "$WORK/base.raw" "$VMS/$name.qcow2.part"
	run mv "$VMS/$name.qcow2.part" "$VMS/$name.qcow2"
}

# A port for each end of a LAN's cable.
cable_end() { # MACHINE LAN
	end=$((cfg_udp_port + $2 - 1))
	[ "$1" != "$ROUTER" ] || end=$((end + 1))
	echo "$end"
}

hv_start() {
	name=$(vm "$1")
	hv_management "$1"
	set -- "$1" "$cfg_qemu" -name "$name" -machine q35 -accel kvm -accel tcg -cpu max -m "$cfg_memory_mb" \
		-smp "$cfg_cpus" -drive "file=$VMS/$name.qcow2,if=virtio,format=qcow2" \
		-drive "file=$VMS/$name-seed.iso,media=cdrom,readonly=on,format=raw" \
		-netdev "user,id=mgmt,hostfwd=tcp:127.0.0.1:$SSH_PORT-:22" \
		-device "virtio-net-pci,netdev=mgmt,mac=$(mac "$1" 0)"
	for lan in $(host_lans "$1"); do
		lan=${lan%%:*}
		here=$(cable_end "$1" "$lan")
		there=$(cable_end "$(lan_peer "$1" "$lan")" "$lan")
		set -- "$@" -netdev "socket,id=lan$lan,udp=127.0.0.1:$there,localaddr=127.0.0.1:$here" \
			-device "virtio-net-pci,netdev=lan$lan,mac=$(mac "$1" "$lan")"
	done
	shift
	run "$@" -display none -serial "file:$VMS/$name.console.log" -pidfile "$VMS/$name.pid" -daemonize
}

hv_wait_off() {
	run -w 90 sh -c "! $(alive "$1")"
}

hv_power_off() {
	run -m sh -c "$(alive "$1") && kill \"\$(cat '$VMS/$(vm "$1").pid')\""
}

hv_destroy() {
	run rm -f "$VMS/$(vm "$1").qcow2" "$VMS/$(vm "$1").qcow2.part" "$VMS/$(vm "$1").pid" \
		"$VMS/$(vm "$1").console.log"
}
