/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

/* ipfw's: what the structs of dummynet below are made of. */
struct _ip6dn_args {
	struct ip6_pktopts *opt_or;
	int flags_or;
	struct ip6_moptions *im6o_or;
	struct ifnet *origifp_or;
	struct ifnet *ifp_or;
	u_long mtu_or;
};
