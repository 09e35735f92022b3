/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

struct ipfw_flow_id {
	uint32_t src_ip, dst_ip;
};
