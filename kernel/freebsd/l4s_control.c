/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Commands of the readers of /dev/l4s, and the answers. l4s_mtx is held.
 */
#include "l4s_include.h"
#include "l4s_kern.h"

static struct l4s_softc *const sc = &l4s_softc;

void
l4s_hello(struct l4s_client *client)
{
	static const uint8_t layout[] = L4S_LAYOUT;
	struct l4s_entry *entry = l4s_reply(client, L4S_HELLO, 0);
	struct l4s_hello *hello = &entry->u.hello;
	const struct l4s_si *si = sc->current;

	hello->schema_version = L4S_SCHEMA_VERSION;
	hello->record_size = L4S_RECORD_SIZE;
	hello->entry_size = L4S_ENTRY_SIZE;
	hello->command_size = L4S_COMMAND_SIZE;
	memcpy(hello->layout, layout, sizeof(hello->layout));
	hello->session = sc->session;
	hello->clock_us = l4s_now() / 1000;
	hello->rate_bps = si != NULL ? si->rate_bps : 0;
	hello->ring_entries = sc->ring_entries;
	hello->variant = (uint8_t)sc->params.variant;
	strlcpy(hello->name, "dn_sched_l4s", sizeof(hello->name));
}

static uint32_t
fit(uint64_t value)
{
	return (value < UINT32_MAX ? (uint32_t)value : UINT32_MAX);
}

static void
core_status(const struct l4s_core *c, struct l4s_status *status)
{
	for (int i = 0; i < 2; i++) {
		const struct l4s_queue *q = &c->q[i];

		status->packets[i] = q->total_packets;
		status->agent[i] = q->decided[L4S_BY_AGENT];
		status->fallback[i] = q->decided[L4S_BY_FALLBACK];
		status->drops[i] = q->drops;
		status->marks[i] = q->marks;
		status->trips[i] = fit(q->trips);
		if (q->held_until_ns != 0)
			status->held |= (uint8_t)(1U << i);
	}
	for (int i = 0; i < L4S_REFUSALS; i++)
		status->refused[i] = fit(c->refused[i]);
	status->latency_p50_us = fit(l4s_latency_us(c, 500));
	status->latency_p99_us = fit(l4s_latency_us(c, 990));
}

void
l4s_status(const struct l4s_client *client, struct l4s_status *status)
{
	const struct l4s_core *c = l4s_current();

	bzero(status, sizeof(*status));
	status->clock_us = l4s_now() / 1000;
	status->lost = client->lost_total;
	status->interval = sc->controller != NULL ? fit(sc->interval) : 0;
	status->model = sc->model != NULL;
	status->controls = client == sc->controller;
	if (c != NULL)
		core_status(c, status);
}

static int
answer_status(struct l4s_client *client, const struct l4s_command *command)
{
	struct l4s_entry *entry = l4s_reply(client, L4S_STATUS, command->tag);

	l4s_status(client, &entry->u.status);
	return (0);
}

static int
refuse(struct l4s_client *client, const struct l4s_command *command,
    uint16_t code, const char *text)
{
	struct l4s_entry *entry = l4s_reply(client, L4S_ERROR, command->tag);
	struct l4s_error *error = &entry->u.error;

	error->code = code;
	error->command = command->kind;
	strlcpy(error->text, text, sizeof(error->text));
	return (0);
}

static int
subscribe(struct l4s_client *client, const struct l4s_command *command)
{
	bool wanted = command->args[0] == 1;

	if (command->args[0] > 1)
		return (EINVAL);
	if (wanted && !client->subscribed) {
		client->rows_from = sc->head;
		sc->subscribers++;
	} else if (!wanted && client->subscribed) {
		sc->subscribers--;
	}
	client->subscribed = wanted;
	return (0);
}

static int
attach(struct l4s_client *client, const struct l4s_command *command)
{
	if (command->args[0] == 0)
		return (EINVAL);
	if (sc->controller != NULL && sc->controller != client)
		return (refuse(client, command, L4S_E_BUSY,
		    "another descriptor controls the queue"));
	sc->controller = client;
	sc->interval = command->args[0];
	client->asks_from = sc->head;
	if (sc->current != NULL)
		l4s_attach(&sc->current->core, sc->interval);
	return (answer_status(client, command));
}

static void
detach(void)
{
	sc->controller = NULL;
	if (sc->current != NULL)
		l4s_detach(&sc->current->core);
}

static int
configure(struct l4s_client *client, const struct l4s_command *command)
{
	struct l4s_params params = sc->params;

	if (sc->controller != client)
		return (refuse(client, command, L4S_E_NOT_CONTROLLER,
		    "CONFIGURE is the controller's: ATTACH first"));
	params.shield_c_us = command->args[0];
	params.shield_l_us = command->args[1];
	params.shield_drops = command->args[2];
	params.shield_window = command->args[3];
	params.shield_hold_us = command->args[4];
	if (l4s_params_check(&params) >= 0)
		return (EINVAL);
	l4s_apply(&params);
	return (answer_status(client, command));
}

/* A decision; the error says why it was refused. */
int
l4s_decide_now(struct l4s_client *client, const struct l4s_command *command)
{
	static const int errors[L4S_REFUSALS] = {
		[L4S_ACCEPTED] = 0,
		[L4S_DETACHED] = EPERM,
		[L4S_MALFORMED] = EINVAL,
		[L4S_EXPIRED] = ETIMEDOUT,
		[L4S_OUT_OF_ORDER] = ESTALE,
		[L4S_UNASKED] = ESRCH,
		[L4S_SHIELDED] = EACCES,
	};
	const struct l4s_decision decision = {
		.sequence = command->sequence,
		.expires_ns = command->expires_us < UINT64_MAX / 1000 ?
		    command->expires_us * 1000 : UINT64_MAX,
		.queue = command->queue,
		.action = command->action,
	};
	struct l4s_core *c = l4s_current();

	if (c == NULL)
		return (ENXIO);
	if (sc->controller != client) {
		c->refused[L4S_DETACHED]++;
		return (EPERM);
	}
	return (errors[l4s_decide(c, &decision, l4s_now())]);
}

/*
 * One command. 0 where it was understood (a refusal is an ERROR entry then),
 * EINVAL where it is malformed, ENOBUFS where there is no room for the answer:
 * read some, and try again.
 */
int
l4s_command(struct l4s_client *client, const struct l4s_command *command)
{
	mtx_assert(&l4s_mtx, MA_OWNED);
	if (command->magic != L4S_WIRE_MAGIC ||
	    command->version != L4S_WIRE_VERSION || command->reserved != 0)
		return (EINVAL);
	if (command->kind == L4S_DECIDE) {
		(void)l4s_decide_now(client, command);
		return (0);
	}
	if (command->kind == L4S_SUBSCRIBE)
		return (subscribe(client, command));
	if (client->replies == L4S_REPLIES)
		return (ENOBUFS);
	switch (command->kind) {
	case L4S_ATTACH:
		return (attach(client, command));
	case L4S_DETACH:
		if (sc->controller != client)
			return (refuse(client, command, L4S_E_NOT_CONTROLLER,
			    "DETACH: you do not control"));
		detach();
		return (answer_status(client, command));
	case L4S_CONFIGURE:
		return (configure(client, command));
	case L4S_GET_STATUS:
		return (answer_status(client, command));
	default:
		return (EINVAL);
	}
}

/* A descriptor is closed: the native law decides again at once. */
void
l4s_leave(struct l4s_client *client)
{
	mtx_assert(&l4s_mtx, MA_OWNED);
	if (sc->controller == client)
		detach();
	if (client->subscribed)
		sc->subscribers--;
	LIST_REMOVE(client, link);
	sc->opens--;
}
