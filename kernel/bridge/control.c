/*
 * SPDX-License-Identifier: MIT
 *
 * Who controls the queue.
 */
#include "bridge.h"

void
control_begin(struct bridge *b, struct client *c)
{
	b->controller = client_index(b, c);
	b->announced = false;
	c->uncontrolled = 0;
	c->voided = false;
}

void
control_answered(struct bridge *b, const struct client *c, bool accepted,
    uint64_t interval)
{
	if (client_index(b, c) != b->controller || b->announced)
		return;
	if (accepted) {
		b->announced = true;
		tell_all(b, L4S_EVENT_CONTROLLER_CAME, interval);
	} else
		control_end(b);
}

void
control_end(struct bridge *b)
{
	if (b->controller == NOBODY)
		return;
	b->controller = NOBODY;
	if (b->announced)
		tell_all(b, L4S_EVENT_CONTROLLER_LEFT, 0);
	b->announced = false;
}

void
control_lost(struct bridge *b)
{
	if (b->controller == NOBODY)
		return;
	b->clients[b->controller].voided = true;
	b->controller = NOBODY;
	b->announced = false;
}
