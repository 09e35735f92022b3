/*
 * SPDX-License-Identifier: MIT
 *
 * Sockets, the clock, and the end of a run.
 */
#include <sys/socket.h>

#include <errno.h>
#include <string.h>
#include <time.h>

#include "traffic.h"

volatile sig_atomic_t stopped;

uint64_t
clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return ((uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec);
}

uint64_t
end_of(const struct options *o, uint64_t start)
{
	return (start + (uint64_t)(o->seconds * 1e9));
}

int
bound_socket(const struct options *o, int type)
{
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	int on = 1, room = 1 << 22;

	if (fd < 0)
		die("socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (type == SOCK_DGRAM) {
		if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room,
		    sizeof(room)) != 0)
			setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room,
			    sizeof(room));
		setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof(on));
	}
	if (o->bound && bind(fd, (const struct sockaddr *)&o->bind,
	    sizeof(o->bind)) != 0)
		die("cannot bind: %s", strerror(errno));
	return (fd);
}

void
connect_to(const struct options *o, int fd)
{
	if (connect(fd, (const struct sockaddr *)&o->to, sizeof(o->to)) != 0)
		die("cannot connect: %s", strerror(errno));
}

int
udp_socket(const struct options *o, int codepoint)
{
	int fd = bound_socket(o, SOCK_DGRAM);

	if (setsockopt(fd, IPPROTO_IP, IP_TOS, &codepoint,
	    sizeof(codepoint)) != 0)
		die("IP_TOS: %s", strerror(errno));
	connect_to(o, fd);
	return (fd);
}

void
wait_until(struct pollfd *fds, uint64_t count, uint64_t until_ns)
{
	uint64_t now = clock_ns(), ns = until_ns > now ? until_ns - now : 0;
	struct timespec wait = { .tv_sec = (time_t)(ns / SECOND),
	    .tv_nsec = (long)(ns % SECOND) };

	(void)ppoll(fds, count, &wait, NULL);
}
