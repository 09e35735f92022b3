/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

struct vnet;

extern struct vnet *sim_curvnet;
#define curvnet sim_curvnet

#define CURVNET_SET(to)                                                        \
	struct vnet *sim_saved_vnet = sim_curvnet;                             \
	sim_curvnet = (to)
#define CURVNET_RESTORE() sim_curvnet = sim_saved_vnet
