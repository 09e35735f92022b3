/*
 * SPDX-License-Identifier: MIT
 *
 * The controller's own socket, which a connection gets by DIRECT: asks one way,
 * decisions the other, past whoever carries the rest. It lives no longer than
 * the control. Nothing here waits: an ask that finds no room is lost and told
 * with the next one, and what is not a decision ends this socket. Nor is the
 * router woken by a decision: it is looked for where it is used, when the next
 * packet comes.
 */
#include <sys/socket.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "pass.h"
#include "router.h"

int
direct_open(struct direct *direct)
{
	int pair[2];

	direct_close(direct);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
	    pair) != 0)
		return (-1);
	direct->fd = pair[0];
	direct->passing = pair[1];
	return (0);
}

void
direct_close(struct direct *direct)
{
	if (direct->fd >= 0)
		close(direct->fd);
	direct->fd = -1;
	pass_drop(&direct->passing);
	direct->received = 0;
	direct->lost = 0;
}

int
direct_ask(struct device *device, const struct packet *packet)
{
	struct direct *direct = &device->direct;
	struct l4s_entry entry;
	ssize_t done;

	if (direct->fd < 0)
		return (-1);
	l4s_entry_start(&entry, L4S_ASK, 0);
	l4s_entry_ask(&entry.u.row, &packet->core, &packet->totals);
	entry.lost = direct->lost;
	done = send(direct->fd, &entry, sizeof(entry),
	    MSG_DONTWAIT | MSG_NOSIGNAL);
	if (done == (ssize_t)sizeof(entry)) {
		direct->lost = 0;
		device->asks_sent++;
		return (0);
	}
	if (done < 0 && (errno == EAGAIN || errno == EINTR)) {
		direct->lost++;
		device->lost_here++;
		device->rows_lost++;
		return (0);
	}
	direct_close(direct);
	return (-1);
}

void
direct_read(struct router *router, uint64_t now_ns)
{
	struct direct *direct = &router->device.direct;
	struct l4s_command command;
	size_t used = 0;
	ssize_t got;
	int good = 1;

	if (direct->fd < 0)
		return;
	got = recv(direct->fd, direct->input + direct->received,
	    sizeof(direct->input) - direct->received, MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		direct_close(direct);
		return;
	}
	direct->received += (size_t)got;
	while (good && direct->received - used >= sizeof(command)) {
		memcpy(&command, direct->input + used, sizeof(command));
		used += sizeof(command);
		good = l4s_command_valid(&command) &&
		    command.kind == L4S_DECIDE;
		if (good)
			device_decide(router, &command, command.tag, now_ns);
	}
	direct->received -= used;
	memmove(direct->input, direct->input + used, direct->received);
	if (!good)
		direct_close(direct);
}
