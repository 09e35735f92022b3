/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

#define M_NOWAIT 0x0001
#define M_WAITOK 0x0002
#define M_ZERO 0x0100

struct malloc_type {
	const char *name;
	uint64_t live;
};

#define MALLOC_DECLARE(type) extern struct malloc_type type[1]
#define MALLOC_DEFINE(type, tag, text)                                         \
	struct malloc_type type[1] = { { tag, 0 } }

void *sim_malloc(size_t size, struct malloc_type *type, int flags);
void sim_free(void *memory, struct malloc_type *type);

#define malloc(size, type, flags) sim_malloc((size), (type), (flags))
#define free(memory, type) sim_free((memory), (type))
