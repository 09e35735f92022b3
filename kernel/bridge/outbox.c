/*
 * SPDX-License-Identifier: MIT
 */
#include "outbox.h"

#include <sys/types.h>
#include <sys/uio.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pass.h"

#define PIECES 32	/* of one write */

static struct l4s_entry *
row_at(const struct outbox *o, uint64_t number)
{
	return &o->rows[number % o->capacity];
}

static struct urgent *
urgent_at(struct outbox *o, uint64_t number)
{
	return &o->urgent[number % OUTBOX_URGENT];
}

bool
outbox_open(struct outbox *o, uint32_t capacity)
{
	memset(o, 0, sizeof(*o));
	o->rows = calloc(capacity, sizeof(*o->rows));
	o->capacity = capacity;
	return o->rows != NULL;
}

void
outbox_close(struct outbox *o)
{
	free(o->rows);
	o->rows = NULL;
}

bool
outbox_empty(const struct outbox *o)
{
	return o->rest == 0 && o->row_head == o->row_tail &&
	    o->urgent_head == o->urgent_tail;
}

size_t
outbox_room(const struct outbox *o)
{
	return OUTBOX_URGENT - (size_t)(o->urgent_tail - o->urgent_head);
}

static void
tell_lost(struct l4s_entry *entry, uint32_t count)
{
	entry->lost = count > UINT32_MAX - entry->lost ? UINT32_MAX :
	    entry->lost + count;
}

static uint32_t
lost_with(const struct l4s_entry *entry)
{
	return entry->lost == UINT32_MAX ? UINT32_MAX : entry->lost + 1;
}

/* The oldest row goes, and what comes next tells of it; the ring is full. */
static void
drop_row(struct outbox *o)
{
	uint64_t number = o->row_head++;
	uint32_t count = lost_with(row_at(o, number));
	struct l4s_entry *next = row_at(o, number + 1);

	for (uint64_t i = o->urgent_head; i != o->urgent_tail; i++) {
		struct urgent *u = urgent_at(o, i);

		if (u->after > number) {
			if (u->after == number + 1)
				next = &u->entry;
			break;
		}
	}
	tell_lost(next, count);
	o->lost++;
}

void
outbox_add_row(struct outbox *o, const struct l4s_entry *entry)
{
	struct l4s_entry *slot;

	if (o->row_tail - o->row_head == o->capacity)
		drop_row(o);
	slot = row_at(o, o->row_tail++);
	memcpy(slot, entry, sizeof(*slot));
	slot->lost = o->carried;
	slot->tag = 0;
	o->carried = 0;
}

void
outbox_add_urgent(struct outbox *o, const struct l4s_entry *entry)
{
	struct urgent *u;
	uint32_t lost = 0;

	if (outbox_room(o) == 0) {
		lost = lost_with(&urgent_at(o, o->urgent_head++)->entry);
		tell_lost(&urgent_at(o, o->urgent_head)->entry, lost);
		o->lost++;
	}
	u = urgent_at(o, o->urgent_tail++);
	u->after = o->row_tail;
	memcpy(&u->entry, entry, sizeof(u->entry));
	u->entry.lost = 0;
}

void
outbox_add_lost(struct outbox *o, uint32_t count)
{
	o->carried = count > UINT32_MAX - o->carried ? UINT32_MAX :
	    o->carried + count;
	o->lost += count;
}

void
outbox_forget_rows(struct outbox *o)
{
	o->row_head = o->row_tail;
}

/* A piece of the next write: urgent entries one by one, rows in runs. */
struct cursor {
	uint64_t row, urgent;
};

static bool
next_piece(struct outbox *o, struct cursor *at, struct iovec *piece)
{
	uint64_t end = o->row_tail, wrap;

	if (at->urgent != o->urgent_tail) {
		struct urgent *u = urgent_at(o, at->urgent);

		if (u->after <= at->row) {
			at->urgent++;
			piece->iov_base = &u->entry;
			piece->iov_len = sizeof(u->entry);
			return true;
		}
		end = u->after;
	}
	if (at->row == end)
		return false;
	wrap = at->row + o->capacity - at->row % o->capacity;
	if (end > wrap)
		end = wrap;
	piece->iov_base = row_at(o, at->row);
	piece->iov_len = (size_t)(end - at->row) * sizeof(struct l4s_entry);
	at->row = end;
	return true;
}

/* `sent` bytes of the pieces from head on have gone. */
static void
advance(struct outbox *o, size_t sent)
{
	struct cursor at = { o->row_head, o->urgent_head };

	while (sent > 0) {
		struct cursor before = at;
		struct iovec piece;
		size_t whole, over;

		if (!next_piece(o, &at, &piece))
			break;
		if (sent >= piece.iov_len) {
			sent -= piece.iov_len;
			continue;
		}
		whole = sent / L4S_ENTRY_SIZE;
		over = sent % L4S_ENTRY_SIZE;
		if (at.row != before.row)
			at.row = before.row + whole + (over > 0);
		/* What has begun must end, whatever is dropped meanwhile. */
		o->rest = over > 0 ? L4S_ENTRY_SIZE - over : 0;
		memcpy(o->partial, (uint8_t *)piece.iov_base +
		    whole * L4S_ENTRY_SIZE, L4S_ENTRY_SIZE);
		break;
	}
	o->row_head = at.row;
	o->urgent_head = at.urgent;
}

int
outbox_flush(struct outbox *o, int fd, int *passing)
{
	while (!outbox_empty(o)) {
		struct cursor at = { o->row_head, o->urgent_head };
		struct iovec pieces[PIECES];
		size_t asked = 0, rest = o->rest;
		ssize_t sent;
		int count = 0;

		if (rest > 0) {
			pieces[count].iov_base =
			    o->partial + L4S_ENTRY_SIZE - rest;
			pieces[count++].iov_len = rest;
		}
		while (count < PIECES && next_piece(o, &at, &pieces[count]))
			count++;
		for (int i = 0; i < count; i++)
			asked += pieces[i].iov_len;
		sent = pass_write(fd, pieces, count, passing);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return errno == EAGAIN || errno == ENOBUFS ? 0 : -1;
		if ((size_t)sent < rest) {
			o->rest = rest - (size_t)sent;
			return 0;
		}
		o->rest = 0;
		advance(o, (size_t)sent - rest);
		if ((size_t)sent < asked)
			return 0;
	}
	return 1;
}
