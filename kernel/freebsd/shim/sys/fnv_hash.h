/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FNV1_32_INIT 2166136261u

static inline uint32_t
fnv_32_buf(const void *memory, size_t length, uint32_t hash)
{
	const uint8_t *byte = memory;

	for (size_t i = 0; i < length; i++)
		hash = hash * 16777619u ^ byte[i];
	return (hash);
}
