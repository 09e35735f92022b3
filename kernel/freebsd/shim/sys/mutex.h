/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/kernel.h>
#include <sys/param.h>

#define MTX_DEF 0
#define MA_OWNED 1

struct mtx {
	const char *name;
	int rank;	/* order of locking: rising */
	bool exists, owned;
};

void sim_mtx_init(struct mtx *m, const char *name);
void sim_mtx_destroy(struct mtx *m);
void sim_mtx_lock(struct mtx *m);
void sim_mtx_unlock(struct mtx *m);
void sim_mtx_assert(const struct mtx *m);

#define mtx_lock sim_mtx_lock
#define mtx_unlock sim_mtx_unlock
#define mtx_assert(m, what) sim_mtx_assert(m)

/* Made before the module is loaded, destroyed after it is unloaded. */
struct sim_mutex {
	struct mtx *mutex;
	const char *name;
	struct sim_mutex *next;
};
void sim_add_mutex(struct sim_mutex *m);

#define MTX_SYSINIT(id, m, text, flags)                                        \
	static struct sim_mutex sim_mutex_##id = { (m), (text), NULL };        \
	__attribute__((constructor)) static void                               \
	sim_mutex_add_##id(void)                                               \
	{                                                                      \
		sim_add_mutex(&sim_mutex_##id);                                \
	}                                                                      \
	struct sim_nothing
