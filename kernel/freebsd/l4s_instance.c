/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The clock, the timer of the control laws, and the instances: which one
 * /dev/l4s speaks of, and what goes on when dummynet forgets it.
 */
#include "l4s_include.h"
#include "l4s_kern.h"

#define NS_PER_S 1000000000

struct mtx l4s_mtx;
/* Here for as long as the sysctls are, which outlive the module's events. */
MTX_SYSINIT(l4s_mtx, &l4s_mtx, "l4s", MTX_DEF);

struct l4s_softc l4s_softc;
static struct l4s_softc *const sc = &l4s_softc;

/* -- time */

/* Uptime in ns; it never runs backwards. */
uint64_t
l4s_now(void)
{
	uint64_t now = (uint64_t)sbttons(sbinuptime());

	mtx_assert(&l4s_mtx, MA_OWNED);
	if (now > sc->last_ns)
		sc->last_ns = now;
	return (sc->last_ns);
}

/* The earliest time of the kernel's clock that l4s_now() gives as `ns`. */
static sbintime_t
deadline(uint64_t ns)
{
	uint64_t rest = ((ns % NS_PER_S) << 32) + NS_PER_S - 1;

	return ((sbintime_t)(((ns / NS_PER_S) << 32) + rest / NS_PER_S));
}

static void
timer(void *arg __unused)
{
	struct l4s_si *si;
	uint64_t now = l4s_now();

	sc->armed_at = L4S_NEVER;
	TAILQ_FOREACH(si, &sc->instances, link) {
		/* A callout has no vnet of its own. */
		CURVNET_SET(si->vnet);
		if (l4s_next_update(&si->core) <= now)
			l4s_update(&si->core, now);
		CURVNET_RESTORE();
		l4s_arm(&si->core);
	}
}

/* See to it that the timer runs when this core's next update is due. */
void
l4s_arm(const struct l4s_core *c)
{
	uint64_t due = l4s_next_update(c);

	mtx_assert(&l4s_mtx, MA_OWNED);
	if (due >= sc->armed_at)
		return;
	sc->armed_at = due;
	callout_reset_sbt(&sc->callout, deadline(due), 0, timer, NULL,
	    C_ABSOLUTE);
}

/* -- the instance that /dev/l4s speaks of */

struct l4s_core *
l4s_current(void)
{
	if (sc->current != NULL)
		return (&sc->current->core);
	return (sc->parked.number != 0 ? &sc->parked.core : NULL);
}

/* After the list, the sysctl or the controller has changed. */
void
l4s_choose(void)
{
	struct l4s_si *si;
	uint64_t now = l4s_now();

	TAILQ_FOREACH(si, &sc->instances, link)
		if (sc->instance == 0 || si->number == sc->instance)
			break;
	if (si == sc->current)
		return;
	if (sc->current != NULL) {
		l4s_detach(&sc->current->core);
		l4s_set_model(&sc->current->core, NULL, now);
	}
	sc->current = si;
	if (si == NULL)
		return;
	sc->parked.number = 0;	/* another one's, if still there */
	l4s_set_model(&si->core, sc->model, now);
	if (sc->controller != NULL) {
		l4s_attach(&si->core, sc->interval);
		if (sc->tightened)
			l4s_tighten(&si->core, &sc->bounds);
	}
	l4s_arm(&si->core);
}

/* Checked parameters for everybody; queued packets stay. */
void
l4s_apply(const struct l4s_params *p)
{
	struct l4s_si *si;
	uint64_t now = l4s_now();

	sc->params = *p;
	TAILQ_FOREACH(si, &sc->instances, link) {
		l4s_configure(&si->core, p, now);
		l4s_arm(&si->core);
	}
}

/* Keep the core of an idle instance that dummynet is about to forget. */
static void
park(struct l4s_si *si)
{
	if (si->core.q[0].packets + si->core.q[1].packets > 0)
		return;
	l4s_detach(&si->core);
	l4s_set_model(&si->core, NULL, l4s_now());
	sc->parked.core = si->core;
	sc->parked.vnet = si->vnet;
	sc->parked.number = si->number;
}

static void
start(struct l4s_si *si)
{
	uint64_t now = l4s_now(), seed;

	if (sc->parked.number == si->number && sc->parked.vnet == si->vnet) {
		si->core = sc->parked.core;
		sc->parked.number = 0;
		l4s_configure(&si->core, &sc->params, now);
		return;
	}
	arc4rand(&seed, sizeof(seed), 0);
	l4s_init(&si->core, &sc->params, seed, now);
}

/* A new instance; the control laws of all run from here on. */
void
l4s_join(struct l4s_si *si, uint64_t rate_bps)
{
	mtx_assert(&l4s_mtx, MA_OWNED);
	start(si);
	si->core.rate_bps = rate_bps;
	TAILQ_INSERT_TAIL(&sc->instances, si, link);
	l4s_choose();
	l4s_arm(&si->core);
}

/* An instance goes: nothing refers to it any more but its packets. */
void
l4s_part(struct l4s_si *si)
{
	mtx_assert(&l4s_mtx, MA_OWNED);
	TAILQ_REMOVE(&sc->instances, si, link);
	if (si != sc->current)
		return;
	park(si);
	sc->current = NULL;
	l4s_choose();
}
