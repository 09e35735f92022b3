# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# The commands of testbed.sh.

vm() {
	echo "$cfg_prefix-$1"
}

work_folder() {
	have "$WORK" || run mkdir -m 0700 -p "$WORK"
}

command_keys() {
	need ssh-keygen "install OpenSSH's client"
	work_folder
	have "$WORK/keys" || run mkdir -m 0700 "$WORK/keys"
	have "$KEY.pub" || {
		run rm -f "$KEY"
		run ssh-keygen -q -t ed25519 -N '' -C "$cfg_prefix testbed" -f "$KEY"
	}
}

command_image() {
	[ -n "$cfg_image" ] || die "say which image: --image PATH. FreeBSD's release pages lead to it: virtual machine" \
		"images of a 14.x release, the kind BASIC-CLOUDINIT (the others take no key), amd64, .raw.xz or .qcow2.xz," \
		"with UFS. Its checksum stands next to it, in CHECKSUM.SHA256 (image_sha256)."
	case $cfg_image in
	*.raw | *.raw.xz | *.qcow2 | *.qcow2.xz) ;;
	*) die "$cfg_image: is neither .raw nor .qcow2, packed (.xz) or not" ;;
	esac
	case $cfg_image in
	*CLOUDINIT*) ;;
	*) say "its name does not say CLOUDINIT: without nuageinit in it, the machines will not take the key" ;;
	esac
	[ "$DRY_RUN" = yes ] || [ -r "$cfg_image" ] || die "$cfg_image: cannot be read"
	work_folder
	have "$WORK/base.raw" && return
	if [ -n "$cfg_image_sha256" ]; then
		case $(pick sha256sum shasum) in
		sha256sum) run -i "$cfg_image_sha256  $cfg_image" sha256sum -c - ;;
		shasum) run -i "$cfg_image_sha256  $cfg_image" shasum -a 256 -c - ;;
		esac
	else
		say "image_sha256 is not set: the image is taken as it is"
	fi
	unpacked=$cfg_image
	case $cfg_image in
	*.xz)
		need xz "install XZ Utils"
		unpacked=$WORK/unpacked
		have "$unpacked" || run -o "$unpacked" xz -dc "$cfg_image"
		;;
	esac
	case $cfg_image in
	*.qcow2 | *.qcow2.xz)
		need qemu-img "install QEMU's tools, or take a .raw image"
		run qemu-img convert -f qcow2 -O raw "$unpacked" "$WORK/base.raw.part"
		;;
	*) run cp "$unpacked" "$WORK/base.raw.part" ;;
	esac
	# Longer without being fuller; the machines grow their file system into it at their first start.
	run dd if=/dev/null "of=$WORK/base.raw.part" bs=1048576 "seek=$((cfg_disk_gb * 1024))"
	run mv "$WORK/base.raw.part" "$WORK/base.raw"
	run rm -f "$WORK/unpacked"
}

# The first contact: a CD labelled cidata, which nuageinit reads at the first start.
make_seed() { # MACHINE
	hv_management "$1"
	folder=$VMS/$(vm "$1")-seed public='(the public key)'
	[ "$DRY_RUN" = yes ] || public=$(cat "$KEY.pub")
	run mkdir -p "$folder"
	run -i "instance-id: $(vm "$1")
local-hostname: $1" -o "$folder/meta-data" cat
	run -i "#!/bin/sh
$(guest_text seed "PUBLIC_KEY=$public" "MAC=$(mac "$1" 0)" "ADDRESS=$GUEST_ADDRESS" "GATEWAY=$GUEST_GATEWAY")" \
		-o "$folder/user-data" cat
	run chmod 0755 "$folder/user-data"
	if [ "$cfg_hypervisor" = bhyve ]; then
		run makefs -t cd9660 -o rockridge,label=cidata "$folder.iso" "$folder"
	else
		case $(pick xorriso genisoimage mkisofs makefs hdiutil) in
		xorriso) run xorriso -as mkisofs -quiet -J -R -V cidata -o "$folder.iso" "$folder" ;;
		genisoimage) run genisoimage -quiet -J -R -V cidata -o "$folder.iso" "$folder" ;;
		mkisofs) run mkisofs -quiet -J -R -V cidata -o "$folder.iso" "$folder" ;;
		makefs) run makefs -t cd9660 -o rockridge,label=cidata "$folder.iso" "$folder" ;;
		hdiutil) run hdiutil makehybrid -ov -iso -joliet -default-volume-name cidata -o "$folder.iso" "$folder" ;;
		esac
	fi
}

command_create() {
	hv_check
	[ "$DRY_RUN" = yes ] || [ -e "$KEY.pub" ] || die "no key yet: testbed.sh keys"
	[ "$DRY_RUN" = yes ] || [ -e "$WORK/base.raw" ] || die "no base disk yet: testbed.sh --image PATH image"
	run mkdir -p "$VMS"
	hv_networks
	for host in $HOSTS; do
		have "$VMS/$(vm "$host").created" && continue
		# Without that mark it was interrupted half-way.
		if hv_exists "$host"; then hv_destroy "$host"; fi
		make_seed "$host"
		hv_create "$host"
		run touch "$VMS/$(vm "$host").created"
	done
}

command_start() {
	hv_check
	for host in $HOSTS; do
		if hv_running "$host"; then say "already running: $host"; else hv_start "$host"; fi
	done
	for host in $HOSTS; do
		on -w 600 "$host" booted
	done
}

host_ect1() { # only DCTCP sends ECT(1)
	case $(host_flows "$1") in
	dctcp*) echo 1 ;;
	*) echo 0 ;;
	esac
}

provision_system() { # MACHINE
	lans=''
	for lan in $(host_lans "$1"); do
		lans="$lans${lans:+ }${lan%%:*}/${lan#*:}/$(mac "$1" "${lan%%:*}")"
	done
	forward=NO
	[ "$1" != "$ROUTER" ] || forward=YES
	on "$1" system "LANS=$lans" "ROUTES=$(host_routes "$1")" "FORWARD=$forward" "HZ=$cfg_hz" "ECT1=$(host_ect1 "$1")"
}

provision_router() {
	copy_to "$ROUTER" /var/l4s/src "$KERNEL/core" "$KERNEL/freebsd" "$KERNEL/bridge"
	[ -z "$cfg_src" ] || copy_to "$ROUTER" /var/l4s/src "$cfg_src"
	[ -z "$cfg_module" ] || copy_to "$ROUTER" /var/l4s/src "$cfg_module"
	on "$ROUTER" module "MODULE=${cfg_module##*/}" "SOURCES=${cfg_src##*/}"
}

command_provision() {
	for host in $HOSTS; do
		provision_system "$host"
	done
	for host in $HOSTS; do
		on -w 300 "$host" booted
	done
	for host in server source1 source2; do
		[ -z "$cfg_packages" ] || copy_to "$host" /var/l4s/src "$cfg_packages"
		on "$host" packages "PACKAGES=${cfg_packages##*/}"
	done
	provision_router
	on server servers "PORTS=$SERVER_PORTS"
	configure_queue
}

configure_queue() {
	[ "$AS_PUBLISHED" = no ] || say "AS PUBLISHED, a mistake: each packet goes through the queue twice, ACKs too"
	say "$ROUTER: guest/queue.sh"
	run -r "$ROUTER" -i "$(guest_text queue "L4S_SYSCTLS=$cfg_l4s_sysctls" && queue_rules)" sh -s
}

command_check() {
	failed=0
	for host in $HOSTS; do
		forward=0
		[ "$host" != "$ROUTER" ] || forward=1
		on "$host" check "HOST=$host" "LANS=$(host_lans "$host")" "FORWARD=$forward" "HZ=$cfg_hz" \
			"ECT1=$(host_ect1 "$host")" || failed=$((failed + 1))
	done
	on "$ROUTER" check-queue "BOTTLENECK=$BOTTLENECK" "AS_PUBLISHED=$AS_PUBLISHED" || failed=$((failed + 1))
	# Twenty packets one way and twenty answers: how many went through the queue?
	run -r "$ROUTER" ipfw zero 100
	run -r source1 ping -q -c 20 -i 0.2 "$SERVER_ADDRESS" || failed=$((failed + 1))
	on "$ROUTER" check-once "PACKETS=20" "AS_PUBLISHED=$AS_PUBLISHED" || failed=$((failed + 1))
	[ "$failed" -eq 0 ] || die "check: not as it should be in $failed places (FAIL, above, says what to do)"
}

run_folder() { # NUMBER
	printf 'run-%02d\n' "$1"
}

# Records come to this machine while they are made: the daemon's socket, forwarded by ssh.
record() { # NUMBER
	socket=$WORK/l4s.sock
	run -r "$ROUTER" -m pkill -F /var/run/l4s-bridged.pid
	run -r "$ROUTER" mkdir -p /var/run/l4s
	run -r "$ROUTER" -w 10 /usr/local/sbin/l4s-bridged --device /dev/l4s --socket /var/run/l4s/bridge.sock \
		--pidfile /var/run/l4s-bridged.pid
	hv_management "$ROUTER"
	end_forwarding
	run rm -f "$socket"
	run ssh -F /dev/null -i "$KEY" -o IdentitiesOnly=yes -o BatchMode=yes -o ExitOnForwardFailure=yes \
		-o StrictHostKeyChecking=accept-new -o "UserKnownHostsFile=$WORK/known_hosts" -o "HostKeyAlias=$ROUTER" \
		-p "$SSH_PORT" -M -S "$WORK/forward" -f -N -L "$socket:/var/run/l4s/bridge.sock" "root@$SSH_ADDRESS"
	recorded=0
	run "$cfg_recorder" live record "$RESULTS/$(run_folder "$1")/records.rec" --socket "$socket" \
		--seconds $((cfg_seconds + 15)) || recorded=1
	end_forwarding
	return "$recorded"
}

end_forwarding() {
	[ "$cfg_logs" = kernel ] || run -m ssh -S "$WORK/forward" -O exit "root@$SSH_ADDRESS"
}

interrupted() {
	end_forwarding
	say "interrupted: finished runs stay; the same command goes on with run $number"
	exit 130
}

one_run() { # NUMBER
	folder=/var/l4s/results/$(run_folder "$1")
	configure_queue
	on "$ROUTER" logs "ACTION=start" "FOLDER=$folder" "LOGS=$cfg_logs" "LOG_SYSCTL=$cfg_log_sysctl" \
		"TCPDUMP=$cfg_tcpdump" "BOTTLENECK=$BOTTLENECK"
	# They begin five seconds later, both machines and the recorder being ready by then.
	for host in source2 source1; do
		on "$host" flows "HOST=$host" "FLOWS=$(host_flows "$host")" "FOLDER=$folder" "SERVER=$SERVER_ADDRESS" \
			"DURATION=$cfg_seconds" "BEGIN=5" "SIFTR=$cfg_siftr" "PURGE=$cfg_purge_hostcache"
	done
	if [ "$cfg_logs" = kernel ]; then run sleep $((cfg_seconds + 10)); else record "$1"; fi
	for host in source1 source2; do
		on "$host" flows-end "HOST=$host" "FLOWS=$(host_flows "$host")" "FOLDER=$folder" "SIFTR=$cfg_siftr" "PATIENCE=60"
	done
	on "$ROUTER" logs "ACTION=stop" "FOLDER=$folder" "LOGS=$cfg_logs" "LOG_SYSCTL=$cfg_log_sysctl" \
		"TCPDUMP=$cfg_tcpdump" "BOTTLENECK=$BOTTLENECK"
}

settings_of_runs() {
	for key in rate delay ack_delay l4s_sysctls hz seconds classic_connections dctcp_connections purge_hostcache logs; do
		eval "echo \"$key = \$cfg_$key\""
	done
	if [ "$AS_PUBLISHED" = yes ]; then
		echo "# as published, a mistake: each packet goes through the queue twice, acknowledgements too"
	fi
}

command_run() {
	run mkdir -p "$RESULTS"
	settings=$(settings_of_runs)
	if probe test -e "$RESULTS/settings.conf" && [ "$settings" != "$(cat "$RESULTS/settings.conf")" ]; then
		die "$RESULTS: has runs with other settings (settings.conf there): move it away, or set work to another folder"
	fi
	run -i "$settings" -o "$RESULTS/settings.conf" cat
	trap interrupted INT TERM
	number=1
	while [ "$number" -le "$cfg_runs" ]; do
		say "run $number of $cfg_runs"
		have "$RESULTS/$(run_folder "$number")/done" || {
			run mkdir -p "$RESULTS/$(run_folder "$number")"
			one_run "$number"
			run touch "$RESULTS/$(run_folder "$number")/done"
		}
		number=$((number + 1))
	done
	trap - INT TERM
}

command_collect() {
	run mkdir -p "$RESULTS"
	for host in router source1 source2; do
		run -r "$host" -o "$RESULTS/$host.tar" tar -C /var/l4s/results -cf - .
		run tar -C "$RESULTS" -xf "$RESULTS/$host.tar"
		run rm -f "$RESULTS/$host.tar"
	done
	case $cfg_logs in
	binary) rows=records.rec ;;
	*) rows=messages ;;
	esac
	say "next: l4s-gym log convert $RESULTS/run-*/$rows --to parquet --out testbed.parquet"
}

command_stop() {
	for host in $HOSTS; do
		run -r "$host" -m shutdown -p now
	done
	for host in $HOSTS; do
		hv_wait_off "$host" || hv_power_off "$host"
	done
}

command_destroy() {
	if [ "$DRY_RUN" = no ] && [ "$YES" = no ]; then
		printf 'Remove the machines %s-* and their disks? [y/N] ' "$cfg_prefix"
		answer=no
		read -r answer || true
		[ "$answer" = y ] || die "nothing removed (--yes removes without asking)"
	fi
	for host in $HOSTS; do
		run rm -f "$VMS/$(vm "$host").created"
		if hv_running "$host"; then
			hv_power_off "$host"
			hv_wait_off "$host"
		fi
		hv_destroy "$host"
		run rm -rf "$VMS/$(vm "$host")-seed" "$VMS/$(vm "$host")-seed.iso"
	done
	hv_networks_destroy
	run rm -f "$WORK/known_hosts"
	say "kept: $WORK/keys, $WORK/base.raw, $RESULTS"
}

command_all() {
	for step in keys image create start provision check run collect; do
		say "== $step"
		"command_$step"
	done
}
