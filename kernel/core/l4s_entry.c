/*
 * SPDX-License-Identifier: BSD-2-Clause
 */
#include "l4s_entry.h"

void
l4s_entry_start(struct l4s_entry *entry, uint8_t kind, uint64_t tag)
{
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->magic = L4S_WIRE_MAGIC;
	entry->version = L4S_WIRE_VERSION;
	entry->kind = kind;
	entry->tag = tag;
}

void
l4s_entry_hello(struct l4s_hello *hello)
{
	static const uint8_t layout[] = L4S_LAYOUT;

	hello->schema_version = L4S_SCHEMA_VERSION;
	hello->record_size = L4S_RECORD_SIZE;
	hello->entry_size = L4S_ENTRY_SIZE;
	hello->command_size = L4S_COMMAND_SIZE;
	__builtin_memcpy(hello->layout, layout, sizeof(hello->layout));
}

void
l4s_entry_row(struct l4s_row *row, const struct l4s_packet *packet,
    const struct l4s_totals *totals)
{
	row->record = packet->row;
	row->served_bytes = totals->served_bytes;
	row->power_bytes = totals->power_bytes;
	row->delay_c_ns = totals->delay_c_ns;
	row->delay_l_ns = totals->delay_l_ns;
}

void
l4s_entry_ask(struct l4s_row *row, const struct l4s_packet *packet,
    const struct l4s_totals *totals)
{
	struct l4s_record *record = &row->record;

	l4s_entry_row(row, packet, totals);
	record->accumulated_probability =
	    record->accumulated_probability_before;
	record->action = record->applied_action = record->decided_by = 0;
}

void
l4s_entry_event(struct l4s_event_body *body, const struct l4s_event *event)
{
	body->time_us = event->time_ns / 1000;
	body->value = event->value;
	body->kind = event->kind;
	body->queue = event->queue;
}

uint32_t
l4s_fit(uint64_t value)
{
	return (value < UINT32_MAX ? (uint32_t)value : UINT32_MAX);
}

void
l4s_entry_bounds(struct l4s_status *status, const struct l4s_bounds *bounds)
{
	unsigned i = 0;

#define L4S_IN_FORCE(name) status->shield[i++] = l4s_fit(bounds->name);
	L4S_SHIELD(L4S_IN_FORCE)
#undef L4S_IN_FORCE
}

void
l4s_entry_status(struct l4s_status *status, const struct l4s_core *c)
{
	for (int i = 0; i < 2; i++) {
		const struct l4s_queue *q = &c->q[i];

		status->packets[i] = q->total_packets;
		status->agent[i] = q->decided[L4S_BY_AGENT];
		status->fallback[i] = q->decided[L4S_BY_FALLBACK];
		status->drops[i] = q->drops;
		status->marks[i] = q->marks;
		status->trips[i] = l4s_fit(q->trips);
		if (q->held_until_ns != 0)
			status->held |= (uint8_t)(1U << i);
	}
	for (int i = 0; i < L4S_REFUSALS; i++)
		status->refused[i] = l4s_fit(c->refused[i]);
	l4s_entry_bounds(status, &c->bounds);
	status->latency_p50_us = l4s_fit(l4s_latency_us(c, 500));
	status->latency_p99_us = l4s_fit(l4s_latency_us(c, 990));
}

bool
l4s_command_valid(const struct l4s_command *command)
{
	return (command->magic == L4S_WIRE_MAGIC &&
	    command->version == L4S_WIRE_VERSION && command->reserved == 0);
}

struct l4s_decision
l4s_command_decision(const struct l4s_command *command)
{
	return ((struct l4s_decision){
		.sequence = command->sequence,
		.expires_ns = command->expires_us < UINT64_MAX / 1000 ?
		    command->expires_us * 1000 : UINT64_MAX,
		.queue = command->queue,
		.action = command->action,
	});
}

bool
l4s_command_bounds(const struct l4s_command *command,
    struct l4s_bounds *bounds)
{
	struct l4s_params params;
	unsigned i = 0;

	l4s_params_default(&params, L4S_TESTBED);
#define L4S_ARGUMENT(name)                                                     \
	bounds->name = params.shield_##name = command->args[i++];
	L4S_SHIELD(L4S_ARGUMENT)
#undef L4S_ARGUMENT
	return (l4s_params_check(&params) < 0);
}
