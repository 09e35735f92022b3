# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# The paper's topology, told once. LAN n is 172.16.n.0/24; in every machine its interface is called lan<n>, and the
# one of the management network mgmt0, whatever the hypervisor's hardware is called.

HOSTS="server source1 router source2"
ROUTER=router
SERVER_ADDRESS=172.16.1.2
SERVER_NETWORK=172.16.1.0/24
BOTTLENECK=lan1 # the router's interface towards the server
RETURN_LANS="lan3 lan5"

# Number of a machine: for ports, addresses and MACs.
host_number() {
	case $1 in
	server) echo 1 ;;
	source1) echo 2 ;;
	router) echo 3 ;;
	source2) echo 4 ;;
	*) die "no machine is called $1 (they are: $HOSTS)" ;;
	esac
}

# LANs of a machine: NUMBER:ADDRESS ...
host_lans() {
	case $1 in
	server) echo "1:172.16.1.2" ;;
	source1) echo "3:172.16.3.2" ;;
	router) echo "1:172.16.1.1 3:172.16.3.1 5:172.16.5.1" ;;
	source2) echo "5:172.16.5.2" ;;
	esac
}

# Routes of a machine: NETWORK:GATEWAY ... The default route stays with the management network.
host_routes() {
	case $1 in
	server) echo "172.16.3.0/24:172.16.1.1 172.16.5.0/24:172.16.1.1" ;;
	source1) echo "172.16.1.0/24:172.16.3.1" ;;
	source2) echo "172.16.1.0/24:172.16.5.1" ;;
	esac
}

# Flows that a machine sends: CONGESTION-CONTROL:PORT:CONNECTIONS ...
host_flows() {
	case $1 in
	source1) echo "cubic:5101:$cfg_classic_connections newreno:5102:$cfg_classic_connections" ;;
	source2) echo "dctcp:5103:$cfg_dctcp_connections" ;;
	esac
}
SERVER_PORTS="5101 5102 5103"

# The bottleneck's commands.
queue_rules() {
	echo "ipfw pipe 1 config bw $cfg_rate delay ${cfg_delay%ms}"
	echo "ipfw sched 1 config pipe 1 type l4s"
	echo "ipfw queue 1 config sched 1"
	if [ "$AS_PUBLISHED" = yes ]; then
		echo "# The authors' rule, a mistake: it matches each packet on its way in and again on its way out, both directions."
		echo "ipfw add 100 queue 1 ip from any to any"
		return
	fi
	echo "# On the way out only, towards the server only: each packet once, and never an acknowledgement."
	echo "ipfw add 100 queue 1 ip from any to $SERVER_NETWORK out xmit $BOTTLENECK"
	[ "$cfg_ack_delay" != 0ms ] || return 0
	echo "ipfw pipe 2 config delay ${cfg_ack_delay%ms}"
	for lan in $RETURN_LANS; do
		echo "ipfw add 200 pipe 2 ip from $SERVER_NETWORK to any out xmit $lan"
	done
}

# The machine at the other end of a LAN's cable: each LAN has two, and one of them is the router.
lan_peer() {
	case $1:$2 in
	router:1) echo server ;;
	router:3) echo source1 ;;
	router:5) echo source2 ;;
	*) echo router ;;
	esac
}

# MAC address of a machine on LAN n, or on the management network (0). The range is the one that VMware leaves to
# addresses given by hand; the other hypervisors take any.
mac() {
	printf '00:50:56:14:%02d:%02d\n' "$(host_number "$1")" "$2"
}
