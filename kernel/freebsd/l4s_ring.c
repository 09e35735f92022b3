/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The entries that wait for the readers of /dev/l4s: one ring for all, in which
 * every descriptor has a place of its own, and a few answers for each alone.
 * Whoever is too slow loses the oldest entries and is told how many.
 */
#include "l4s_include.h"

#include <sys/event.h>

#include "l4s_kern.h"

static struct l4s_softc *const sc = &l4s_softc;

/* Whether rows are of use to anybody. */
bool
l4s_watched(void)
{
	return (sc->subscribers > 0 || sc->log != 0);
}

static bool
wants(const struct l4s_client *client, const struct l4s_entry *entry,
    uint64_t number)
{
	bool row = client->subscribed && number >= client->rows_from;
	bool ask = client == sc->controller && number >= client->asks_from;

	switch (entry->kind) {
	case L4S_ROW:
		return (row);
	case L4S_ASK:
		return (ask);
	default:
		return (row || ask);
	}
}

static void
lose(struct l4s_client *client)
{
	client->lost++;
	client->lost_total++;
	sc->rows_lost++;
}

void
l4s_wake(struct l4s_client *client)
{
	if (client->sleeps)
		wakeup(client);
	client->sleeps = false;
	if (client->selects)
		selwakeup(&client->select);
	client->selects = false;
	KNOTE_LOCKED(&client->select.si_note, 0);
}

/* The place of the next entry; whoever has not read the oldest one loses it. */
static struct l4s_entry *
begin(uint8_t kind)
{
	struct l4s_entry *entry = &sc->ring[sc->head % sc->ring_entries];
	struct l4s_client *client;

	mtx_assert(&l4s_mtx, MA_OWNED);
	LIST_FOREACH(client, &sc->clients, link) {
		if (client->cursor + sc->ring_entries > sc->head)
			continue;
		if (wants(client, entry, client->cursor))
			lose(client);
		client->cursor++;
	}
	l4s_entry_start(entry, kind, 0);
	return (entry);
}

static void
end(const struct l4s_entry *entry)
{
	struct l4s_client *client;

	sc->head++;
	LIST_FOREACH(client, &sc->clients, link)
		if (wants(client, entry, sc->head - 1))
			l4s_wake(client);
}

/* The line of the testbed's kernel, for its tools; action counts from 1. */
static void
print_row(const struct l4s_record *r)
{
	printf("l4s_ecn_marking-start,%u,%u,%u,%u,%u,%u,%u,%u,%u,%u,%u,%u,%ju,"
	    "%u,%u,%u,%u,%ju,%ju,%u,%u,%u,%u,%u,end\n",
	    r->queue_type, r->qdelay_ref, r->tupdate, r->max_burst,
	    r->max_ecn_threshold, r->alpha, r->beta, r->flags,
	    r->burst_allowance, r->drop_probability, r->current_queue_delay,
	    r->queue_delay_old, (uintmax_t)r->accumulated_probability,
	    r->measurement_start, r->average_dequeue_time, r->dequeue_count,
	    r->status_flags, (uintmax_t)r->total_packets,
	    (uintmax_t)r->total_bytes, r->length_in_packets,
	    r->length_in_bytes, r->total_drops, r->packet_length,
	    r->action + 1U);
}

void
l4s_report_row(const struct l4s_item *item)
{
	struct l4s_entry *entry;

	sc->rows++;
	if (sc->log != 0)
		print_row(&item->packet.row);
	if (sc->subscribers == 0)
		return;
	entry = begin(L4S_ROW);
	l4s_entry_row(&entry->u.row, &item->packet, &item->totals);
	end(entry);
}

/* Nothing in it tells what has been decided about this packet. */
void
l4s_report_ask(const struct l4s_item *item)
{
	struct l4s_entry *entry;

	if (sc->controller == NULL)
		return;
	entry = begin(L4S_ASK);
	l4s_entry_ask(&entry->u.row, &item->packet, &item->totals);
	end(entry);
}

/* What the shield has done since the last look. */
void
l4s_report_events(struct l4s_core *c)
{
	struct l4s_entry *entry;
	struct l4s_event *event;

	for (int i = 0; i < 2; i++) {
		event = &c->event[i];
		if (event->kind == L4S_EVENT_NONE)
			continue;
		entry = begin(L4S_EVENT);
		l4s_entry_event(&entry->u.event, event);
		end(entry);
		event->kind = L4S_EVENT_NONE;
	}
}

/* A place for an entry of one descriptor, or NULL: it reads no answers. */
struct l4s_entry *
l4s_reply(struct l4s_client *client, uint8_t kind, uint64_t tag)
{
	struct l4s_entry *entry;

	if (client->replies == L4S_REPLIES)
		return (NULL);
	entry = &client->reply[(client->first_reply + client->replies) %
	    L4S_REPLIES];
	client->replies++;
	l4s_entry_start(entry, kind, tag);
	l4s_wake(client);
	return (entry);
}

bool
l4s_readable(struct l4s_client *client)
{
	mtx_assert(&l4s_mtx, MA_OWNED);
	while (client->cursor < sc->head && !wants(client,
	    &sc->ring[client->cursor % sc->ring_entries], client->cursor))
		client->cursor++;
	return (client->replies > 0 || client->cursor < sc->head);
}

/* Up to `room` entries, answers first; how many. */
unsigned int
l4s_take_entries(struct l4s_client *client, struct l4s_entry *entries,
    unsigned int room)
{
	unsigned int n;

	for (n = 0; n < room && l4s_readable(client); n++) {
		if (client->replies > 0) {
			entries[n] = client->reply[client->first_reply];
			client->first_reply++;
			client->first_reply %= L4S_REPLIES;
			client->replies--;
		} else {
			entries[n] = sc->ring[client->cursor %
			    sc->ring_entries];
			client->cursor++;
		}
		entries[n].lost = client->lost;
		client->lost = 0;
	}
	return (n);
}

/* Another ring; what is unread in the old one is lost. */
int
l4s_ring_resize(uint32_t entries)
{
	struct l4s_entry *ring, *old;
	struct l4s_client *client;

	ring = malloc(entries * sizeof(*ring), M_L4S, M_WAITOK | M_ZERO);
	mtx_lock(&l4s_mtx);
	if (sc->leaving) {
		mtx_unlock(&l4s_mtx);
		free(ring, M_L4S);
		return (ENXIO);
	}
	LIST_FOREACH(client, &sc->clients, link) {
		for (; client->cursor < sc->head; client->cursor++)
			if (wants(client, &sc->ring[client->cursor %
			    sc->ring_entries], client->cursor))
				lose(client);
	}
	old = sc->ring;
	sc->ring = ring;
	sc->ring_entries = entries;
	mtx_unlock(&l4s_mtx);
	free(old, M_L4S);
	return (0);
}
