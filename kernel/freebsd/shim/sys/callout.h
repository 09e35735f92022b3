/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/mutex.h>
#include <sys/time.h>

#define C_ABSOLUTE 0x0200

struct callout {
	struct callout *next;
	struct mtx *mutex;
	sbintime_t at;
	void (*function)(void *argument);
	void *argument;
	bool made, pending;
};

void sim_callout_init(struct callout *c, struct mtx *m);
void sim_callout_reset(struct callout *c, sbintime_t at,
    void (*function)(void *argument), void *argument, int flags);
void sim_callout_drain(struct callout *c);

#define callout_init_mtx(c, m, flags) sim_callout_init((c), (m))
#define callout_reset_sbt(c, at, precision, function, argument, flags)         \
	sim_callout_reset((c), (at), (function), (argument), (flags))
#define callout_drain sim_callout_drain
