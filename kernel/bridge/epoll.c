/*
 * SPDX-License-Identifier: MIT
 *
 * events.h on Linux.
 */
#ifdef __linux__

#include "events.h"

#include <sys/epoll.h>

#define MOST 64

int
events_open(void)
{
	return epoll_create1(EPOLL_CLOEXEC);
}

bool
events_watch(int queue, int fd, uint32_t tag, unsigned before, unsigned after)
{
	struct epoll_event event = { 0 };
	int change = EPOLL_CTL_MOD;

	if (before == after)
		return true;
	if (before == WATCH_NONE)
		change = EPOLL_CTL_ADD;
	else if (after == WATCH_NONE)	/* else hang-ups would be told */
		change = EPOLL_CTL_DEL;
	if ((after & WATCH_IN) != 0)
		event.events |= (uint32_t)EPOLLIN;
	if ((after & WATCH_OUT) != 0)
		event.events |= (uint32_t)EPOLLOUT;
	event.data.u32 = tag;
	return epoll_ctl(queue, change, fd, &event) == 0;
}

int
events_wait(int queue, struct happening *list, int most, int timeout_ms)
{
	struct epoll_event events[MOST];
	const uint32_t gone = (uint32_t)EPOLLHUP | (uint32_t)EPOLLERR;
	int count;

	count = epoll_wait(queue, events, most < MOST ? most : MOST,
	    timeout_ms);
	for (int i = 0; i < count; i++) {
		uint32_t bits = events[i].events;

		list[i].tag = events[i].data.u32;
		list[i].what = WATCH_NONE;
		if ((bits & ((uint32_t)EPOLLIN | gone)) != 0)
			list[i].what |= WATCH_IN;
		if ((bits & ((uint32_t)EPOLLOUT | gone)) != 0)
			list[i].what |= WATCH_OUT;
	}
	return count;
}

#endif
