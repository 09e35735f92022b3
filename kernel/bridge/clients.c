/*
 * SPDX-License-Identifier: MIT
 *
 * The connections of readers and of the controller.
 */
#include <sys/socket.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bridge.h"
#include "events.h"
#include "log.h"

/* Room that answers leave for events. */
#define ROOM_FOR_EVENTS 32u

bool
clients_init(struct bridge *b)
{
	b->controller = NOBODY;
	b->clients = calloc(b->options->clients, sizeof(*b->clients));
	if (b->clients == NULL)
		return false;
	for (uint32_t i = 0; i < b->options->clients; i++)
		b->clients[i].fd = b->clients[i].passing = -1;
	return true;
}

/* Whether the answer to one more command has a place. */
bool
client_may_ask(const struct client *c)
{
	return !c->closing && c->pending_count < MAX_PENDING &&
	    outbox_room(&c->out) > c->pending_count + ROOM_FOR_EVENTS;
}

/* The last word to somebody who does not become a client. */
static void
turn_away(int fd, enum l4s_error_code code, const char *text)
{
	struct l4s_entry entry;
	ssize_t sent;

	entry_start(&entry, L4S_ERROR, 0);
	entry.u.error.code = (uint16_t)code;
	memcpy(entry.u.error.text, text, strlen(text));
	sent = send(fd, &entry, sizeof(entry), MSG_NOSIGNAL);
	(void)sent;
	close(fd);
}

static struct client *
free_client(struct bridge *b)
{
	for (uint32_t i = 0; i < b->options->clients; i++)
		if (b->clients[i].fd < 0)
			return &b->clients[i];
	return NULL;
}

static void
client_open(struct bridge *b, int fd)
{
	struct client *c = free_client(b);
	uint32_t tag;

	if (c == NULL) {
		turn_away(fd, L4S_E_TOO_MANY, "too many connections: end one, "
		    "or start l4s-bridged with more --clients");
		return;
	}
	tag = (uint32_t)TAG_CLIENT + (uint32_t)client_index(b, c);
	memset(c, 0, offsetof(struct client, out));
	c->fd = c->passing = -1;
	if (!outbox_open(&c->out, b->options->ring) ||
	    !events_watch(b->events, fd, tag, WATCH_NONE, WATCH_IN)) {
		outbox_close(&c->out);
		turn_away(fd, L4S_E_TOO_MANY, "no memory for one more "
		    "connection: start l4s-bridged with a smaller --ring");
		return;
	}
	c->fd = fd;
	c->watched = WATCH_IN;
	tell_hello(b, c);
	if (!b->device.there)
		tell_event(b, c, L4S_EVENT_DEVICE_LOST, 0);
	b->again = true;
}

void
clients_accept(struct bridge *b)
{
	int fd = accept4(b->listener.fd, NULL, NULL,
	    SOCK_CLOEXEC | SOCK_NONBLOCK);
	uid_t user = (uid_t)-1;

	if (fd < 0) {
		if (errno != EMFILE && errno != ENFILE && errno != ENOMEM &&
		    errno != ENOBUFS)
			return;
		/* It would be told without end: until the next tick. */
		say("cannot accept a connection (%s): raise the limit of open "
		    "files", strerror(errno));
		b->listening = !events_watch(b->events, b->listener.fd,
		    TAG_LISTENER, WATCH_IN, WATCH_NONE);
		return;
	}
	if (!peer_allowed(b->options, fd, &user)) {
		say("refused a connection of user %ld: see --allow-user",
		    (long)user);
		turn_away(fd, L4S_E_REFUSED, "this user may not connect: "
		    "start l4s-bridged with --allow-user or --group");
		return;
	}
	detail("a connection of user %ld", (long)user);
	client_open(b, fd);
}

void
client_close(struct bridge *b, struct client *c)
{
	detail("connection %d ends, %llu rows lost to it", client_index(b, c),
	    (unsigned long long)c->out.lost);
	if (client_index(b, c) == b->controller)
		device_release(b);
	close(c->fd);
	pass_drop(&c->passing);
	outbox_close(&c->out);
	memset(c, 0, offsetof(struct client, out));
	c->fd = c->passing = -1;
	device_subscribe(b);
	b->again = true;
}

/* The commands that came, as far as their answers have a place. */
static void
take_commands(struct bridge *b, struct client *c)
{
	size_t at = 0;

	while (c->in_bytes - at >= L4S_COMMAND_SIZE && client_may_ask(c)) {
		struct l4s_command command;

		memcpy(&command, c->in + at, sizeof(command));
		at += sizeof(command);
		command_take(b, c, &command);
		b->again = true;
	}
	c->in_bytes -= at;
	memmove(c->in, c->in + at, c->in_bytes);
}

static void
client_read(struct bridge *b, struct client *c)
{
	ssize_t got = read(c->fd, c->in + c->in_bytes,
	    sizeof(c->in) - c->in_bytes);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		client_close(b, c);
		return;
	}
	c->in_bytes += (size_t)got;
	take_commands(b, c);
}

void
client_happened(struct bridge *b, unsigned index, unsigned what)
{
	struct client *c = &b->clients[index];

	if (c->fd < 0)
		return;
	if ((what & WATCH_OUT) != 0)
		c->blocked = false;
	if ((what & WATCH_IN) != 0 && client_may_ask(c) &&
	    c->in_bytes < sizeof(c->in))
		client_read(b, c);
}

static void
client_settle(struct bridge *b, struct client *c)
{
	uint32_t tag = (uint32_t)TAG_CLIENT + (uint32_t)client_index(b, c);
	unsigned want = WATCH_NONE;
	int sent = 1;

	if (c->in_bytes >= L4S_COMMAND_SIZE)
		take_commands(b, c);
	if (!c->blocked)
		sent = outbox_flush(&c->out, c->fd, &c->passing);
	if (sent < 0 || (c->closing && outbox_empty(&c->out))) {
		client_close(b, c);
		return;
	}
	c->blocked = c->blocked || sent == 0;
	if (c->blocked)
		want |= WATCH_OUT;
	if (client_may_ask(c))
		want |= WATCH_IN;
	if (!events_watch(b->events, c->fd, tag, c->watched, want)) {
		client_close(b, c);
		return;
	}
	c->watched = want;
}

void
clients_settle(struct bridge *b)
{
	for (uint32_t i = 0; i < b->options->clients; i++)
		if (b->clients[i].fd >= 0)
			client_settle(b, &b->clients[i]);
}

void
clients_tick(struct bridge *b)
{
	uint64_t now = now_ms();

	for (uint32_t i = 0; i < b->options->clients; i++) {
		struct client *c = &b->clients[i];

		if (c->fd >= 0 && c->closing && now >= c->close_by_ms)
			client_close(b, c);
	}
}

void
clients_end(struct bridge *b)
{
	for (uint32_t i = 0; i < b->options->clients; i++)
		if (b->clients[i].fd >= 0) {
			close(b->clients[i].fd);
			pass_drop(&b->clients[i].passing);
			outbox_close(&b->clients[i].out);
		}
	free(b->clients);
	b->clients = NULL;
}
