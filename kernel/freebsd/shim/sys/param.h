/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef __unused
#define __unused __attribute__((unused))
#endif

typedef unsigned int u_int;
typedef unsigned long u_long;
typedef char *caddr_t;

struct thread;
struct ucred;
struct proc;
