/*
 * SPDX-License-Identifier: MIT
 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

static bool verbose, syslogging;

void
printable(char *to, size_t size, const char *from, size_t length)
{
	size_t i;

	for (i = 0; i < length && i + 1 < size && from[i] != '\0'; i++)
		to[i] = (char)(from[i] >= ' ' && from[i] <= '~' ? from[i] :
		    '?');
	to[i] = '\0';
}

void
log_verbose(bool on)
{
	verbose = on;
}

void
log_to_syslog(void)
{
	openlog("l4s-bridged", LOG_PID, LOG_DAEMON);
	syslogging = true;
}

/* One write for one line, so that lines of several processes stay whole. */
static void L4S_PRINTF(2, 0)
write_line(int priority, const char *format, va_list arguments)
{
	char line[512] = "l4s-bridged: ";
	size_t used = strlen(line);
	ssize_t done;

	if (syslogging) {
		vsyslog(priority, format, arguments);
		return;
	}
	/* Told falsely from a run's second file on: */
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
	(void)vsnprintf(line + used, sizeof(line) - used - 1, format,
	    arguments);
	used = strlen(line);
	line[used] = '\n';
	done = write(STDERR_FILENO, line, used + 1);
	(void)done;	/* nobody is left to tell */
}

void
say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_line(LOG_NOTICE, format, arguments);
	va_end(arguments);
}

void
detail(const char *format, ...)
{
	va_list arguments;

	if (!verbose)
		return;
	va_start(arguments, format);
	write_line(LOG_DEBUG, format, arguments);
	va_end(arguments);
}

void
die(int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_line(LOG_ERR, format, arguments);
	va_end(arguments);
	exit(code);
}
