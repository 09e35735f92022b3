/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

struct ipfw_rule_ref {
	uint32_t slot, rulenum, rule_id, chain_id, info;
};
