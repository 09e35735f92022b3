#!/bin/sh
# SPDX-License-Identifier: MIT
# Builds the paper's testbed from four FreeBSD 14 virtual machines, runs its measurements, brings the results back.
# README.md says what is what. Every step may be interrupted and repeated: what is done already is told and kept.
set -eu

HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
KERNEL=$(dirname -- "$HERE")

# shellcheck source=common.sh
. "$HERE/common.sh"
# shellcheck source=topology.sh
. "$HERE/topology.sh"
# shellcheck source=commands.sh
. "$HERE/commands.sh"

usage() {
	cat <<-'END'
		testbed.sh [OPTION ...] COMMAND

		commands, in their order:
		  keys       make an ssh key for this testbed
		  image      make the base disk from a FreeBSD 14 image that you have downloaded
		  create     make the four machines, their seeds and networks
		  start      start them
		  provision  addresses, boot settings, packages, the module and the daemon
		  check      see whether the machines are what they should be
		  run        the measurements
		  collect    bring the results here, for l4s-gym log convert
		  stop       shut the machines down
		  destroy    remove machines and networks; results and keys stay
		  all        from keys to collect

		options:
		  --dry-run             print every command, and what would be said in the machines; do nothing
		  --hypervisor NAME     virtualbox, vmware, bhyve or qemu
		  --config FILE         settings of your own (testbed.conf has them all, with what they mean)
		  --image PATH          the downloaded image
		  --runs N  --seconds N  --rate 8Mbit/s  --delay 10ms
		  --as-published        the authors' rule, which shapes each packet on its way in and again on its way out,
		                        acknowledgements too: a mistake, here for comparison only
		  --yes                 destroy without asking
	END
}

command='' own_config='' AS_PUBLISHED=no YES=no
options='' # KEY=VALUE ...: applied after the files and the environment; none of these values may have blanks
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--dry-run) DRY_RUN=yes ;;
	--as-published) AS_PUBLISHED=yes ;;
	--yes) YES=yes ;;
	--config | --hypervisor | --image | --runs | --seconds | --rate | --delay)
		[ $# -ge 2 ] || die "$1 needs a value"
		case $1,$2 in
		--config,*) own_config=$2 ;;
		*' '*) die "option $1: '$2' has a blank in it" ;;
		*) options="$options ${1#--}=$2" ;;
		esac
		shift
		;;
	-*) die "no option is called '$1': see --help" ;;
	*)
		[ -z "$command" ] || die "one command at a time: '$command' or '$1'?"
		command=$1
		;;
	esac
	shift
done

read_config "$HERE/testbed.conf"
[ -z "$own_config" ] || read_config "$own_config"
read_environment
for option in $options; do
	configure "option --${option%%=*}" "${option%%=*}" "${option#*=}"
done
case $cfg_work in
/*) WORK=$cfg_work ;;
*) WORK=$(pwd)/$cfg_work ;;
esac
case $WORK in
*[[:blank:]\"\']*) die "the work folder is $WORK: set work to one without blanks and quotes" ;;
esac
KEY=$WORK/keys/id_ed25519 VMS=$WORK/vms RESULTS=$WORK/results
# shellcheck source=/dev/null
. "$HERE/hypervisor-$cfg_hypervisor.sh"

case $command in
keys | image | create | start | provision | check | run | collect | stop | destroy | all) "command_$command" ;;
'') usage >&2 && exit 2 ;;
*) die "no command is called '$command': see --help" ;;
esac
