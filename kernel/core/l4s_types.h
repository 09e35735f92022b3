/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The integer types, where a kernel has them and where a compiler has them.
 */
#ifndef L4S_TYPES_H
#define L4S_TYPES_H

#if defined(_KERNEL) && defined(__FreeBSD__)
#include <sys/types.h>
#include <sys/stdint.h>
#else
#include <stdbool.h>
#include <stdint.h>
#endif

#define L4S_PACKED __attribute__((packed))

#endif
