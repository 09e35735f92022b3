/*
 * SPDX-License-Identifier: MIT
 *
 * The end towards the queue: a character device, or the Unix socket of the
 * router. It comes and goes; the daemon tries again for as long as it runs.
 */
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bridge.h"
#include "events.h"
#include "log.h"

#define RETRY_MS 250u		/* the first time, then ever longer */
#define RETRY_MOST_MS 5000u
#define GREETING_MS 3000u	/* the device must say HELLO within it */

/* Room that decisions leave for commands that must not get lost. */
#define RESERVED_COMMANDS (DEVICE_COMMANDS / 2)

bool
device_init(struct bridge *b)
{
	struct device *d = &b->device;

	memset(d, 0, sizeof(*d));
	d->fd = d->passed = -1;
	d->in = calloc(DEVICE_ENTRIES, L4S_ENTRY_SIZE);
	return d->in != NULL;
}

/* Say what is wrong, once for as long as it stays the same. */
static void L4S_PRINTF(2, 0)
complain(struct device *d, const char *format, va_list arguments)
{
	char text[sizeof(d->complaint)];

	/* Told falsely from a run's second file on: */
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized) */
	(void)vsnprintf(text, sizeof(text), format, arguments);
	if (strcmp(text, d->complaint) == 0)
		return;
	memcpy(d->complaint, text, sizeof(text));
	say("%s", text);
}

static void
retry_later(struct device *d)
{
	unsigned factor = d->failures < 5 ? 1u << d->failures : 32;
	uint64_t wait = (uint64_t)RETRY_MS * factor;

	d->failures++;
	d->act_at_ms = now_ms() +
	    (wait < RETRY_MOST_MS ? wait : RETRY_MOST_MS);
}

void
device_lose(struct bridge *b, const char *format, ...)
{
	struct device *d = &b->device;
	bool was_there = d->there;
	va_list arguments;

	va_start(arguments, format);
	complain(d, format, arguments);
	va_end(arguments);
	if (d->fd >= 0)
		close(d->fd);
	d->fd = -1;
	pass_drop(&d->passed);
	d->there = d->rows = false;
	d->watched = WATCH_NONE;
	d->in_bytes = d->out_bytes = 0;
	retry_later(d);
	if (was_there)
		relay_device_lost(b);
}

static int
open_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd;

	memcpy(address.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address,
	    sizeof(address)) != 0) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static int
open_device(const char *path)
{
	struct stat status;
	int fd;

	fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd >= 0 && (fstat(fd, &status) != 0 ||
	    !S_ISCHR(status.st_mode))) {
		close(fd);
		errno = ENODEV;
		return -1;
	}
	return fd;
}

/* What may help against an error of open or connect. */
static const char *
remedy(int error, bool is_socket)
{
	switch (error) {
	case ENOENT:
	case ECONNREFUSED:
		return is_socket ? "start the router (l4s-router --device)" :
		    "load the module (kldload l4s)";
	case ENXIO:
	case ENODEV:
		return is_socket ? "give another --device" :
		    "this is no device: give --device unix:PATH for a socket";
	case EACCES:
	case EPERM:
		return "run the daemon as a user who may open it";
	case EBUSY:
	case EMFILE:
		return "somebody else has it open: stop the other program";
	default:
		return "see --device";
	}
}

static void
open_it(struct bridge *b)
{
	const struct options *o = b->options;
	struct device *d = &b->device;

	d->fd = o->device_is_socket ? open_socket(o->device) :
	    open_device(o->device);
	if (d->fd < 0) {
		device_lose(b, "%s: %s: %s; trying again", o->device,
		    strerror(errno), remedy(errno, o->device_is_socket));
		return;
	}
	if (!events_watch(b->events, d->fd, TAG_DEVICE, WATCH_NONE,
	    WATCH_IN)) {
		device_lose(b, "%s: %s: this is no device that can be waited "
		    "for: see --device", o->device, strerror(errno));
		return;
	}
	d->watched = WATCH_IN;
	d->act_at_ms = now_ms() + GREETING_MS;
}

void
device_tick(struct bridge *b)
{
	struct device *d = &b->device;

	if (d->there || now_ms() < d->act_at_ms)
		return;
	if (d->fd < 0)
		open_it(b);
	else
		device_lose(b, "%s does not say HELLO: is it busy with "
		    "another daemon? trying again", b->options->device);
}

/* NULL, or what is wrong with a HELLO. */
static const char *
check_hello(const struct l4s_entry *entry)
{
	static const uint8_t layout[8] = L4S_LAYOUT;
	const struct l4s_hello *hello = &entry->u.hello;

	if (entry->kind != L4S_HELLO)
		return "does not begin with HELLO: is it a queue's device?";
	if (hello->entry_size != L4S_ENTRY_SIZE ||
	    hello->command_size != L4S_COMMAND_SIZE)
		return "has other sizes of entries or commands: build the "
		    "daemon and the queue from the same source";
	if (hello->record_size != L4S_RECORD_SIZE ||
	    hello->schema_version != L4S_SCHEMA_VERSION ||
	    memcmp(hello->layout, layout, sizeof(layout)) != 0)
		return "has another layout of rows (size, schema version or "
		    "digest): build the daemon and the queue from the same "
		    "source";
	return NULL;
}

/*
 * The device that has another connection says so at once, before or right
 * after HELLO: that is no device that came and went.
 */
static bool
is_refusal(const struct device *d, struct l4s_entry *entry)
{
	for (size_t at = 0; at <= L4S_ENTRY_SIZE &&
	    d->in_bytes - at >= L4S_ENTRY_SIZE; at += L4S_ENTRY_SIZE) {
		memcpy(entry, d->in + at, sizeof(*entry));
		if (entry->magic != L4S_WIRE_MAGIC ||
		    entry->version != L4S_WIRE_VERSION)
			return false;
		if (entry->kind == L4S_ERROR && entry->tag == 0)
			return true;
	}
	return false;
}

static void
lose_by_refusal(struct bridge *b, const struct l4s_entry *entry)
{
	char text[sizeof(entry->u.error.text) + 1];

	printable(text, sizeof(text), entry->u.error.text,
	    sizeof(entry->u.error.text));
	device_lose(b, "%s refuses the daemon: %s; trying again",
	    b->options->device, text);
}

/* False: the device was lost over it. */
static bool
greet(struct bridge *b, const struct l4s_entry *entry)
{
	struct device *d = &b->device;
	const char *wrong = check_hello(entry);
	char text[sizeof(d->hello.name) + 1];

	if (wrong != NULL) {
		device_lose(b, "%s %s", b->options->device, wrong);
		return false;
	}
	d->hello = entry->u.hello;
	d->clock_offset_us = d->hello.clock_us - now_us();
	d->there = true;
	d->failures = 0;
	d->complaint[0] = '\0';
	printable(text, sizeof(text), d->hello.name, sizeof(d->hello.name));
	say("the queue is there: %s (%s)", text, b->options->device);
	relay_device_back(b);
	device_subscribe(b);
	return true;
}

/* False: the device was lost over it. */
static bool
take_entry(struct bridge *b, const struct l4s_entry *entry)
{
	struct device *d = &b->device;

	if (entry->magic != L4S_WIRE_MAGIC) {
		device_lose(b, "%s does not speak the protocol: give the "
		    "--device of a queue; trying again", b->options->device);
		return false;
	}
	if (entry->version != L4S_WIRE_VERSION) {
		device_lose(b, "%s speaks version %u of the protocol and the "
		    "daemon %d: update the older one; trying again",
		    b->options->device, entry->version, L4S_WIRE_VERSION);
		return false;
	}
	if (!d->there)
		return greet(b, entry);
	if (entry->kind <= L4S_HELLO || entry->kind > L4S_LAW) {
		device_lose(b, "%s sent an entry of kind %u: update the older "
		    "one of the two; trying again", b->options->device,
		    entry->kind);
		return false;
	}
	relay_entry(b, entry);
	return true;
}

static void
device_read(struct bridge *b)
{
	struct device *d = &b->device;
	size_t size = (size_t)DEVICE_ENTRIES * L4S_ENTRY_SIZE, at = 0;
	struct l4s_entry entry;
	ssize_t got;

	size -= d->in_bytes;
	got = b->options->device_is_socket ?
	    pass_read(d->fd, d->in + d->in_bytes, size, &d->passed) :
	    read(d->fd, d->in + d->in_bytes, size);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		device_lose(b, "%s was lost (%s): trying again",
		    b->options->device, got == 0 ? "closed" : strerror(errno));
		return;
	}
	d->in_bytes += (size_t)got;
	if (!d->there && is_refusal(d, &entry)) {
		lose_by_refusal(b, &entry);
		return;
	}
	for (; d->in_bytes - at >= L4S_ENTRY_SIZE; at += L4S_ENTRY_SIZE) {
		memcpy(&entry, d->in + at, sizeof(entry));
		if (!take_entry(b, &entry))
			return;
	}
	d->in_bytes -= at;
	memmove(d->in, d->in + at, d->in_bytes);
}

bool
device_send(struct bridge *b, const struct l4s_command *command)
{
	struct device *d = &b->device;
	size_t most = sizeof(d->out);

	if (!d->there)
		return false;
	if (command->kind == L4S_DECIDE)
		most -= (size_t)RESERVED_COMMANDS * L4S_COMMAND_SIZE;
	if (d->out_bytes + sizeof(*command) > most) {
		if (command->kind != L4S_DECIDE)
			device_lose(b, "%s takes no commands: trying again",
			    b->options->device);
		return false;
	}
	memcpy(d->out + d->out_bytes, command, sizeof(*command));
	d->out_bytes += sizeof(*command);
	b->again = true;
	return true;
}

void
device_subscribe(struct bridge *b)
{
	struct l4s_command command = { .magic = L4S_WIRE_MAGIC,
	    .version = L4S_WIRE_VERSION, .kind = L4S_SUBSCRIBE };
	bool wanted = false;

	for (uint32_t i = 0; i < b->options->clients; i++)
		wanted = wanted || b->clients[i].rows;
	if (!b->device.there || wanted == b->device.rows)
		return;
	b->device.rows = wanted;
	command.args[0] = wanted;
	(void)device_send(b, &command);
}

void
device_release(struct bridge *b)
{
	static const struct l4s_command detach = { .magic = L4S_WIRE_MAGIC,
	    .version = L4S_WIRE_VERSION, .kind = L4S_DETACH };

	if (b->controller == NOBODY)
		return;
	control_end(b);
	if (b->device.there)
		(void)device_send(b, &detach);
}

/*
 * Writes what can be written; false: the device is lost, by errno. *watch:
 * what to wait for. A character device that refuses one command does not tell
 * how many it took before it: it gets them one by one. Where it has no room for
 * an answer (ENOBUFS), there are answers to be read first.
 */
static bool
write_commands(struct bridge *b, unsigned *watch)
{
	struct device *d = &b->device;
	bool is_socket = b->options->device_is_socket;
	size_t at = 0;
	ssize_t sent = 1;

	while (at < d->out_bytes && sent > 0) {
		sent = write(d->fd, d->out + at,
		    is_socket ? d->out_bytes - at : L4S_COMMAND_SIZE);
		if (sent > 0)
			at += (size_t)sent;
	}
	if (at < d->out_bytes && (is_socket || errno != ENOBUFS))
		*watch |= WATCH_OUT;
	d->out_bytes -= at;
	memmove(d->out, d->out + at, d->out_bytes);
	return sent >= 0 || errno == EAGAIN || errno == EINTR ||
	    errno == ENOBUFS;
}

void
device_flush(struct bridge *b)
{
	struct device *d = &b->device;
	unsigned want = WATCH_IN;

	if (d->fd < 0)
		return;
	if (d->out_bytes > 0 && !write_commands(b, &want)) {
		device_lose(b, "%s was lost (%s): trying again",
		    b->options->device, strerror(errno));
		return;
	}
	if (!events_watch(b->events, d->fd, TAG_DEVICE, d->watched, want))
		want = WATCH_IN;	/* the next command tries again */
	d->watched = want;
}

void
device_happened(struct bridge *b, unsigned what)
{
	if (b->device.fd >= 0 && (what & WATCH_IN) != 0)
		device_read(b);
	/* What it can take now, device_flush() writes in each round. */
}

/* The queue decides for itself as soon as the connection ends. */
void
device_end(struct bridge *b)
{
	device_release(b);
	device_flush(b);
	if (b->device.fd >= 0)
		close(b->device.fd);
	b->device.fd = -1;
	pass_drop(&b->device.passed);
	free(b->device.in);
	b->device.in = NULL;
}
