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
l4s_entry_hello(struct l4s_hello *hello, const struct l4s_params *p)
{
	static const uint8_t layout[] = L4S_LAYOUT;
	uint64_t values[L4S_LAW_VALUES];
	uint32_t low, high;

	hello->schema_version = L4S_SCHEMA_VERSION;
	hello->record_size = L4S_RECORD_SIZE;
	hello->entry_size = L4S_ENTRY_SIZE;
	hello->command_size = L4S_COMMAND_SIZE;
	__builtin_memcpy(hello->layout, layout, sizeof(hello->layout));
	hello->variant = (uint8_t)p->variant;
	for (unsigned i = 0; i < L4S_FACTORS; i++) {
		l4s_law_range(p, i, &low, &high);
		hello->law_low[i] = low;
		hello->law_high[i] = high;
	}
	l4s_law_values(p, values);
	for (unsigned i = 0; i < L4S_LAW_VALUES; i++)
		hello->law_value[i] = l4s_fit(values[i]);
	hello->law_lifetime_ms = (uint32_t)p->law_lifetime_ms;
	hello->prob_high[0] = (uint32_t)p->prob_c_high;
	hello->prob_high[1] = (uint32_t)p->prob_l_high;
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

void
l4s_entry_law(struct l4s_law *law, struct l4s_core *c, uint64_t now_ns)
{
	const struct l4s_totals *totals = l4s_measure(c, now_ns);

	l4s_expire_law(c, now_ns);
	law->clock_us = now_ns / 1000;
	law->rate_bps = c->rate_bps;
	for (int i = 0; i < 2; i++) {
		const struct l4s_queue *q = &c->q[i];

		law->offered_bytes[i] = q->total_bytes;
		law->left_ns[i] = q->left_ns;
		law->offered[i] = (uint32_t)q->total_packets;
		law->left[i] = (uint32_t)q->left;
		law->marks[i] = (uint32_t)q->marks;
		law->drops[i] = (uint32_t)q->drops;
		law->queued_bytes[i] = (uint32_t)q->bytes;
		law->flows[i] = (uint16_t)l4s_flows(c, i, now_ns);
		law->set_prob[i] = c->by_prob ?
		    (uint32_t)(c->set_prob[i] >> 1) : L4S_NO_PROB;
	}
	law->served_bytes = totals->served_bytes;
	law->power_bytes = totals->power_bytes;
	law->delay_c_ns = totals->delay_c_ns;
	law->delay_l_ns = totals->delay_l_ns;
	law->prob = (uint32_t)l4s_probability(c);
	__builtin_memcpy(law->factor, c->factor, sizeof(law->factor));
	if (c->law_until_ns != L4S_NEVER)
		law->lasts_ms = l4s_fit((c->law_until_ns - now_ns + 999999) /
		    1000000);
	law->sets = (uint32_t)c->law_sets;
	law->expired = (uint32_t)c->law_expired;
	law->refused = (uint32_t)c->law_refused;
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

bool
l4s_command_law(const struct l4s_command *command, struct l4s_core *c,
    uint64_t now_ns)
{
	uint32_t factor[L4S_FACTORS], prob[2];

	if (command->kind == L4S_SET_PROB) {
		__builtin_memcpy(prob, command->args, sizeof(prob));
		return (l4s_set_prob(c, prob, command->args[2], now_ns));
	}
	__builtin_memcpy(factor, command->args, sizeof(factor));
	return (l4s_set_law(c, factor, command->args[L4S_FACTORS], now_ns));
}
