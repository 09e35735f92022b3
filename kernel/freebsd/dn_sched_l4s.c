/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The dummynet scheduler "l4s": what dummynet calls, and the module. What
 * becomes of a packet is decided in the core.
 */
#include "l4s_include.h"
#include "l4s_kern.h"

#define DN_SCHED_L4S 76		/* no other scheduler's */

/* dummynet takes what follows its instance for a queue, and looks into it. */
_Static_assert(offsetof(struct l4s_si, main_q) == sizeof(struct dn_sch_inst),
    "main_q");

MALLOC_DEFINE(M_L4S, "l4s", "dummynet's scheduler l4s");

static struct l4s_softc *const sc = &l4s_softc;
static struct dn_alg l4s_desc;

/* -- statistics, as ipfw(8) shows them */

static void
count_offered(struct l4s_si *si, const struct mbuf *m)
{
	uint64_t length = (uint64_t)m->m_pkthdr.len;

	si->_si.ni.tot_pkts++;
	si->_si.ni.tot_bytes += length;
	si->main_q.ni.tot_pkts++;
	si->main_q.ni.tot_bytes += length;
}

static void
count_queued(struct l4s_si *si, const struct mbuf *m)
{
	uint32_t length = (uint32_t)m->m_pkthdr.len;

	si->_si.ni.length++;
	si->_si.ni.len_bytes += length;
	si->main_q.ni.length++;
	si->main_q.ni.len_bytes += length;
}

static void
count_left(struct l4s_si *si, const struct mbuf *m)
{
	uint32_t length = (uint32_t)m->m_pkthdr.len;

	si->_si.ni.length--;
	si->_si.ni.len_bytes -= length;
	si->main_q.ni.length--;
	si->main_q.ni.len_bytes -= length;
	if (si->main_q.ni.length == 0)
		si->main_q.q_time = V_dn_cfg.curr_time;
}

static void
count_drop(struct l4s_si *si)
{
	si->_si.ni.drops++;
	si->main_q.ni.drops++;
	V_dn_cfg.io_pkt_drop++;
}

/* -- packets */

static void
free_item(struct l4s_item *item)
{
	m_freem(item->m);
	uma_zfree(sc->zone, item);
}

/* A row that is complete goes to the readers, once. */
static void
report(struct l4s_item *item)
{
	if (item->reported || !item->packet.row_ready)
		return;
	item->reported = true;
	l4s_report_row(item);
}

/* Offer a packet to the core; what it pushes out of the buffer is chained. */
static int
offer(struct l4s_si *si, struct l4s_item *item, struct l4s_packet **evicted)
{
	struct l4s_core *c = &si->core;
	bool watched = si == sc->current && l4s_watched();
	uint64_t now = l4s_now();
	struct l4s_packet *packet;
	int action;

	sc->packets++;
	c->rate_bps = si->_si.sched->link.bandwidth;
	if (watched)
		item->totals = *l4s_measure(c, now);
	item->reported = !watched;
	action = l4s_offer(c, &item->packet, now);
	if (item->packet.asks && si == sc->current)
		l4s_report_ask(item);
	report(item);
	if (si == sc->current)
		l4s_report_events(c);
	while ((packet = l4s_evict(c, now)) != NULL) {
		report((struct l4s_item *)packet);
		packet->next = *evicted;
		*evicted = packet;
	}
	l4s_arm(c);
	return (action);
}

/* Free what a full buffer pushed out; whether `mine` was among it. */
static bool
free_evicted(struct l4s_si *si, struct l4s_packet *packet,
    const struct l4s_item *mine)
{
	struct l4s_packet *next;
	bool found = false;

	for (; packet != NULL; packet = next) {
		next = packet->next;
		found = found || (struct l4s_item *)packet == mine;
		count_left(si, ((struct l4s_item *)packet)->m);
		count_drop(si);
		free_item((struct l4s_item *)packet);
	}
	return (found);
}

static int
l4s_enqueue(struct dn_sch_inst *_si, struct dn_queue *q __unused,
    struct mbuf *m)
{
	struct l4s_si *si = (struct l4s_si *)_si;
	struct l4s_packet *evicted = NULL;
	struct l4s_item *item;
	int action;

	count_offered(si, m);
	item = uma_zalloc(sc->zone, M_NOWAIT | M_ZERO);
	if (item == NULL)
		m_freem(m);
	else if ((m = l4s_parse(m, &item->packet)) == NULL)
		uma_zfree(sc->zone, item);
	if (item == NULL || m == NULL) {
		count_drop(si);
		mtx_lock(&l4s_mtx);
		sc->no_memory++;
		mtx_unlock(&l4s_mtx);
		return (1);
	}
	item->m = m;
	/* The interface may go while the packet waits. */
	if (m->m_pkthdr.rcvif != NULL)
		m_rcvif_serialize(m);
	mtx_lock(&l4s_mtx);
	action = offer(si, item, &evicted);
	mtx_unlock(&l4s_mtx);
	if (action == L4S_DROP) {
		count_drop(si);
		free_item(item);
		(void)free_evicted(si, evicted, NULL);
		return (1);
	}
	if (action == L4S_MARK)
		(void)ecn_mark(m);
	count_queued(si, m);
	return (free_evicted(si, evicted, item) ? 1 : 0);
}

static struct l4s_item *
take(struct l4s_si *si, int *action)
{
	struct l4s_packet *packet;

	mtx_lock(&l4s_mtx);
	packet = l4s_take(&si->core, l4s_now(), action);
	if (packet != NULL)
		report((struct l4s_item *)packet);
	l4s_arm(&si->core);
	mtx_unlock(&l4s_mtx);
	return ((struct l4s_item *)packet);
}

static struct mbuf *
l4s_dequeue(struct dn_sch_inst *_si)
{
	struct l4s_si *si = (struct l4s_si *)_si;
	struct l4s_item *item;
	struct mbuf *m;
	int action;

	while ((item = take(si, &action)) != NULL) {
		m = item->m;
		count_left(si, m);
		if (action == L4S_DROP || (m->m_pkthdr.rcvif != NULL &&
		    m_rcvif_restore(m) == NULL)) {
			count_drop(si);
			free_item(item);
			continue;
		}
		if (action == L4S_MARK)
			(void)ecn_mark(m);
		uma_zfree(sc->zone, item);
		return (m);
	}
	return (NULL);
}

/* -- schedulers and instances */

/*
 * Stock ipfw(8) passes no parameters for a scheduler that it does not know, so
 * they are sysctls, and `cfg` is nobody's business here. Called again when the
 * same scheduler is configured once more, with its packets in place.
 */
static int
l4s_config(struct dn_schk *_schk)
{
	struct l4s_schk *schk = (struct l4s_schk *)(_schk + 1);

	mtx_lock(&l4s_mtx);
	if (!schk->counted)
		l4s_desc.ref_count++;
	schk->counted = true;
	mtx_unlock(&l4s_mtx);
	return (0);
}

static int
l4s_destroy(struct dn_schk *_schk)
{
	struct l4s_schk *schk = (struct l4s_schk *)(_schk + 1);

	mtx_lock(&l4s_mtx);
	if (schk->counted)
		l4s_desc.ref_count--;
	schk->counted = false;
	if (sc->parked.number == _schk->sch.sched_nr &&
	    sc->parked.vnet == curvnet)
		sc->parked.number = 0;
	mtx_unlock(&l4s_mtx);
	return (0);
}

static int
l4s_new_sched(struct dn_sch_inst *_si)
{
	struct l4s_si *si = (struct l4s_si *)_si;
	struct dn_queue *q = &si->main_q;

	set_oid(&q->ni.oid, DN_QUEUE, sizeof(*q));
	q->_si = _si;
	q->fs = _si->sched->fs;
	si->vnet = curvnet;
	si->number = _si->sched->sch.sched_nr;
	mtx_lock(&l4s_mtx);
	l4s_desc.ref_count++;
	l4s_join(si, _si->sched->link.bandwidth);
	mtx_unlock(&l4s_mtx);
	return (0);
}

/*
 * dummynet frees the instance afterwards. Its packets wait in the core alone,
 * and no callout refers to it.
 */
static int
l4s_free_sched(struct dn_sch_inst *_si)
{
	struct l4s_si *si = (struct l4s_si *)_si;
	struct l4s_packet *packet, *next;

	mtx_lock(&l4s_mtx);
	l4s_desc.ref_count--;
	l4s_part(si);
	mtx_unlock(&l4s_mtx);
	for (int i = 0; i < 2; i++) {
		for (packet = si->core.q[i].head; packet != NULL;
		    packet = next) {
			next = packet->next;
			free_item((struct l4s_item *)packet);
		}
	}
	return (0);
}

static int
l4s_new_fsk(struct dn_fsk *fs __unused)
{
	return (0);
}

static int
l4s_free_fsk(struct dn_fsk *fs __unused)
{
	return (0);
}

/* Queues of flowsets: packets do not wait there, but in the instance. */
static int
l4s_new_queue(struct dn_queue *q __unused)
{
	return (0);
}

static int
l4s_free_queue(struct dn_queue *q __unused)
{
	return (0);
}

static int
l4s_getconfig(struct dn_schk *_schk __unused, struct dn_extra_parms *ep)
{
	const struct l4s_params *p = &sc->params;

	strlcpy(ep->name, "L4S", sizeof(ep->name));
	bzero(ep->par, sizeof(ep->par));
	mtx_lock(&l4s_mtx);
	ep->par[0] = (int64_t)p->target_us;
	ep->par[1] = (int64_t)p->tupdate_us;
	ep->par[2] = (int64_t)p->max_burst_us;
	ep->par[3] = (int64_t)p->max_ecn_threshold;
	ep->par[4] = (int64_t)p->alpha;
	ep->par[5] = (int64_t)p->beta;
	ep->par[6] = (int64_t)p->flags;
	ep->par[7] = (int64_t)p->variant;
	ep->par[8] = (int64_t)p->limit_packets;
	mtx_unlock(&l4s_mtx);
	return (0);
}

static struct dn_alg l4s_desc = {
	_SI( .type = ) DN_SCHED_L4S,
	_SI( .name = ) "L4S",
	_SI( .flags = ) 0,

	_SI( .schk_datalen = ) sizeof(struct l4s_schk),
	_SI( .si_datalen = ) sizeof(struct l4s_si) -
	    sizeof(struct dn_sch_inst),
	_SI( .q_datalen = ) 0,

	_SI( .enqueue = ) l4s_enqueue,
	_SI( .dequeue = ) l4s_dequeue,
	_SI( .config = ) l4s_config,
	_SI( .destroy = ) l4s_destroy,
	_SI( .new_sched = ) l4s_new_sched,
	_SI( .free_sched = ) l4s_free_sched,
	_SI( .new_fsk = ) l4s_new_fsk,
	_SI( .free_fsk = ) l4s_free_fsk,
	_SI( .new_queue = ) l4s_new_queue,
	_SI( .free_queue = ) l4s_free_queue,
	_SI( .getconfig = ) l4s_getconfig,
};

/* -- the module */

static void
discard(void)
{
	callout_drain(&sc->callout);
	if (sc->zone != NULL)
		uma_zdestroy(sc->zone);
	free(sc->ring, M_L4S);
	free(sc->model, M_L4S);
	sc->zone = NULL;
	sc->ring = NULL;
	sc->model = NULL;
}

static int
load(module_t mod, void *alg)
{
	struct l4s_params params;
	int error;

	bzero(sc, sizeof(*sc));
	l4s_params_default(&params, L4S_TESTBED);
	TAILQ_INIT(&sc->instances);
	LIST_INIT(&sc->clients);
	arc4rand(&sc->session, sizeof(sc->session), 0);
	callout_init_mtx(&sc->callout, &l4s_mtx, 0);
	sc->zone = uma_zcreate("l4s packets", sizeof(struct l4s_item), NULL,
	    NULL, NULL, NULL, UMA_ALIGN_PTR, 0);
	mtx_lock(&l4s_mtx);
	sc->params = params;
	sc->armed_at = L4S_NEVER;
	mtx_unlock(&l4s_mtx);
	error = l4s_ring_resize(L4S_RING_NORMAL);
	if (error == 0)
		error = l4s_dev_attach();
	if (error == 0) {
		error = dn_sched_modevent(mod, MOD_LOAD, alg);
		if (error != 0) {
			l4s_dev_detach();
			error = EEXIST;
		}
	}
	if (error != 0)
		discard();
	return (error);
}

/*
 * Refused while a scheduler or an instance of it is there, as with the stock
 * schedulers, and while /dev/l4s is open: a kqueue(2) of the reader holds on to
 * our filter.
 */
static int
unload(module_t mod, void *alg)
{
	int error;

	mtx_lock(&l4s_mtx);
	error = sc->opens > 0 || l4s_desc.ref_count > 0 ? EBUSY : 0;
	sc->leaving = error == 0;
	mtx_unlock(&l4s_mtx);
	if (error == 0)
		error = dn_sched_modevent(mod, MOD_UNLOAD, alg);
	if (error != 0) {
		mtx_lock(&l4s_mtx);
		sc->leaving = false;
		mtx_unlock(&l4s_mtx);
		return (error);
	}
	l4s_dev_detach();
	discard();
	return (0);
}

static int
l4s_modevent(module_t mod, int event, void *alg)
{
	switch (event) {
	case MOD_LOAD:
		return (load(mod, alg));
	case MOD_UNLOAD:
		return (unload(mod, alg));
	default:
		return (EOPNOTSUPP);
	}
}

/*
 * dummynet's declaration of a scheduler, with our handler around dummynet's:
 * that one could neither make the device nor refuse because it is open.
 */
#define dn_sched_modevent l4s_modevent
DECLARE_DNSCHED_MODULE(dn_sched_l4s, &l4s_desc);
#undef dn_sched_modevent
MODULE_VERSION(dn_sched_l4s, 1);
