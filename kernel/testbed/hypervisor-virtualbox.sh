# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# VirtualBox: LANs are internal networks (not even this machine is in them); management is NAT with a port of
# 127.0.0.1 forwarded to ssh, which also gives the machines a way out for packages.

hv_check() {
	need VBoxManage "install VirtualBox 6.1 or newer (FreeBSD: pkg install virtualbox-ose)"
}

# Sets how this machine reaches ssh in a machine, and what the machine's management interface is given.
hv_management() {
	SSH_ADDRESS=127.0.0.1
	SSH_PORT=$((cfg_ssh_port + $(host_number "$1") - 1))
	GUEST_ADDRESS=DHCP
	GUEST_GATEWAY=
}

hv_networks() {
	say "VirtualBox makes internal networks and NAT by itself"
}

hv_networks_destroy() {
	say "no networks to remove"
}

hv_exists() {
	probe VBoxManage showvminfo "$(vm "$1")"
}

hv_running() {
	probe sh -c "VBoxManage list runningvms | grep -q '^\"$(vm "$1")\"'"
}

hv_create() {
	name=$(vm "$1")
	# A disk that an interrupted run left is registered nowhere.
	have "$VMS/$name.vdi" || {
		run rm -f "$VMS/$name.vdi.part"
		run VBoxManage convertfromraw "$WORK/base.raw" "$VMS/$name.vdi.part" --format VDI
		run mv "$VMS/$name.vdi.part" "$VMS/$name.vdi"
	}
	run VBoxManage createvm --name "$name" --ostype FreeBSD_64 --basefolder "$VMS" --register
	run VBoxManage modifyvm "$name" --memory "$cfg_memory_mb" --cpus "$cfg_cpus" --ioapic on --rtcuseutc on \
		--boot1 disk --boot2 none
	run VBoxManage modifyvm "$name" --nic1 nat --nictype1 virtio --macaddress1 "$(mac "$1" 0 | tr -d :)" \
		--natpf1 "ssh,tcp,127.0.0.1,$((cfg_ssh_port + $(host_number "$1") - 1)),,22"
	card=2
	for lan in $(host_lans "$1"); do
		run VBoxManage modifyvm "$name" "--nic$card" intnet "--nictype$card" virtio \
			"--intnet$card" "$cfg_prefix-lan${lan%%:*}" "--macaddress$card" "$(mac "$1" "${lan%%:*}" | tr -d :)"
		card=$((card + 1))
	done
	run VBoxManage storagectl "$name" --name sata --add sata --controller IntelAhci --portcount 2
	run VBoxManage storageattach "$name" --storagectl sata --port 0 --device 0 --type hdd --medium "$VMS/$name.vdi"
	run VBoxManage storageattach "$name" --storagectl sata --port 1 --device 0 --type dvddrive \
		--medium "$VMS/$name-seed.iso"
}

hv_start() {
	run VBoxManage startvm "$(vm "$1")" --type headless
}

hv_wait_off() {
	run -w 90 sh -c "! VBoxManage list runningvms | grep -q '^\"$(vm "$1")\"'"
}

hv_power_off() {
	run -m VBoxManage controlvm "$(vm "$1")" poweroff
}

hv_destroy() {
	run -m VBoxManage unregistervm "$(vm "$1")" --delete
	run rm -rf "$VMS/$(vm "$1").vdi" "$VMS/$(vm "$1").vdi.part" "${VMS:?}/$(vm "$1")"
}
