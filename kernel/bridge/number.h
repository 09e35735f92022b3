/*
 * SPDX-License-Identifier: MIT
 *
 * A whole number between bounds, and nothing after it.
 */
#ifndef L4S_NUMBER_H
#define L4S_NUMBER_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

/* False: the text is no such number. */
static inline bool
parse_number(const char *text, int base, uint64_t low, uint64_t high,
    uint64_t *number)
{
	char *end;
	unsigned long long value;

	if (text[0] < '0' || text[0] > '9')
		return false;
	errno = 0;
	value = strtoull(text, &end, base);
	if (errno != 0 || *end != '\0' || value < low || value > high)
		return false;
	*number = value;
	return true;
}

#endif
