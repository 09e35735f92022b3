/*
 * SPDX-License-Identifier: MIT
 *
 * What a connection may ask of the router, and the answers.
 */
#include <stdio.h>
#include <string.h>

#include "router.h"

void
device_hello(struct router *router, struct l4s_entry *entry)
{
	static const char name[] = "l4s-router";
	struct l4s_hello *hello = &entry->u.hello;

	l4s_entry_start(entry, L4S_HELLO, 0);
	l4s_entry_hello(hello, &router->core.own);
	hello->session = router->device.session;
	hello->clock_us = clock_ns() / 1000;
	hello->rate_bps = router->core.rate_bps;
	hello->ring_entries = router->device.rows.size;
	hello->direct = 1;
	memcpy(hello->name, name, sizeof(name));
}

void
device_error(struct l4s_entry *entry, unsigned code, unsigned command,
    const char *text)
{
	l4s_entry_start(entry, L4S_ERROR, 0);
	entry->u.error.code = (uint16_t)code;
	entry->u.error.command = (uint8_t)command;
	snprintf(entry->u.error.text, sizeof(entry->u.error.text), "%s", text);
}

static void
status(struct router *router, uint64_t tag, uint64_t now_ns)
{
	struct l4s_entry *entry = ring_push(&router->device.answers);
	struct l4s_status *out;

	if (entry == NULL)
		return;
	l4s_entry_start(entry, L4S_STATUS, tag);
	out = &entry->u.status;
	l4s_entry_status(out, &router->core);
	out->clock_us = now_ns / 1000;
	out->lost = router->device.lost_here;
	out->interval = l4s_fit(router->core.interval);
	out->model = router->core.model != NULL;
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
	struct l4s_bounds bounds;

	if (!router->device.attached)
		return (refuse(router, command, L4S_E_NOT_CONTROLLER,
		    "CONFIGURE is the controller's: ATTACH first"));
	if (!l4s_command_bounds(command, &bounds))
		return (refuse(router, command, L4S_E_MALFORMED,
		    "CONFIGURE: a bound of the shield is out of range"));
	l4s_tighten(&router->core, &bounds);
	status(router, command->tag, now_ns);
	return (0);
}

static int
answer_law(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	struct l4s_entry *entry = ring_push(&router->device.answers);

	if (entry == NULL)
		return (0);
	l4s_entry_start(entry, L4S_LAW, command->tag);
	l4s_entry_law(&entry->u.law, &router->core, now_ns);
	return (0);
}

static int
set_law(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	if (!router->device.attached)
		return (refuse(router, command, L4S_E_NOT_CONTROLLER,
		    "this is the controller's: ATTACH first"));
	if (!l4s_command_law(command, &router->core, now_ns))
		return (refuse(router, command, L4S_E_OUT_OF_BOUNDS,
		    "out of the operator's bounds"));
	return (answer_law(router, command, now_ns));
}

void
device_decide(struct router *router, const struct l4s_command *command,
    uint64_t given_ns, uint64_t now_ns)
{
	struct l4s_decision decision = l4s_command_decision(command);

	decision.given_ns = given_ns;
	(void)l4s_decide(&router->core, &decision, now_ns);
}

static int
attach(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
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
	direct_close(&router->device.direct);
	status(router, command->tag, now_ns);
	return (0);
}

static int
direct(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	if (!router->device.attached)
		return (refuse(router, command, L4S_E_NOT_CONTROLLER,
		    "DIRECT is the controller's: ATTACH first"));
	if (direct_open(&router->device.direct) != 0)
		return (refuse(router, command, L4S_E_NOT_OFFERED,
		    "DIRECT: no more descriptors"));
	status(router, command->tag, now_ns);
	return (0);
}

int
device_command(struct router *router, const struct l4s_command *command,
    uint64_t now_ns)
{
	if (!l4s_command_valid(command))
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
		device_decide(router, command, now_ns, now_ns);
		return (0);
	case L4S_CONFIGURE:
		return (configure(router, command, now_ns));
	case L4S_DIRECT:
		return (direct(router, command, now_ns));
	case L4S_SET_LAW:
	case L4S_SET_PROB:
		return (set_law(router, command, now_ns));
	case L4S_GET_LAW:
		return (answer_law(router, command, now_ns));
	case L4S_GET_STATUS:
		status(router, command->tag, now_ns);
		return (0);
	default:
		return (refuse(router, command, L4S_E_MALFORMED,
		    "no such command"));
	}
}
