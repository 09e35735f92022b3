/*
 * SPDX-License-Identifier: MIT
 *
 * What clients ask for. A command that cannot be one of ours ends the
 * connection; one that comes at the wrong time is answered by ERROR.
 */
#include <stdio.h>
#include <string.h>

#include "bridge.h"
#include "l4s_core.h"
#include "log.h"

#define TELL_EACH 1000	/* of the decisions without control */

static void
malformed(struct bridge *b, struct client *c,
    const struct l4s_command *command, const char *text)
{
	if (client_index(b, c) == b->controller)
		device_release(b);
	c->rows = false;
	outbox_forget_rows(&c->out);
	tell_error(c, command, L4S_E_MALFORMED, text);
	c->closing = true;
	c->close_by_ms = now_ms() + 1000;
	device_subscribe(b);
	b->again = true;
	detail("connection %d sent a malformed command: %s",
	    client_index(b, c), text);
}

/* CONFIGURE's args in their order, or the text of what is wrong. */
static const char *
check_shield(const struct l4s_command *command)
{
	static const struct { const char *name; uint64_t low, high; } all[] = {
#define ONE(name, normal, low, high, text) { #name, low, high },
		L4S_PARAMETERS(ONE)
#undef ONE
	};
	static char text[128];
	unsigned argument = 0;

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		uint32_t value;

		if (strncmp(all[i].name, "shield_", 7) != 0)
			continue;
		value = command->args[argument++];
		if (value >= all[i].low && value <= all[i].high)
			continue;
		(void)snprintf(text, sizeof(text), "CONFIGURE: %s is %u, and "
		    "must be from %llu to %llu", all[i].name, value,
		    (unsigned long long)all[i].low,
		    (unsigned long long)all[i].high);
		return text;
	}
	return NULL;
}

/* NULL where the command is well-formed, else what is wrong with it. */
static const char *
check(const struct l4s_command *command)
{
	if (command->magic != L4S_WIRE_MAGIC)
		return "the magic number is wrong: a command has 64 bytes and "
		    "begins with 4c 34";
	if (command->version != L4S_WIRE_VERSION)
		return "another version of the protocol: update the older "
		    "end";
	if (command->reserved != 0)
		return "reserved bytes are not 0";
	switch (command->kind) {
	case L4S_SUBSCRIBE:
		return command->args[0] <= 1 ? NULL :
		    "SUBSCRIBE: args[0] must be 0 or 1";
	case L4S_CONFIGURE:
		return check_shield(command);
	case L4S_ATTACH:
	case L4S_DETACH:
	case L4S_DECIDE:	/* a wrong one is counted by the queue */
	case L4S_GET_STATUS:
	case L4S_DIRECT:
	case L4S_SET_LAW:	/* a wrong one is refused by the queue */
	case L4S_GET_LAW:
	case L4S_SET_PROB:
		return NULL;
	default:
		return "there is no command of this kind";
	}
}

/* Passed to the queue under a tag of ours; the answer finds its way back. */
static bool
ask_device(struct bridge *b, struct client *c,
    const struct l4s_command *command)
{
	struct l4s_command ours = *command;
	unsigned i = 0;

	if (!b->device.there) {
		tell_error(c, command, L4S_E_NO_DEVICE, "the daemon has no "
		    "queue now: start the router or load the module");
		return false;
	}
	while (i < MAX_PENDING - 1 && c->pending[i].device_tag != 0)
		i++;
	ours.tag = ++b->device.serial << 8 | (uint64_t)client_index(b, c);
	c->pending[i] = (struct pending){ ours.tag, command->tag,
	    command->kind };
	c->pending_count++;
	return device_send(b, &ours);
}

/* A command with nothing in it but what its kind needs. */
static struct l4s_command
plain(const struct l4s_command *from)
{
	struct l4s_command command = { .magic = L4S_WIRE_MAGIC,
	    .version = L4S_WIRE_VERSION, .kind = from->kind,
	    .tag = from->tag };

	if (from->kind == L4S_ATTACH)
		command.args[0] = from->args[0];
	if (from->kind == L4S_CONFIGURE)
		memcpy(command.args, from->args,
		    L4S_BOUNDS * sizeof(from->args[0]));
	if (from->kind == L4S_SET_LAW)	/* and the lifetime */
		memcpy(command.args, from->args,
		    (L4S_FACTORS + 1) * sizeof(from->args[0]));
	if (from->kind == L4S_SET_PROB)
		memcpy(command.args, from->args, 3 * sizeof(from->args[0]));
	return command;
}

/* CONFIGURE with the tighter ones of a client's bounds and the daemon's. */
static void
tighten(const struct bridge *b, struct l4s_command *command)
{
	struct l4s_bounds bounds;
	unsigned i = 0;

#define L4S_ARGUMENT(name) bounds.name = command->args[i++];
	L4S_SHIELD(L4S_ARGUMENT)
#undef L4S_ARGUMENT
	bounds = l4s_tighter(bounds, &b->options->shield);
	i = 0;
#define L4S_ARGUMENT(name) command->args[i++] = (uint32_t)bounds.name;
	L4S_SHIELD(L4S_ARGUMENT)
#undef L4S_ARGUMENT
}

/* The daemon's own bounds, for a controller who asks for none. */
static void
send_bounds(struct bridge *b)
{
	struct l4s_command command = { .magic = L4S_WIRE_MAGIC,
	    .version = L4S_WIRE_VERSION, .kind = L4S_CONFIGURE };
	/* No bounds of a client's: the widest that CONFIGURE can say. */
	const struct l4s_bounds widest = { .drops = 65536, .window = 65536,
	    .hold_us = 1000 };
	unsigned i = 0;

#define L4S_ARGUMENT(name) command.args[i++] = (uint32_t)widest.name;
	L4S_SHIELD(L4S_ARGUMENT)
#undef L4S_ARGUMENT
	tighten(b, &command);
	(void)device_send(b, &command);
}

static void
attach(struct bridge *b, struct client *c, const struct l4s_command *command)
{
	if (b->controller != NOBODY && b->controller != client_index(b, c)) {
		tell_error(c, command, L4S_E_BUSY,
		    "somebody else controls: wait for EVENT CONTROLLER_LEFT");
		return;
	}
	if (b->device.there && b->controller == NOBODY)
		control_begin(b, c);
	if (ask_device(b, c, command) && b->options->shielded)
		send_bounds(b);
}

static void
decide(struct bridge *b, struct client *c, const struct l4s_command *command)
{
	struct l4s_command ours = plain(command);

	if (client_index(b, c) == b->controller) {
		ours.queue = command->queue;
		ours.action = command->action;
		ours.tag = 0;
		ours.sequence = command->sequence;
		ours.expires_us = command->expires_us;
		(void)device_send(b, &ours);
		return;
	}
	if (c->voided)	/* on its way when the queue was lost */
		return;
	if (c->uncontrolled++ % TELL_EACH == 0)
		tell_error(c, command, L4S_E_NOT_CONTROLLER, "DECIDE without "
		    "control: ATTACH first (told once in 1000 times)");
}

/* Whether the queue knows the command; where not, it would hang up. */
static bool
law_offered(const struct bridge *b, struct client *c,
    const struct l4s_command *command)
{
	bool needed = command->kind == L4S_SET_LAW ||
	    command->kind == L4S_GET_LAW ||
	    (command->kind == L4S_ATTACH && command->args[0] == 0);
	const struct l4s_hello *hello = &b->device.hello;
	bool offered = hello->law_lifetime_ms > 0;

	if (command->kind == L4S_SET_PROB) {
		needed = true;
		offered = hello->prob_high[0] > 0 || hello->prob_high[1] > 0;
	}
	if (!needed || !b->device.there || offered)
		return true;
	tell_error(c, command, L4S_E_NOT_OFFERED, "this queue is older: its "
	    "law or its probabilities cannot be set");
	return false;
}

void
command_take(struct bridge *b, struct client *c,
    const struct l4s_command *command)
{
	const char *wrong = check(command);
	struct l4s_command ours = plain(command);

	if (wrong != NULL) {
		malformed(b, c, command, wrong);
		return;
	}
	switch (command->kind) {
	case L4S_SUBSCRIBE:
		c->rows = command->args[0] == 1;
		device_subscribe(b);
		return;
	case L4S_ATTACH:
		if (law_offered(b, c, command))
			attach(b, c, &ours);
		return;
	case L4S_DECIDE:
		decide(b, c, command);
		return;
	case L4S_GET_STATUS:
	case L4S_GET_LAW:
		if (law_offered(b, c, command))
			(void)ask_device(b, c, &ours);
		return;
	default:
		break;
	}
	if (b->device.there && client_index(b, c) != b->controller) {
		tell_error(c, command, L4S_E_NOT_CONTROLLER,
		    "only the controller may do this: ATTACH first");
		return;
	}
	if (command->kind == L4S_DIRECT && b->device.there &&
	    !b->device.hello.direct) {
		tell_error(c, command, L4S_E_NOT_OFFERED, "DIRECT: this queue "
		    "has no socket for that");
		return;
	}
	if (!law_offered(b, c, command))
		return;
	if (command->kind == L4S_CONFIGURE)
		tighten(b, &ours);
	if (ask_device(b, c, &ours) && command->kind == L4S_DETACH)
		control_end(b);
}
