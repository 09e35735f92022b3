/*
 * SPDX-License-Identifier: MIT
 *
 * What the queue says, passed on to those whom it concerns; and what the
 * daemon itself says.
 */
#include <stdio.h>
#include <string.h>

#include "bridge.h"
#include "log.h"

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
	entry.u.hello.clock_us = device_clock_us(b);
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
	entry.u.event.time_us = device_clock_us(b);
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

static void
relay_row(struct bridge *b, const struct l4s_entry *entry)
{
	for (uint32_t i = 0; i < b->options->clients; i++)
		if (b->clients[i].rows)
			outbox_add_row(&b->clients[i].out, entry);
}

/*
 * What was lost on the way to the daemon is lost to the readers of rows. Where
 * nobody reads rows, only asks can have been lost.
 */
static void
relay_lost(struct bridge *b, uint32_t lost)
{
	if (!b->device.rows && b->controller != NOBODY)
		outbox_add_lost(&b->clients[b->controller].out, lost);
	for (uint32_t i = 0; i < b->options->clients; i++)
		if (b->clients[i].rows)
			outbox_add_lost(&b->clients[i].out, lost);
}

static void
relay_event(struct bridge *b, const struct l4s_entry *entry)
{
	struct l4s_entry copy = *entry;

	/* Who comes and goes, the daemon tells; the shield is the queue's. */
	if (copy.u.event.kind >= L4S_EVENT_CONTROLLER_CAME)
		return;
	copy.tag = 0;
	for (uint32_t i = 0; i < b->options->clients; i++)
		if (b->clients[i].fd >= 0 && !b->clients[i].closing)
			outbox_add_urgent(&b->clients[i].out, &copy);
}

/* The question that an answer answers, taken off the table. */
static struct client *
find_pending(struct bridge *b, uint64_t tag, struct pending *found)
{
	uint32_t index = (uint32_t)(tag & 0xff);
	struct client *c;

	if (tag == 0 || index >= b->options->clients)
		return NULL;
	c = &b->clients[index];
	if (c->fd < 0)
		return NULL;
	for (unsigned i = 0; i < MAX_PENDING; i++) {
		if (c->pending[i].device_tag != tag)
			continue;
		*found = c->pending[i];
		c->pending[i].device_tag = 0;
		c->pending_count--;
		b->again = true;
		return c;
	}
	return NULL;
}

static void
attach_answered(struct bridge *b, struct client *c, bool accepted,
    uint64_t interval)
{
	if (client_index(b, c) != b->controller || b->announced)
		return;
	if (accepted) {
		b->announced = true;
		tell_all(b, L4S_EVENT_CONTROLLER_CAME, interval);
	} else
		control_end(b, false);
}

static void
relay_status(struct bridge *b, const struct l4s_entry *entry)
{
	struct l4s_entry copy = *entry;
	struct pending pending;
	struct client *c = find_pending(b, entry->tag, &pending);

	if (c == NULL || c->closing)
		return;
	if (pending.kind == L4S_DIRECT) {
		pass_drop(&c->passing);
		c->passing = b->device.passed;
		b->device.passed = -1;
	}
	copy.tag = pending.client_tag;
	copy.u.status.lost = c->out.lost;
	copy.u.status.controls = client_index(b, c) == b->controller;
	outbox_add_urgent(&c->out, &copy);
	if (pending.kind == L4S_ATTACH)
		attach_answered(b, c, true, copy.u.status.interval);
}

static void
relay_error(struct bridge *b, const struct l4s_entry *entry)
{
	struct l4s_entry copy = *entry;
	char text[sizeof(entry->u.error.text) + 1];
	struct pending pending;
	struct client *c = find_pending(b, entry->tag, &pending);

	printable(text, sizeof(text), entry->u.error.text,
	    sizeof(entry->u.error.text));
	detail("the device says: %s", text);
	if (c == NULL || c->closing)
		return;
	copy.tag = pending.client_tag;
	outbox_add_urgent(&c->out, &copy);
	if (pending.kind == L4S_ATTACH)
		attach_answered(b, c, false, 0);
}

void
relay_entry(struct bridge *b, const struct l4s_entry *entry)
{
	if (entry->lost > 0)
		relay_lost(b, entry->lost);
	switch (entry->kind) {
	case L4S_ROW:
		relay_row(b, entry);
		break;
	case L4S_ASK:
		if (b->controller != NOBODY)
			outbox_add_row(&b->clients[b->controller].out, entry);
		break;
	case L4S_EVENT:
		relay_event(b, entry);
		break;
	case L4S_STATUS:
		relay_status(b, entry);
		break;
	default:
		relay_error(b, entry);
		break;
	}
}

void
relay_device_lost(struct bridge *b)
{
	static const char text[] = "the daemon lost the queue: wait for "
	    "EVENT DEVICE_BACK and try again";

	if (b->controller != NOBODY) {
		b->clients[b->controller].voided = true;
		b->controller = NOBODY;
		b->announced = false;
	}
	for (uint32_t i = 0; i < b->options->clients; i++) {
		struct client *c = &b->clients[i];

		for (unsigned j = 0; c->fd >= 0 && j < MAX_PENDING; j++) {
			struct l4s_command asked = { 0 };

			if (c->pending[j].device_tag == 0)
				continue;
			asked.kind = c->pending[j].kind;
			asked.tag = c->pending[j].client_tag;
			c->pending[j].device_tag = 0;
			c->pending_count--;
			if (!c->closing)
				tell_error(c, &asked, L4S_E_NO_DEVICE, text);
		}
	}
	tell_all(b, L4S_EVENT_DEVICE_LOST, 0);
}

void
relay_device_back(struct bridge *b)
{
	for (uint32_t i = 0; i < b->options->clients; i++) {
		struct client *c = &b->clients[i];

		if (c->fd < 0 || c->closing)
			continue;
		tell_hello(b, c);
		tell_event(b, c, L4S_EVENT_DEVICE_BACK,
		    b->device.hello.session);
	}
	b->again = true;
}
