/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

typedef struct uma_zone *uma_zone_t;

#define UMA_ALIGN_PTR 7

uma_zone_t sim_uma_zcreate(const char *name, size_t size);
void sim_uma_zdestroy(uma_zone_t zone);
void *sim_uma_zalloc(uma_zone_t zone, int flags);
void sim_uma_zfree(uma_zone_t zone, void *item);

#define uma_zcreate(name, size, ctor, dtor, init, fini, align, flags)          \
	sim_uma_zcreate((name), (size))
#define uma_zdestroy sim_uma_zdestroy
#define uma_zalloc sim_uma_zalloc
#define uma_zfree sim_uma_zfree
