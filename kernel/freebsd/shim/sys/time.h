/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <stdint.h>

typedef int64_t sbintime_t;

sbintime_t sim_sbinuptime(void);
#define sbinuptime sim_sbinuptime

/* Rounds down. */
static inline int64_t
sbttons(sbintime_t t)
{
	return ((t >> 32) * 1000000000 +
	    ((t & 0xffffffff) * 1000000000 >> 32));
}
