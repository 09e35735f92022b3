/*
 * SPDX-License-Identifier: MIT
 *
 * The router as a device: a Unix socket for one connection at a time. Entries
 * wait in two rings, rows and answers; what has left them for the stage is on
 * its way and stays. Nothing here waits for the reader.
 */
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pass.h"
#include "router.h"

static int
complain(const char *path, const char *what)
{
	fprintf(stderr, "l4s-router: %s: %s\n", path, what);
	return (-1);
}

/* Whether a file at the path can go: a socket on which nobody listens. */
static int
clear_path(const struct sockaddr_un *address)
{
	struct stat found;
	int probe, answers;

	if (lstat(address->sun_path, &found) != 0)
		return (0);
	if (!S_ISSOCK(found.st_mode))
		return (complain(address->sun_path, "exists and is no socket"));
	probe = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (probe < 0)
		return (complain(address->sun_path, strerror(errno)));
	answers = connect(probe, (const struct sockaddr *)address,
	    sizeof(*address)) == 0 || errno == EAGAIN;
	close(probe);
	if (answers)
		return (complain(address->sun_path, "another program serves "
		    "this socket"));
	if (unlink(address->sun_path) != 0)
		return (complain(address->sun_path, strerror(errno)));
	return (0);
}

int
device_listen(struct device *device, const char *path, uint64_t ring)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timespec now;
	mode_t mask;
	int done;

	if (strlen(path) >= sizeof(address.sun_path))
		return (complain(path, "too long for a Unix socket"));
	memcpy(address.sun_path, path, strlen(path));
	if (clear_path(&address) != 0)
		return (-1);
	if (ring_make(&device->rows, (uint32_t)ring) != 0 ||
	    ring_make(&device->answers, DEVICE_ANSWERS) != 0)
		return (complain(path, "no memory: lower `ring`"));
	device->listener = socket(AF_UNIX,
	    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (device->listener < 0)
		return (complain(path, strerror(errno)));
	mask = umask(0177);
	done = bind(device->listener, (struct sockaddr *)&address,
	    sizeof(address)) == 0;
	umask(mask);
	if (!done)
		return (complain(path, strerror(errno)));
	device->path = path;
	if (listen(device->listener, 8) != 0)
		return (complain(path, strerror(errno)));
	clock_gettime(CLOCK_REALTIME, &now);
	device->session = (uint64_t)now.tv_sec * 1000000000u +
	    (uint64_t)now.tv_nsec;
	return (0);
}

void
device_close(struct device *device)
{
	if (device->peer >= 0)
		close(device->peer);
	direct_close(&device->direct);
	if (device->listener >= 0)
		close(device->listener);
	if (device->path != NULL)
		unlink(device->path);
}

/* The connection is over, and the native law decides again at once. */
static void
hang_up(struct router *router)
{
	struct device *device = &router->device;

	close(device->peer);
	device->peer = -1;
	direct_close(&device->direct);
	device->subscribed = device->attached = device->blocked = 0;
	device->rows.count = device->answers.count = 0;
	device->staged = device->sent = device->received = 0;
	device->lost = 0;
	l4s_detach(&router->core);
}

/* Greeting and reason, for somebody who cannot come in. */
static void
send_away(struct router *router, int fd, unsigned code, const char *text)
{
	struct l4s_entry entry[2];

	router->device.refused++;
	device_hello(router, &entry[0]);
	device_error(&entry[1], code, 0, text);
	(void)send(fd, entry, sizeof(entry), MSG_DONTWAIT | MSG_NOSIGNAL);
	close(fd);
}

/* Whether the other end is closed, whatever of it is still unread. */
static int
has_gone(int fd)
{
	struct pollfd peer = { .fd = fd };

	return (poll(&peer, 1, 0) == 1 &&
	    (peer.revents & (POLLHUP | POLLERR)) != 0);
}

void
device_accept(struct router *router)
{
	struct device *device = &router->device;
	struct ucred peer;
	socklen_t length = sizeof(peer);
	int fd;

	fd = accept4(device->listener, NULL, NULL,
	    SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 ||
	    (peer.uid != 0 && peer.uid != geteuid())) {
		send_away(router, fd, L4S_E_REFUSED, "not your device");
		return;
	}
	if (device->peer >= 0 && has_gone(device->peer))
		hang_up(router);
	if (device->peer >= 0) {
		send_away(router, fd, L4S_E_BUSY, "one connection at a time: "
		    "for more, run l4s-bridged on this socket");
		return;
	}
	device->peer = fd;
	device->connection++;
	device->connections++;
	device->lost_here = 0;
	/* The ring is empty: there is room. */
	device_hello(router, ring_push(&device->answers));
}

/* Room for the answers to all commands of one turn, and for events. */
static int
has_room(const struct device *device)
{
	return (device->answers.size - device->answers.count >=
	    2 * DEVICE_COMMANDS);
}

short
device_wants(const struct device *device)
{
	return ((short)((has_room(device) ? POLLIN : 0) |
	    (device->blocked ? POLLOUT : 0)));
}

/* Commands while there is room for their answers; the others stay unread. */
void
device_read(struct router *router)
{
	struct device *device = &router->device;
	struct l4s_command command;
	size_t used = 0;
	uint64_t now_ns;
	ssize_t got;
	int bad = 0;

	if (!has_room(device))
		return;
	got = recv(device->peer, device->input + device->received,
	    sizeof(device->input) - device->received, MSG_DONTWAIT);
	if (got <= 0) {
		if (got == 0 || (errno != EAGAIN && errno != EINTR))
			hang_up(router);
		return;
	}
	device->received += (size_t)got;
	now_ns = clock_ns();
	pipe_advance(router, now_ns);
	direct_read(router, now_ns);	/* what was decided before */
	while (!bad && device->received - used >= sizeof(command)) {
		memcpy(&command, device->input + used, sizeof(command));
		used += sizeof(command);
		bad = device_command(router, &command, now_ns) != 0;
	}
	device->received -= used;
	memmove(device->input, device->input + used, device->received);
	if (bad) {
		device_flush(router);
		if (device->peer >= 0)
			hang_up(router);
	}
}

/* Fills the stage, answers first; a lost count goes with the next entry. */
static void
fill_stage(struct device *device)
{
	const struct l4s_entry *entry;
	size_t n = 0;

	while (n < DEVICE_STAGE) {
		entry = ring_pop(&device->answers);
		if (entry == NULL)
			entry = ring_pop(&device->rows);
		if (entry == NULL)
			break;
		device->stage[n] = *entry;
		if (entry->kind == L4S_ROW || entry->kind == L4S_ASK) {
			device->stage[n].lost = device->lost;
			device->lost = 0;
			if (entry->kind == L4S_ROW)
				device->rows_sent++;
			else
				device->asks_sent++;
		}
		n++;
	}
	device->staged = n * sizeof(device->stage[0]);
	device->sent = 0;
}

void
device_flush(struct router *router)
{
	struct device *device = &router->device;
	struct iovec rest;
	ssize_t done;
	int stages = 0;

	device->blocked = 0;
	for (;;) {
		if (device->sent == device->staged) {
			/* A fast reader must not keep packets waiting. */
			if (stages++ == DEVICE_TURN) {
				device->blocked = 1;
				return;
			}
			fill_stage(device);
		}
		if (device->staged == 0)
			return;
		rest.iov_base = (uint8_t *)device->stage + device->sent;
		rest.iov_len = device->staged - device->sent;
		done = pass_write(device->peer, &rest, 1,
		    &device->direct.passing);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0 && errno == EAGAIN) {
			device->blocked = 1;
			return;
		}
		if (done < 0) {
			hang_up(router);
			return;
		}
		device->sent += (size_t)done;
	}
}

/* Room for one more row; the oldest goes where there is none. */
static struct l4s_row *
push_row(struct device *device, uint8_t kind)
{
	struct l4s_entry *entry = ring_push(&device->rows);

	if (entry == NULL) {
		(void)ring_pop(&device->rows);
		device->lost++;
		device->lost_here++;
		device->rows_lost++;
		entry = ring_push(&device->rows);
	}
	l4s_entry_start(entry, kind, 0);
	return (&entry->u.row);
}

void
device_ask(struct router *router, const struct packet *packet)
{
	if (router->device.peer >= 0 && router->device.attached &&
	    direct_ask(&router->device, packet) != 0)
		l4s_entry_ask(push_row(&router->device, L4S_ASK),
		    &packet->core, &packet->totals);
}

void
device_row(struct router *router, struct packet *packet)
{
	struct device *device = &router->device;

	if (device->subscribed && packet->reader == device->connection)
		l4s_entry_row(push_row(device, L4S_ROW), &packet->core,
		    &packet->totals);
	packet->reader = 0;
}

void
device_events(struct router *router)
{
	struct device *device = &router->device;
	struct l4s_entry *entry;
	struct l4s_event *event;
	int i;

	for (i = 0; i < 2; i++) {
		event = &router->core.event[i];
		if (event->kind == L4S_EVENT_NONE)
			continue;
		if (device->subscribed || device->attached) {
			entry = ring_push(&device->answers);
			if (entry != NULL) {
				l4s_entry_start(entry, L4S_EVENT, 0);
				l4s_entry_event(&entry->u.event, event);
			}
		}
		event->kind = L4S_EVENT_NONE;
	}
}
