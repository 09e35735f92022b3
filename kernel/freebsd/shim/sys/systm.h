/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

struct mtx;

int sim_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int sim_mtx_sleep(void *channel, struct mtx *m, int priority,
    const char *message, int timeout);
void sim_wakeup(void *channel);
int sim_copyin(const void *from, void *to, size_t length);
size_t sim_strlcpy(char *to, const char *from, size_t size);
_Noreturn void sim_panic(const char *format, ...)
    __attribute__((format(printf, 1, 2)));

#define printf sim_printf
#define mtx_sleep sim_mtx_sleep
#define wakeup sim_wakeup
#define copyin sim_copyin
#define strlcpy sim_strlcpy
#define bzero(p, n) ((void)memset((p), 0, (n)))

#define PCATCH 0x100
