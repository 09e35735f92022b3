/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

struct uio {
	long uio_resid;
	/* the simulation's own */
	char *memory;
	bool reads;
};

int sim_uiomove(void *memory, int length, struct uio *uio);
#define uiomove sim_uiomove
