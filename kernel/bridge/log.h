/*
 * SPDX-License-Identifier: MIT
 *
 * One line a message: to stderr, or to syslog once the daemon is detached.
 */
#ifndef L4S_LOG_H
#define L4S_LOG_H

#include <stdbool.h>
#include <stddef.h>

#define L4S_PRINTF(text, first) __attribute__((format(printf, text, first)))

/* Exit codes. */
#define EXIT_FAILED 1
#define EXIT_USAGE 2

/* Text from elsewhere, made fit for a log. */
void printable(char *to, size_t size, const char *from, size_t length);

void log_verbose(bool on);
void log_to_syslog(void);

/* Something that somebody should know. */
void say(const char *format, ...) L4S_PRINTF(1, 2);

/* Something that helps to find out what goes on; only where asked for. */
void detail(const char *format, ...) L4S_PRINTF(1, 2);

/* The last words: one line that says what is wrong and what to do. */
_Noreturn void die(int code, const char *format, ...) L4S_PRINTF(2, 3);

#endif
