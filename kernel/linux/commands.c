/*
 * SPDX-License-Identifier: MIT
 *
 * What a connection may ask of the router, and the answers.
 */
#include <stdio.h>
#include <string.h>

#include "router.h"

void
entry_start(struct l4s_entry *entry, unsigned kind, uint64_t tag)
{
	memset(entry, 0, sizeof(*entry));
	entry->magic = L4S_WIRE_MAGIC;
	entry->version = L4S_WIRE_VERSION;
	entry->kind = (uint8_t)kind;
	entry->tag = tag;
}

void
device_hello(struct router *router, struct l4s_entry *entry)
{
	static const uint8_t layout[] = L4S_LAYOUT;
	static const char name[] = "l4s-router";
	struct l4s_hello *hello = &entry->u.hello;

	entry_start(entry, L4S_HELLO, 0);
	hello->schema_version = L4S_SCHEMA_VERSION;
	hello->record_size = L4S_RECORD_SIZE;
	hello->entry_size = L4S_ENTRY_SIZE;
	hello->command_size = L4S_COMMAND_SIZE;
	memcpy(hello->layout, layout, sizeof(hello->layout));
	hello->session = router->device.session;
	hello->clock_us = clock_ns() / 1000;
	hello->rate_bps = router->pipe.rate_bps;
	hello->ring_entries = router->device.rows.size;
	hello->variant = (uint8_t)router->core.p.variant;
	memcpy(hello->name, name, sizeof(name));
}

void
device_error(struct l4s_entry *entry, unsigned code, unsigned command,
    const char *text)
{
	entry_start(entry, L4S_ERROR, 0);
	entry->u.error.code = (uint16_t)code;
	entry->u.error.command = (uint8_t)command;
	snprintf(entry->u.error.text, sizeof(entry->u.error.text), "%s", text);
}

static uint32_t
fit(uint64_t value)
{
	return (value < UINT32_MAX ? (uint32_t)value : UINT32_MAX);
}

static void
status(struct router *router, uint64_t tag, uint64_t now_ns)
{
	struct l4s_entry *entry = ring_push(&router->device.answers);
	const struct l4s_core *core = &router->core;
	const struct l4s_queue *q = core->q;
	struct l4s_status *out;
	unsigned i;

	if (entry == NULL)
		return;
	entry_start(entry, L4S_STATUS, tag);
	out = &entry->u.status;
	out->clock_us = now_ns / 1000;
	for (i = 0; i < 2; i++) {
		out->packets[i] = q[i].total_packets;
		out->agent[i] = q[i].decided[L4S_BY_AGENT];
		out->fallback[i] = q[i].decided[L4S_BY_FALLBACK];
		out->drops[i] = q[i].drops;
		out->marks[i] = q[i].marks;
		out->trips[i] = fit(q[i].trips);
	}
	out->lost = router->device.lost_here;
	for (i = 0; i < L4S_REFUSALS; i++)
		out->refused[i] = fit(core->refused[i]);
	out->interval = fit(core->interval);
	out->latency_p50_us = fit(l4s_latency_us(core, 500));
	out->latency_p99_us = fit(l4s_latency_us(core, 990));
	out->held = (uint8_t)((q[0].held_until_ns != 0) |
	    (q[1].held_until_ns != 0) << 1);
	out->model = core->model != NULL;
	out->controls = router->device.attached != 0;
}

static int
refuse(struct router *router, const struct l4s_command *command, unsigned code,
    const char *text)
{
	struct l4s_entry *entry = ring_push(&router->device.answers);

	if (entry != NULL) {
		device_error(entry, code, command->kind, text);
		entry->tag = command->tag;
	}
	return (code == L4S_E_MALFORMED ? -1 : 0);
}

static int
configure(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	struct l4s_params params = router->core.p;

	if (!router->device.attached)
		return (refuse(router, command, L4S_E_NOT_CONTROLLER,
		    "CONFIGURE is the controller's: ATTACH first"));
	params.shield_c_us = command->args[0];
	params.shield_l_us = command->args[1];
	params.shield_drops = command->args[2];
	params.shield_window = command->args[3];
	params.shield_hold_us = command->args[4];
	if (l4s_params_check(&params) >= 0)
		return (refuse(router, command, L4S_E_MALFORMED,
		    "CONFIGURE: a bound of the shield is out of range"));
	l4s_configure(&router->core, &params, now_ns);
	status(router, command->tag, now_ns);
	return (0);
}

static void
decide(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	const struct l4s_decision decision = {
		.sequence = command->sequence,
		.expires_ns = command->expires_us < UINT64_MAX / 1000 ?
		    command->expires_us * 1000 : UINT64_MAX,
		.queue = command->queue,
		.action = command->action,
	};

	(void)l4s_decide(&router->core, &decision, now_ns);
}

static int
attach(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	if (command->args[0] == 0)
		return (refuse(router, command, L4S_E_MALFORMED,
		    "ATTACH: the interval must be 1 or more"));
	l4s_attach(&router->core, command->args[0]);
	router->device.attached = 1;
	status(router, command->tag, now_ns);
	return (0);
}

static int
detach(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	if (!router->device.attached)
		return (refuse(router, command, L4S_E_NOT_CONTROLLER,
		    "DETACH: you do not control"));
	l4s_detach(&router->core);
	router->device.attached = 0;
	status(router, command->tag, now_ns);
	return (0);
}

int
device_command(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	if (command->magic != L4S_WIRE_MAGIC ||
	    command->version != L4S_WIRE_VERSION || command->reserved != 0)
		return (refuse(router, command, L4S_E_MALFORMED,
		    "not a command of this protocol"));
	switch (command->kind) {
	case L4S_SUBSCRIBE:
		if (command->args[0] > 1)
			return (refuse(router, command, L4S_E_MALFORMED,
			    "SUBSCRIBE: 1 or 0"));
		router->device.subscribed = command->args[0] == 1;
		return (0);
	case L4S_ATTACH:
		return (attach(router, command, now_ns));
	case L4S_DETACH:
		return (detach(router, command, now_ns));
	case L4S_DECIDE:
		decide(router, command, now_ns);
		return (0);
	case L4S_CONFIGURE:
		return (configure(router, command, now_ns));
	case L4S_GET_STATUS:
		status(router, command->tag, now_ns);
		return (0);
	default:
		return (refuse(router, command, L4S_E_MALFORMED,
		    "no such command"));
	}
}
