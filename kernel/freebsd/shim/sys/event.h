/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/mutex.h>
#include <sys/selinfo.h>

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)

struct knote;

struct filterops {
	int f_isfd;
	int (*f_attach)(struct knote *kn);
	void (*f_detach)(struct knote *kn);
	int (*f_event)(struct knote *kn, long hint);
};

struct knote {
	const struct filterops *kn_fop;
	void *kn_hook;
	int64_t kn_data;
	short kn_filter;
	/* the simulation's own */
	struct knote *next;
	struct knlist *list;
	unsigned int fired;
};

void sim_knlist_init(struct knlist *list, struct mtx *lock);
void sim_knlist_add(struct knlist *list, struct knote *kn, int locked);
void sim_knlist_remove(struct knlist *list, struct knote *kn, int locked);
void sim_knlist_clear(struct knlist *list, int locked);
void sim_knlist_destroy(struct knlist *list);
void sim_knote(struct knlist *list, long hint);

#define knlist_init_mtx sim_knlist_init
#define knlist_add sim_knlist_add
#define knlist_remove sim_knlist_remove
#define knlist_clear sim_knlist_clear
#define knlist_destroy sim_knlist_destroy
#define KNOTE_LOCKED sim_knote
