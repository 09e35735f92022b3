# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Messages, the one function through which everything is done, and the configuration.

DRY_RUN=no
NEWLINE='
'

say() {
	printf '# %s\n' "$*"
}

die() {
	printf 'testbed.sh: %s\n' "$*" >&2
	exit 1
}

# A word as the shell would have to be given it.
quoted() {
	case $1 in
	*"'"*) printf "'%s'" "$(printf '%s\n' "$1" | sed "s/'/'\\\\''/g")" ;;
	'' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$1" ;;
	*) printf '%s' "$1" ;;
	esac
}

show() { # INPUT-OR-NOTHING OUTPUT-OR-NOTHING COMMAND...
	show_input=$1 show_output=$2
	shift 2
	printf '+'
	for word; do
		printf ' '
		quoted "$word"
	done
	[ -z "$show_output" ] || printf ' > %s' "$(quoted "$show_output")"
	# Texts of pages: a dry run is there to be read, else the command tells enough.
	[ -z "$show_input" ] || [ "$DRY_RUN" = no ] || printf " <<'END'\n%s\nEND" "$show_input"
	printf '\n'
}

# Everything that changes something, here or in a machine, is done by this function, so that a dry run shows it all.
#   run [-r MACHINE] [-i INPUT] [-o FILE] [-w SECONDS] [-m] COMMAND...
#   -r over ssh; -i text for its standard input; -o its output goes to FILE, which appears when it is complete;
#   -w again and again for so long until it succeeds; -m may fail.
run() {
	run_host='' run_input='' run_output='' run_wait=0 run_may_fail=no
	while :; do
		case $1 in
		-r) run_host=$2 && shift ;;
		-i) run_input=$2 && shift ;;
		-o) run_output=$2 && shift ;;
		-w) run_wait=$2 && shift ;;
		-m) run_may_fail=yes ;;
		*) break ;;
		esac
		shift
	done
	if [ -n "$run_host" ]; then
		hv_management "$run_host"
		set -- ssh -F /dev/null -i "$KEY" -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=5 \
			-o StrictHostKeyChecking=accept-new -o "UserKnownHostsFile=$WORK/known_hosts" \
			-o "HostKeyAlias=$run_host" -p "$SSH_PORT" "root@$SSH_ADDRESS" "$@"
	fi
	[ "$run_wait" -eq 0 ] || say "tried for up to $run_wait s:"
	show "$run_input" "$run_output" "$@"
	[ "$DRY_RUN" = no ] || return 0
	run_until=$(($(date +%s) + run_wait))
	while ! run_quiet "$@"; do
		if [ "$(date +%s)" -lt "$run_until" ]; then
			sleep 2
		elif [ "$run_may_fail" = yes ]; then
			return 0
		else
			say "failed: $1 (the command above)"
			return 1
		fi
	done
}

# While it is tried again and again, nobody wants to read why it did not succeed yet.
run_quiet() {
	if [ "$run_wait" -eq 0 ]; then run_once "$@"; else run_once "$@" 2>/dev/null; fi
}

run_once() {
	if [ -n "$run_output" ]; then
		feed "$@" >"$run_output.part" && mv "$run_output.part" "$run_output"
	else
		feed "$@"
	fi
}

feed() {
	if [ -n "$run_input" ]; then
		printf '%s\n' "$run_input" | "$@"
	else
		"$@" </dev/null
	fi
}

# Asks for the state of things; a dry run asks nothing, and takes everything for not there.
probe() {
	[ "$DRY_RUN" = no ] && "$@" >/dev/null 2>&1 </dev/null
}

have() {
	probe test -e "$1" && say "already there: $1"
}

need() { # TOOL WHERE-FROM
	[ "$DRY_RUN" = yes ] || command -v "$1" >/dev/null || die "needs $1: $2"
}

# The first of these tools that is installed; in a dry run the first.
pick() {
	for tool; do
		if [ "$DRY_RUN" = yes ] || command -v "$tool" >/dev/null; then
			echo "$tool"
			return
		fi
	done
	die "needs one of: $*"
}

copy_to() { # MACHINE FOLDER FILE...
	hv_management "$1"
	copy_target="root@$SSH_ADDRESS:$2/"
	copy_host=$1
	shift 2
	run scp -F /dev/null -i "$KEY" -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=accept-new \
		-o "UserKnownHostsFile=$WORK/known_hosts" -o "HostKeyAlias=$copy_host" -P "$SSH_PORT" -r "$@" "$copy_target"
}

# Text of a script for inside a machine: its variables, then the file.
guest_text() { # SCRIPT NAME=VALUE...
	guest_file=$HERE/guest/$1.sh
	shift
	echo "set -eu"
	for assignment; do
		printf '%s=' "${assignment%%=*}"
		quoted "${assignment#*=}"
		echo
	done
	sed -e '/^# shellcheck/d' -e '/^# SPDX/d' "$guest_file"
}

# The same, carried out in a machine.
on() { # [-w SECONDS] MACHINE SCRIPT NAME=VALUE...
	on_wait=0
	[ "$1" != -w ] || { on_wait=$2 && shift 2; }
	on_host=$1
	shift
	say "$on_host: guest/$1.sh"
	run -r "$on_host" -w "$on_wait" -i "$(guest_text "$@")" sh -s
}

CONFIG_KEYS="hypervisor work prefix image image_sha256 memory_mb cpus disk_gb src module packages"
CONFIG_KEYS="$CONFIG_KEYS rate delay ack_delay l4s_sysctls hz runs seconds classic_connections dctcp_connections"
CONFIG_KEYS="$CONFIG_KEYS purge_hostcache logs log_sysctl recorder siftr tcpdump ssh_port udp_port vmware_prefix"
CONFIG_KEYS="$CONFIG_KEYS bhyve_prefix qemu bhyve_firmware"

matches() { # VALUE EXTENDED-REGULAR-EXPRESSION
	printf '%s\n' "$1" | grep -Eqx -- "$2"
}

is_number() { # VALUE LONGEST: digits, no 0 first
	case $1 in
	'' | 0* | *[!0-9]*) return 1 ;;
	esac
	[ "${#1}" -le "$2" ]
}

is_word() {
	case $1 in
	*[[:space:]\"\']*) return 1 ;;
	esac
}

# Is the value right? Else `wanted` is what it must be.
right_value() { # KEY VALUE
	case $1 in
	hypervisor) wanted="virtualbox, vmware, bhyve or qemu" ;;
	logs) wanted="kernel, binary or both" ;;
	siftr | tcpdump | purge_hostcache) wanted="yes or no" ;;
	memory_mb | cpus | disk_gb | hz | runs | seconds | *_connections) wanted="a whole number from 1 to 999999" ;;
	*_port) wanted="a port from 1000 to 65500" ;;
	rate) wanted="a whole number with its unit, such as 8Mbit/s" ;;
	delay | ack_delay) wanted="whole milliseconds up to 9999, such as 10ms" ;;
	*_prefix) wanted="the first three numbers of an address, such as 192.168.80" ;;
	prefix) wanted="up to 16 of a-z, 0-9 and -, a letter first" ;;
	image_sha256) wanted="64 of 0-9 and a-f, or nothing" ;;
	l4s_sysctls) wanted="NAME=NUMBER NAME=NUMBER ..." ;;
	image | src | module | packages) wanted="a path without blanks and quotes, or nothing" ;;
	*) wanted="a word without blanks and quotes" ;;
	esac
	case $1,$2 in
	hypervisor,*) [ "$2" = virtualbox ] || [ "$2" = vmware ] || [ "$2" = bhyve ] || [ "$2" = qemu ] ;;
	logs,*) [ "$2" = kernel ] || [ "$2" = binary ] || [ "$2" = both ] ;;
	siftr,* | tcpdump,* | purge_hostcache,*) [ "$2" = yes ] || [ "$2" = no ] ;;
	memory_mb,* | cpus,* | disk_gb,* | hz,* | runs,* | seconds,* | *_connections,*) is_number "$2" 6 ;;
	*_port,*) is_number "$2" 5 && [ "$2" -ge 1000 ] && [ "$2" -le 65500 ] ;;
	rate,*Kbit/s | rate,*Mbit/s) is_number "${2%[KM]bit/s}" 7 ;;
	rate,*) false ;;
	delay,0ms | ack_delay,0ms) ;;
	delay,*ms | ack_delay,*ms) is_number "${2%ms}" 4 ;;
	delay,* | ack_delay,*) false ;;
	*_prefix,*) matches "$2" '[0-9]{1,3}(\.[0-9]{1,3}){2}' ;;
	prefix,*) matches "$2" '[a-z][a-z0-9-]{0,15}' ;;
	image_sha256, | l4s_sysctls, | image, | src, | module, | packages,) ;;
	image_sha256,*) matches "$2" '[0-9a-f]{64}' ;;
	l4s_sysctls,*) matches "$2" '[a-z0-9_]+=[0-9]+( [a-z0-9_]+=[0-9]+)*' ;;
	*) [ -n "$2" ] && is_word "$2" ;;
	esac
}

configure() { # PLACE KEY VALUE
	case " $CONFIG_KEYS " in
	*" $2 "*) ;;
	*) die "$1: no setting is called '$2' (they are: $CONFIG_KEYS)" ;;
	esac
	case $3 in
	*"$NEWLINE"*) die "$1: $2 has more than one line" ;;
	esac
	right_value "$2" "$3" || die "$1: $2 is '$3', but must be $wanted"
	eval "cfg_$2=\$3"
}

read_config() { # FILE
	[ -r "$1" ] || die "$1: cannot be read"
	number=0
	while read -r line || [ -n "$line" ]; do # without blanks at its ends
		number=$((number + 1))
		case $line in
		'' | '#'*) ;;
		*=*)
			key=${line%%=*} value=${line#*=}
			while [ "$key" != "${key%[[:blank:]]}" ]; do key=${key%[[:blank:]]}; done
			while [ "$value" != "${value#[[:blank:]]}" ]; do value=${value#[[:blank:]]}; done
			configure "$1:$number" "$key" "$value"
			;;
		*) die "$1:$number: '$line' is no setting: key = value" ;;
		esac
	done <"$1"
}

read_environment() {
	for name in $(printf '%s\n' "$CONFIG_KEYS" | tr '[:lower:]' '[:upper:]'); do
		eval "value=\${L4S_TESTBED_$name-unset:}"
		[ "$value" = unset: ] || configure "environment, L4S_TESTBED_$name" \
			"$(printf '%s\n' "$name" | tr '[:upper:]' '[:lower:]')" "$value"
	done
}
