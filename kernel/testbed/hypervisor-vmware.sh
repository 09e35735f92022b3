# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# VMware Workstation: LANs are LAN segments (no network of the host is changed); management is the NAT network vmnet8,
# with addresses by hand, because asking a machine for its address needs VMware's tools in it.

hv_check() {
	need vmrun "install VMware Workstation Pro 17 or newer"
	need qemu-img "it makes the disks (Debian: apt-get install qemu-utils)"
	# VMware draws vmnet8's addresses when it is installed.
	if probe test -r /etc/vmware/networking; then
		grep -Fq "VNET_8_HOSTONLY_SUBNET $cfg_vmware_prefix.0" /etc/vmware/networking ||
			die "vmnet8 is not $cfg_vmware_prefix.0: set vmware_prefix to what /etc/vmware/networking" \
				"says in VNET_8_HOSTONLY_SUBNET"
	fi
}

hv_management() {
	SSH_ADDRESS=$cfg_vmware_prefix.$((10 + $(host_number "$1")))
	SSH_PORT=22
	GUEST_ADDRESS=$SSH_ADDRESS/24
	GUEST_GATEWAY=$cfg_vmware_prefix.2
}

hv_networks() {
	say "VMware makes LAN segments by itself"
}

hv_networks_destroy() {
	say "no networks to remove"
}

vmx_path() {
	echo "$VMS/$(vm "$1").vmware/$(vm "$1").vmx"
}

hv_exists() {
	probe test -e "$VMS/$(vm "$1").vmware"
}

hv_running() {
	probe sh -c "vmrun -T ws list | grep -Fqx '$(vmx_path "$1")'"
}

vmx_card() { # NUMBER MAC
	cat <<-END
		ethernet$1.present = "TRUE"
		ethernet$1.virtualDev = "vmxnet3"
		ethernet$1.addressType = "static"
		ethernet$1.address = "$2"
	END
}

vmx() { # MACHINE
	cat <<-END
		.encoding = "UTF-8"
		config.version = "8"
		virtualHW.version = "19"
		displayName = "$(vm "$1")"
		guestOS = "freebsd-64"
		memsize = "$cfg_memory_mb"
		numvcpus = "$cfg_cpus"
		pciBridge0.present = "TRUE"
		pciBridge4.present = "TRUE"
		pciBridge4.virtualDev = "pcieRootPort"
		pciBridge4.functions = "8"
		vmci0.present = "TRUE"
		sata0.present = "TRUE"
		sata0:0.present = "TRUE"
		sata0:0.fileName = "disk.vmdk"
		sata0:1.present = "TRUE"
		sata0:1.deviceType = "cdrom-image"
		sata0:1.fileName = "$VMS/$(vm "$1")-seed.iso"
	END
	vmx_card 0 "$(mac "$1" 0)"
	echo 'ethernet0.connectionType = "nat"'
	vmx_number=1
	for lan in $(host_lans "$1"); do
		vmx_card "$vmx_number" "$(mac "$1" "${lan%%:*}")"
		# A LAN segment is known by its number; ours are the same on every machine.
		cat <<-END
			ethernet$vmx_number.connectionType = "pvn"
			ethernet$vmx_number.pvnID = "52 4c 34 53 00 00 00 00-00 00 00 00 00 00 00 0${lan%%:*}"
		END
		vmx_number=$((vmx_number + 1))
	done
}

hv_create() {
	folder=$VMS/$(vm "$1").vmware
	run mkdir -p "$folder"
	run qemu-img convert -f raw -O vmdk -o subformat=monolithicSparse "$WORK/base.raw" "$folder/disk.vmdk"
	run -i "$(vmx "$1")" -o "$(vmx_path "$1")" cat
}

hv_start() {
	run vmrun -T ws start "$(vmx_path "$1")" nogui
}

hv_wait_off() {
	run -w 90 sh -c "! vmrun -T ws list | grep -Fqx '$(vmx_path "$1")'"
}

hv_power_off() {
	run -m vmrun -T ws stop "$(vmx_path "$1")" hard
}

hv_destroy() {
	run rm -rf "$VMS/$(vm "$1").vmware"
}
