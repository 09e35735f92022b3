/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

void sim_arc4rand(void *memory, u_int length, int reseed);
#define arc4rand sim_arc4rand
