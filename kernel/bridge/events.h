/*
 * SPDX-License-Identifier: MIT
 *
 * Waiting for descriptors: epoll.c on Linux, kqueue.c on FreeBSD. Both tell
 * a state, not a change: what was not read or written is told again.
 */
#ifndef L4S_EVENTS_H
#define L4S_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

#define WATCH_NONE 0u
#define WATCH_IN 1u	/* something to read, or the other end left */
#define WATCH_OUT 2u	/* it can be written to */

struct happening {
	uint32_t tag;
	unsigned what;
};

/* A new queue of events, or -1 with errno. Not inherited by fork. */
int events_open(void);

/*
 * Change what is watched of a descriptor, false with errno. A descriptor of
 * which nothing is watched is not reported at all, even when its other end
 * leaves; closing it ends the watch.
 */
bool events_watch(int queue, int fd, uint32_t tag, unsigned before,
    unsigned after);

/* Number of things that happened within timeout_ms, or -1 with errno. */
int events_wait(int queue, struct happening *list, int most, int timeout_ms);

#endif
