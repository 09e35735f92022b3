/*
 * SPDX-License-Identifier: MIT
 *
 * A ring of wire entries, made once.
 */
#include <stdlib.h>
#include <string.h>

#include "router.h"

int
ring_make(struct ring *ring, uint32_t size)
{
	ring->entry = calloc(size, sizeof(*ring->entry));
	ring->size = size;
	ring->head = ring->count = 0;
	return (ring->entry == NULL ? -1 : 0);
}

struct l4s_entry *
ring_push(struct ring *ring)
{
	uint32_t slot;

	if (ring->count == ring->size)
		return (NULL);
	slot = ring->head + ring->count;
	if (slot >= ring->size)
		slot -= ring->size;
	ring->count++;
	return (&ring->entry[slot]);
}

const struct l4s_entry *
ring_pop(struct ring *ring)
{
	const struct l4s_entry *entry = &ring->entry[ring->head];

	if (ring->count == 0)
		return (NULL);
	ring->count--;
	if (++ring->head == ring->size)
		ring->head = 0;
	return (entry);
}
