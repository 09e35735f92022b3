/*
 * SPDX-License-Identifier: MIT
 */
#include <time.h>

#include "bridge.h"

uint64_t
now_us(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

uint64_t
now_ms(void)
{
	return now_us() / 1000;
}
