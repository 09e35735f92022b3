/*
 * SPDX-License-Identifier: MIT
 *
 * What waits to be sent to one client: a ring of rows (and asks), of which
 * the oldest go when it is full, and a small one of everything else (urgent),
 * which rows cannot push out. What is sent keeps the order of arrival, and
 * each entry tells how many were lost just before it.
 */
#ifndef L4S_OUTBOX_H
#define L4S_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "l4s_wire.h"

#define OUTBOX_URGENT 128u

struct urgent {
	uint64_t after;		/* goes out before the row of this number */
	struct l4s_entry entry;
};

struct outbox {
	struct l4s_entry *rows;		/* [capacity] */
	uint32_t capacity;
	uint32_t carried;	/* lost before the next row came here */
	uint64_t row_head, row_tail;	/* numbers: next out, next in */
	uint64_t urgent_head, urgent_tail;
	uint64_t lost;		/* in total */
	size_t rest;		/* bytes still to send of `partial` */
	uint8_t partial[L4S_ENTRY_SIZE];
	struct urgent urgent[OUTBOX_URGENT];
};

/* False: no memory. Capacity at least 2. */
bool outbox_open(struct outbox *o, uint32_t capacity);
void outbox_close(struct outbox *o);

bool outbox_empty(const struct outbox *o);

/* How many urgent entries can be added without pushing out the oldest. */
size_t outbox_room(const struct outbox *o);

void outbox_add_row(struct outbox *o, const struct l4s_entry *entry);
void outbox_add_urgent(struct outbox *o, const struct l4s_entry *entry);

/* Entries that this client would have got were lost before they came here. */
void outbox_add_lost(struct outbox *o, uint32_t count);

/* Forget the rows that wait: the client is to be closed. */
void outbox_forget_rows(struct outbox *o);

/*
 * 1: all is sent; 0: the socket is full; -1: the client is gone. `passing`
 * goes along, see pass.h.
 */
int outbox_flush(struct outbox *o, int fd, int *passing);

#endif
