/*
 * SPDX-License-Identifier: MIT
 *
 * pass.h: shared with the router and the agent.
 */
#include "pass.h"

#include <sys/socket.h>

#include <string.h>
#include <unistd.h>

union control {
	struct cmsghdr head;
	char bytes[CMSG_SPACE(sizeof(int))];
};

void
pass_drop(int *passed)
{
	if (*passed >= 0)
		close(*passed);
	*passed = -1;
}

ssize_t
pass_read(int fd, void *to, size_t size, int *passed)
{
	struct iovec piece = { .iov_base = to, .iov_len = size };
	union control control;
	struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1,
	    .msg_control = control.bytes,
	    .msg_controllen = CMSG_LEN(sizeof(int)) };	/* one fits */
	ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	const struct cmsghdr *head = got < 0 ? NULL : CMSG_FIRSTHDR(&message);

	if (head != NULL && head->cmsg_level == SOL_SOCKET &&
	    head->cmsg_type == SCM_RIGHTS &&
	    head->cmsg_len == CMSG_LEN(sizeof(int))) {
		pass_drop(passed);
		memcpy(passed, CMSG_DATA(head), sizeof(int));
	}
	return got;
}

ssize_t
pass_write(int fd, struct iovec *pieces, int count, int *passed)
{
	union control control = { 0 };
	struct msghdr message = { .msg_iov = pieces };
	ssize_t sent;

	message.msg_iovlen = (__typeof__(message.msg_iovlen))count;
	if (*passed >= 0) {
		message.msg_control = control.bytes;
		message.msg_controllen = sizeof(control.bytes);
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.head), passed, sizeof(int));
	}
	sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent > 0)
		pass_drop(passed);
	return sent;
}
