# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Carried out once, as root, at the first start: before the network is up (the first versions of nuageinit start the
# script from the CD) or after everything is (later ones). What it writes holds for the next start in both cases.

# Not there any more when the machine has come back: see booted.sh.
kenv l4s_restarts=1
interface=
for each in $(ifconfig -l ether); do
	if ifconfig "$each" ether | grep -qi "$MAC"; then interface=$each; fi
done
[ -n "$interface" ] || { echo "seed: no interface has $MAC" >&2; exit 1; }
sysrc "ifconfig_${interface}_name=mgmt0"
# Else every interface of the LANs waits for an answer to DHCP.
sysrc -x ifconfig_DEFAULT || true
if [ "$ADDRESS" = DHCP ]; then
	sysrc ifconfig_mgmt0=SYNCDHCP
else
	sysrc "ifconfig_mgmt0=inet $ADDRESS" "defaultrouter=$GATEWAY"
	echo "nameserver $GATEWAY" >/etc/resolv.conf
fi

mkdir -p ~root/.ssh
chmod 0700 ~root/.ssh
printf '%s\n' "$PUBLIC_KEY" >~root/.ssh/authorized_keys
chmod 0600 ~root/.ssh/authorized_keys
# The image's own user has a password that everybody knows.
sed -i '' -E '/^#?(PermitRootLogin|PasswordAuthentication|KbdInteractiveAuthentication)[[:space:]]/d' \
	/etc/ssh/sshd_config
printf '%s\n' 'PermitRootLogin prohibit-password' 'PasswordAuthentication no' 'KbdInteractiveAuthentication no' \
	>>/etc/ssh/sshd_config
sysrc sshd_enable=YES
# All machines stay at the same kernel, that of the image, for which the module is built.
sysrc firstboot_freebsd_update_enable=NO
# rc(8) restarts the machine when the first start is through.
touch /firstboot-reboot
