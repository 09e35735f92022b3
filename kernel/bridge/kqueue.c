/*
 * SPDX-License-Identifier: MIT
 *
 * events.h on FreeBSD.
 */
#ifndef __linux__

#include <sys/types.h>
#include <sys/event.h>
#include <sys/time.h>

#include <fcntl.h>
#include <stddef.h>
#include <unistd.h>

#include "events.h"

#define MOST 64

int
events_open(void)
{
	int queue = kqueue();

	if (queue >= 0 && fcntl(queue, F_SETFD, FD_CLOEXEC) != 0) {
		close(queue);
		return -1;
	}
	return queue;
}

/* One filter on or off, where it changes. */
static int
add_change(struct kevent *change, int fd, uint32_t tag, short filter,
    bool before, bool after)
{
	if (before == after)
		return 0;
	EV_SET(change, (uintptr_t)fd, filter,
	    (unsigned short)(after ? EV_ADD : EV_DELETE), 0, 0,
	    (void *)(uintptr_t)tag);
	return 1;
}

bool
events_watch(int queue, int fd, uint32_t tag, unsigned before, unsigned after)
{
	struct kevent changes[2];
	int count = 0;

	count += add_change(&changes[count], fd, tag, EVFILT_READ,
	    (before & WATCH_IN) != 0, (after & WATCH_IN) != 0);
	count += add_change(&changes[count], fd, tag, EVFILT_WRITE,
	    (before & WATCH_OUT) != 0, (after & WATCH_OUT) != 0);
	return count == 0 || kevent(queue, changes, count, NULL, 0, NULL) == 0;
}

int
events_wait(int queue, struct happening *list, int most, int timeout_ms)
{
	struct kevent events[MOST];
	struct timespec timeout;
	int count;

	timeout.tv_sec = timeout_ms / 1000;
	timeout.tv_nsec = (long)(timeout_ms % 1000) * 1000000;
	count = kevent(queue, NULL, 0, events, most < MOST ? most : MOST,
	    &timeout);
	for (int i = 0; i < count; i++) {
		list[i].tag = (uint32_t)(uintptr_t)events[i].udata;
		list[i].what = events[i].filter == EVFILT_WRITE ? WATCH_OUT :
		    WATCH_IN;
	}
	return count;
}

#endif
