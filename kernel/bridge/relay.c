/*
 * SPDX-License-Identifier: MIT
 *
 * What the queue says, passed on to those whom it concerns.
 */
#include "bridge.h"
#include "log.h"

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
		control_answered(b, c, true, copy.u.status.interval);
}

/* An answer, to its asker alone: NULL where that one has gone. */
static struct client *
relay_answer(struct bridge *b, const struct l4s_entry *entry,
    struct pending *pending)
{
	struct l4s_entry copy = *entry;
	struct client *c = find_pending(b, entry->tag, pending);

	if (c == NULL || c->closing)
		return NULL;
	copy.tag = pending->client_tag;
	outbox_add_urgent(&c->out, &copy);
	return c;
}

static void
relay_error(struct bridge *b, const struct l4s_entry *entry)
{
	char text[sizeof(entry->u.error.text) + 1];
	struct pending pending;
	const struct client *c = relay_answer(b, entry, &pending);

	printable(text, sizeof(text), entry->u.error.text,
	    sizeof(entry->u.error.text));
	detail("the device says: %s", text);
	if (c != NULL && pending.kind == L4S_ATTACH)
		control_answered(b, c, false, 0);
}

void
relay_entry(struct bridge *b, const struct l4s_entry *entry)
{
	struct pending pending;

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
	case L4S_LAW:
		(void)relay_answer(b, entry, &pending);
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

	control_lost(b);
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
