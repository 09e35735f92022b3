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
	struct l4s_entry *entry = l4s_reply(client, L4S_HELLO, 0);
	struct l4s_hello *hello = &entry->u.hello;
	const struct l4s_si *si = sc->current;

	l4s_entry_hello(hello, &sc->params);
	hello->session = sc->session;
	hello->clock_us = l4s_now() / 1000;
	hello->rate_bps = si != NULL ? si->core.rate_bps : 0;
	hello->ring_entries = sc->ring_entries;
	strlcpy(hello->name, "dn_sched_l4s", sizeof(hello->name));
}

void
l4s_status(const struct l4s_client *client, struct l4s_status *status)
{
	const struct l4s_core *c = l4s_current();
	struct l4s_bounds bounds = l4s_bounds_of(&sc->params);

	bzero(status, sizeof(*status));
	status->clock_us = l4s_now() / 1000;
	status->lost = client->lost_total;
	status->interval = sc->controller != NULL ? l4s_fit(sc->interval) : 0;
	status->model = sc->model != NULL;
	status->controls = client == sc->controller;
	if (sc->tightened)
		bounds = l4s_tighter(bounds, &sc->bounds);
	l4s_entry_bounds(status, &bounds);
	if (c != NULL)
		l4s_entry_status(status, c);
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
	if (sc->controller != NULL && sc->controller != client)
		return (refuse(client, command, L4S_E_BUSY,
		    "another descriptor controls the queue"));
	sc->controller = client;
	sc->interval = command->args[0];
	sc->tightened = false;
	client->asks_from = sc->head;
	if (sc->current != NULL)
		l4s_attach(&sc->current->core, sc->interval);
	return (answer_status(client, command));
}

static void
detach(void)
{
	struct l4s_core *c = l4s_current();

	sc->controller = NULL;
	sc->tightened = false;
	if (c != NULL)
		l4s_detach(c);
}

static int
configure(struct l4s_client *client, const struct l4s_command *command)
{
	struct l4s_bounds bounds;

	if (sc->controller != client)
		return (refuse(client, command, L4S_E_NOT_CONTROLLER,
		    "CONFIGURE is the controller's: ATTACH first"));
	if (!l4s_command_bounds(command, &bounds))
		return (EINVAL);
	sc->bounds = bounds;
	sc->tightened = true;
	if (sc->current != NULL)
		l4s_tighten(&sc->current->core, &bounds);
	return (answer_status(client, command));
}

/* SET_LAW, SET_PROB and GET_LAW; the error says why it was refused. */
int
l4s_law_now(struct l4s_client *client, const struct l4s_command *command,
    struct l4s_law *law)
{
	struct l4s_core *c = l4s_current();
	uint64_t now = l4s_now();
	bool sets = command->kind == L4S_SET_LAW ||
	    command->kind == L4S_SET_PROB;

	if (!l4s_command_valid(command) ||
	    (!sets && command->kind != L4S_GET_LAW))
		return (EINVAL);
	if (sets && sc->controller != client)
		return (EPERM);
	if (c == NULL)
		return (ENXIO);
	if (sets && !l4s_command_law(command, c, now))
		return (ERANGE);
	bzero(law, sizeof(*law));
	l4s_entry_law(law, c, now);
	return (0);
}

static int
answer_law(struct l4s_client *client, const struct l4s_command *command)
{
	struct l4s_law law;

	switch (l4s_law_now(client, command, &law)) {
	case 0:
		l4s_reply(client, L4S_LAW, command->tag)->u.law = law;
		return (0);
	case EPERM:
		return (refuse(client, command, L4S_E_NOT_CONTROLLER,
		    "this is the controller's: ATTACH first"));
	case ENXIO:
		return (refuse(client, command, L4S_E_NO_DEVICE,
		    "there is no scheduler of this kind now"));
	case ERANGE:
		return (refuse(client, command, L4S_E_OUT_OF_BOUNDS,
		    "out of the operator's bounds"));
	default:
		return (EINVAL);
	}
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
	const struct l4s_decision decision = l4s_command_decision(command);
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
	if (!l4s_command_valid(command))
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
	case L4S_SET_LAW:
	case L4S_GET_LAW:
	case L4S_SET_PROB:
		return (answer_law(client, command));
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
