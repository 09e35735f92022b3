/*
 * SPDX-License-Identifier: MIT
 *
 * What the daemon itself says.
 */
#include <stdio.h>
#include <string.h>

#include "bridge.h"
#include "log.h"

/* The queue's clock now, as well as it is known; 0 before the first HELLO. */
static uint64_t
queue_clock_us(const struct bridge *b)
{
	if (b->device.hello.entry_size == 0)	/* never seen */
		return 0;
	return now_us() + b->device.clock_offset_us;
}

void
entry_start(struct l4s_entry *entry, enum l4s_entry_kind kind, uint64_t tag)
{
	memset(entry, 0, sizeof(*entry));
	entry->magic = L4S_WIRE_MAGIC;
	entry->version = L4S_WIRE_VERSION;
	entry->kind = (uint8_t)kind;
	entry->tag = tag;
}

/* A text that fills its field up with NULs. */
static void
set_text(char *to, size_t size, const char *text)
{
	size_t length = strnlen(text, size - 1);

	memset(to, 0, size);
	memcpy(to, text, length);
}

void
tell_error(struct client *c, const struct l4s_command *command,
    enum l4s_error_code code, const char *text)
{
	struct l4s_entry entry;

	entry_start(&entry, L4S_ERROR, command->tag);
	entry.u.error.code = (uint16_t)code;
	entry.u.error.command = command->kind;
	set_text(entry.u.error.text, sizeof(entry.u.error.text), text);
	outbox_add_urgent(&c->out, &entry);
}

void
tell_hello(struct bridge *b, struct client *c)
{
	const struct l4s_hello ours = { .schema_version = L4S_SCHEMA_VERSION,
	    .record_size = L4S_RECORD_SIZE, .entry_size = L4S_ENTRY_SIZE,
	    .command_size = L4S_COMMAND_SIZE, .layout = L4S_LAYOUT };
	struct l4s_entry entry;
	char name[sizeof(ours.name)], theirs[sizeof(ours.name)];

	entry_start(&entry, L4S_HELLO, 0);
	entry.u.hello = b->device.there ? b->device.hello : ours;
	entry.u.hello.clock_us = queue_clock_us(b);
	entry.u.hello.ring_entries = b->options->ring;
	printable(theirs, sizeof(theirs), b->device.hello.name,
	    sizeof(b->device.hello.name));
	(void)snprintf(name, sizeof(name), "l4s-bridged%s%.19s",
	    b->device.there ? "/" : "", b->device.there ? theirs : "");
	set_text(entry.u.hello.name, sizeof(entry.u.hello.name), name);
	outbox_add_urgent(&c->out, &entry);
}

void
tell_event(struct bridge *b, struct client *c, enum l4s_event_kind kind,
    uint64_t value)
{
	struct l4s_entry entry;

	entry_start(&entry, L4S_EVENT, 0);
	entry.u.event.time_us = queue_clock_us(b);
	entry.u.event.value = value;
	entry.u.event.kind = (uint8_t)kind;
	outbox_add_urgent(&c->out, &entry);
}

void
tell_all(struct bridge *b, enum l4s_event_kind kind, uint64_t value)
{
	for (uint32_t i = 0; i < b->options->clients; i++)
		if (b->clients[i].fd >= 0 && !b->clients[i].closing)
			tell_event(b, &b->clients[i], kind, value);
	b->again = true;
}
