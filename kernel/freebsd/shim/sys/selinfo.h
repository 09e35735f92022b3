/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

struct knote;

struct knlist {
	struct knote *first;
	struct mtx *lock;
};

struct selinfo {
	struct knlist si_note;
	/* the simulation's own */
	struct thread *who;
};

void sim_selrecord(struct thread *td, struct selinfo *si);
void sim_selwakeup(struct selinfo *si);
void sim_seldrain(struct selinfo *si);

#define selrecord sim_selrecord
#define selwakeup sim_selwakeup
#define seldrain sim_seldrain
