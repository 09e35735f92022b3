/*
 * SPDX-License-Identifier: MIT
 *
 * The simulated kernel: mbufs, and as much of dummynet as calls a scheduler.
 */
#include <stdlib.h>

#include "kernel.h"

/* Forms of packets, for harness_arrive(). */
#define FORM_IP6 1
#define FORM_LAYER2 2	/* with an Ethernet header */
#define FORM_SPLIT 4	/* its header lies in two mbufs */
#define FORM_INTERFACE 8	/* it came from an interface */
#define FORM_NOT_IP 16	/* an Ethernet frame of another protocol */
#define FORM_SHORT 32	/* too short for its header */

#define STORED 80	/* bytes of a packet that are stored, at most */
#define SCHEDULERS 8

struct ifnet {
	bool gone;
};

struct sim_tag {
	struct dn_pkt_tag dn;
	uint32_t flow;
};

struct vnet sim_vnet[VNETS];
struct vnet *sim_curvnet;
static struct ifnet interface;
static struct dn_alg *alg;
static struct dn_schk *schks[VNETS][SCHEDULERS];

/* -- mbufs */

static struct mbuf *
new_mbuf(void)
{
	struct mbuf *m = calloc(1, sizeof(*m));

	if (m == NULL)
		sim_panic("out of memory");
	m->m_data = m->sim_data;
	sim_live(1, "mbuf");
	return (m);
}

void
sim_m_freem(struct mbuf *m)
{
	struct mbuf *next;

	if (m == NULL)
		sim_panic("m_freem(NULL)");
	(free)(m->m_pkthdr.tag);
	for (; m != NULL; m = next) {
		next = m->m_next;
		memset(m, 0xde, sizeof(*m));
		(free)(m);
		sim_live(-1, "");
	}
}

void
sim_m_copydata(const struct mbuf *m, int offset, int length, caddr_t to)
{
	int n;

	if (offset < 0 || length < 0 || offset + length > m->m_pkthdr.len)
		sim_panic("m_copydata beyond the packet");
	memset(to, 0, (size_t)length);
	for (; m != NULL && length > 0; m = m->m_next) {
		if (offset >= m->m_len) {
			offset -= m->m_len;
			continue;
		}
		n = m->m_len - offset < length ? m->m_len - offset : length;
		memcpy(to, m->m_data + offset, (size_t)n);
		to += n;
		length -= n;
		offset = 0;
	}
}

struct mbuf *
sim_m_pullup(struct mbuf *m, int length)
{
	struct mbuf *n;
	int rest = STORED - length;

	if (length > m->m_pkthdr.len || sim_fails(FAIL_ALLOCATION)) {
		sim_m_freem(m);
		return (NULL);
	}
	/* Another mbuf: whoever kept the first one is found out. */
	n = new_mbuf();
	n->m_pkthdr = m->m_pkthdr;
	if (rest > m->m_pkthdr.len - length)
		rest = m->m_pkthdr.len - length;
	sim_m_copydata(m, 0, length + rest, n->m_data);
	n->m_len = length + rest;
	m->m_pkthdr.tag = NULL;
	sim_m_freem(m);
	return (n);
}

void
sim_m_rcvif_serialize(struct mbuf *m)
{
	if (m->m_pkthdr.rcvif == NULL || m->m_pkthdr.serialized)
		sim_panic("m_rcvif_serialize twice or of nothing");
	m->m_pkthdr.serialized = true;
}

struct ifnet *
sim_m_rcvif_restore(struct mbuf *m)
{
	if (!m->m_pkthdr.serialized)
		sim_panic("m_rcvif_restore without m_rcvif_serialize");
	m->m_pkthdr.serialized = false;
	if (interface.gone)
		m->m_pkthdr.rcvif = NULL;
	return (m->m_pkthdr.rcvif);
}

void harness_interface(int gone);
void
harness_interface(int gone)
{
	interface.gone = gone != 0;
}

/* -- headers */

static uint16_t
checksum(const uint8_t *byte, int n)
{
	uint32_t sum = 0;

	for (int i = 0; i < n; i += 2)
		sum += (uint32_t)byte[i] << 8 | byte[i + 1];
	while (sum >> 16 != 0)
		sum = (sum & 0xffff) + (sum >> 16);
	return ((uint16_t)~sum);
}

static void
write_ip4(uint8_t *to, uint32_t length, uint32_t flow, uint32_t ecn)
{
	struct ip ip = { .ip_hl = 5, .ip_v = 4, .ip_tos = (uint8_t)(ecn | 0x48),
	    .ip_len = htons((uint16_t)length), .ip_ttl = 64,
	    .ip_p = IPPROTO_TCP, .ip_src = { htonl(0xac100302) },
	    .ip_dst = { htonl(0xac100102) } };

	memcpy(to, &ip, sizeof(ip));
	ip.ip_sum = htons(checksum(to, sizeof(ip)));
	memcpy(to, &ip, sizeof(ip));
	to[20] = (uint8_t)(flow >> 8);
	to[21] = (uint8_t)flow;
}

static void
write_ip6(uint8_t *to, uint32_t length, uint32_t flow, uint32_t ecn)
{
	struct ip6_hdr ip6 = { .ip6_flow = htonl(6U << 28 | ecn << 20),
	    .ip6_plen = htons((uint16_t)(length - sizeof(ip6))),
	    .ip6_nxt = IPPROTO_UDP, .ip6_hlim = 64 };

	ip6.ip6_src.s6_addr[15] = 1;
	memcpy(to, &ip6, sizeof(ip6));
	to[40] = (uint8_t)(flow >> 8);
	to[41] = (uint8_t)flow;
}

static struct mbuf *
make_packet(uint32_t length, uint32_t flow, uint32_t ecn, uint32_t form)
{
	bool ether = (form & (FORM_LAYER2 | FORM_NOT_IP)) != 0;
	uint32_t offset = ether ? ETHER_HDR_LEN : 0, total = length + offset;
	struct mbuf *m = new_mbuf(), *n;
	struct sim_tag *tag = calloc(1, sizeof(*tag));
	uint8_t *ip = (uint8_t *)m->m_data + offset;
	uint16_t type = (form & FORM_IP6) != 0 ? ETHERTYPE_IPV6 : ETHERTYPE_IP;

	if (tag == NULL)
		sim_panic("out of memory");
	if ((form & FORM_IP6) != 0)
		write_ip6(ip, length, flow, ecn);
	else
		write_ip4(ip, length, flow, ecn);
	type = htons((form & FORM_NOT_IP) != 0 ? 0x0806 : type);
	if (ether)
		memcpy(m->m_data + 12, &type, sizeof(type));
	if ((form & FORM_SHORT) != 0)
		total = offset + 12;
	m->m_len = total < STORED ? (int32_t)total : STORED;
	m->m_pkthdr.len = (int32_t)total;
	if ((form & FORM_SPLIT) != 0) {
		n = new_mbuf();
		n->m_len = m->m_len - 8;
		memcpy(n->m_data, m->m_data + 8, (size_t)n->m_len);
		m->m_len = 8;
		m->m_next = n;
	}
	if ((form & FORM_INTERFACE) != 0)
		m->m_pkthdr.rcvif = &interface;
	tag->dn.iphdr_off = (uint16_t)offset;
	tag->dn.dn_dir = ether ? PROTO_LAYER2 : 0;
	tag->flow = flow;
	m->m_pkthdr.tag = tag;
	return (m);
}

struct dn_pkt_tag *
dn_tag_get(struct mbuf *m)
{
	return (&m->m_pkthdr.tag->dn);
}

/* As dummynet's: the header must be contiguous. 0: not ECN-capable. */
int
ecn_mark(struct mbuf *m)
{
	int offset = dn_tag_get(m)->iphdr_off;
	uint8_t *ip = (uint8_t *)m->m_data + offset;
	uint32_t sum;

	if (m->m_len < offset + (ip[0] >> 4 == 6 ? 40 : 20))
		sim_panic("ecn_mark: the header is not contiguous");
	if (ip[0] >> 4 == 6) {
		if ((ip[1] & 0x30) == 0)
			return (0);
		ip[1] |= 0x30;
		return (1);
	}
	if ((ip[1] & IPTOS_ECN_MASK) == 0)
		return (0);
	sum = (uint32_t)(~(ip[10] << 8 | ip[11]) & 0xffff);
	sum += (uint32_t)(~(ip[0] << 8 | ip[1]) & 0xffff);
	ip[1] |= IPTOS_ECN_MASK;
	sum += (uint32_t)(ip[0] << 8 | ip[1]);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~(sum + (sum >> 16)) & 0xffff;
	ip[10] = (uint8_t)(sum >> 8);
	ip[11] = (uint8_t)sum;
	return (1);
}

/* -- dummynet */

struct dn_parms *
sim_dn_parms(void)
{
	if (sim_curvnet == NULL)
		sim_panic("V_dn_cfg without a vnet");
	sim_mtx_assert(&sim_curvnet->dn.uh_mtx);
	return (&sim_curvnet->dn);
}

int
dn_sched_modevent(module_t mod __unused, int event, void *argument)
{
	struct dn_alg *it = argument;

	if (sim_fails(FAIL_MODEVENT))
		return (event == MOD_LOAD ? 1 : EBUSY);
	if (event == MOD_LOAD) {
		alg = it;
		return (0);
	}
	if (event != MOD_UNLOAD)
		return (EINVAL);
	if (it->ref_count != 0)
		return (EBUSY);
	alg = NULL;
	return (0);
}

static void
enter(int vnet)
{
	sim_curvnet = &sim_vnet[vnet];
	sim_mtx_lock(&sim_curvnet->dn.uh_mtx);
}

static void
leave(void)
{
	sim_mtx_unlock(&sim_curvnet->dn.uh_mtx);
	sim_curvnet = NULL;
}

static struct dn_sch_inst *
instance(struct dn_schk *s)
{
	struct dn_sch_inst *si = (struct dn_sch_inst *)(void *)s->siht;

	if (si != NULL || sim_fails(FAIL_ALLOCATION))
		return (si);
	si = calloc(1, sizeof(*si) + alg->si_datalen);
	if (si == NULL)
		sim_panic("out of memory");
	si->sched = s;
	if (alg->new_sched(si) != 0) {
		(free)(si);
		return (NULL);
	}
	sim_live(1, "instance");
	s->siht = (struct dn_ht *)(void *)si;
	return (si);
}

static void
free_instance(struct dn_schk *s)
{
	struct dn_sch_inst *si = (struct dn_sch_inst *)(void *)s->siht;

	if (si == NULL)
		return;
	alg->free_sched(si);
	memset(si, 0xde, sizeof(*si) + alg->si_datalen);
	(free)(si);
	sim_live(-1, "");
	s->siht = NULL;
}

/* `ipfw sched N config pipe M type l4s`. */
int harness_config(uint32_t number, int vnet, uint32_t bandwidth);
int
harness_config(uint32_t number, int vnet, uint32_t bandwidth)
{
	struct dn_schk *s = schks[vnet][number];

	if (alg == NULL)
		return (-EINVAL);
	enter(vnet);
	if (s == NULL) {
		s = calloc(1, sizeof(*s) + alg->schk_datalen);
		if (s == NULL)
			sim_panic("out of memory");
		s->sch.sched_nr = number;
		s->fp = alg;
		schks[vnet][number] = s;
		sim_live(1, "scheduler");
	}
	s->link.bandwidth = bandwidth;
	(void)alg->config(s);
	leave();
	return (0);
}

/* `ipfw sched N delete`. */
int harness_delete(uint32_t number, int vnet);
int
harness_delete(uint32_t number, int vnet)
{
	struct dn_schk *s = schks[vnet][number];

	if (s == NULL)
		return (-EINVAL);
	enter(vnet);
	free_instance(s);
	(void)alg->destroy(s);
	leave();
	memset(s, 0xde, sizeof(*s) + alg->schk_datalen);
	(free)(s);
	sim_live(-1, "");
	schks[vnet][number] = NULL;
	return (0);
}

/* What dummynet does each tick with net.inet.ip.dummynet.expire=1. */
int harness_expire(uint32_t number, int vnet);
int
harness_expire(uint32_t number, int vnet)
{
	struct dn_schk *s = schks[vnet][number];
	struct dn_sch_inst *si = (struct dn_sch_inst *)(void *)s->siht;
	const struct dn_queue *q = (const struct dn_queue *)(si + 1);

	if (si == NULL || q->ni.length > 0)
		return (0);
	enter(vnet);
	free_instance(s);
	leave();
	return (1);
}

int harness_getconfig(uint32_t number, int64_t *par, char *name);
int
harness_getconfig(uint32_t number, int64_t *par, char *name)
{
	struct dn_extra_parms extra;

	if (alg->getconfig(schks[0][number], &extra) != 0)
		return (-EINVAL);
	memcpy(par, extra.par, sizeof(extra.par));
	memcpy(name, extra.name, sizeof(extra.name));
	return (0);
}

/* A packet arrives: 0 queued, 1 dropped, negative: no such scheduler. */
int
harness_arrive(uint32_t number, int vnet, uint32_t length, uint32_t flow,
    uint32_t ecn, uint32_t form)
{
	struct dn_schk *s = schks[vnet][number];
	struct dn_sch_inst *si;
	int dropped = 1;

	if (s == NULL)
		return (-EINVAL);
	enter(vnet);
	si = instance(s);
	if (si != NULL)
		dropped = alg->enqueue(si, NULL,
		    make_packet(length, flow, ecn, form));
	leave();
	return (dropped);
}

static void
look_at(const struct mbuf *m, struct harness_sent *sent)
{
	int offset = m->m_pkthdr.tag->dn.iphdr_off;
	uint8_t ip[40] = { 0 };
	int n = m->m_pkthdr.len - offset;

	sim_m_copydata(m, offset, n < 40 ? n : 40, (caddr_t)ip);
	*sent = (struct harness_sent){ .length = (uint32_t)m->m_pkthdr.len,
	    .flow = m->m_pkthdr.tag->flow };
	if (ip[0] >> 4 == 6) {
		sent->ecn = ip[1] >> 4 & 3;
		sent->checksum_holds = 1;
	} else {
		sent->ecn = ip[1] & 3;
		sent->checksum_holds = checksum(ip, 20) == 0;
	}
}

/* The next packet leaves: 1, or 0 if there is none. */
int
harness_dequeue(uint32_t number, int vnet, struct harness_sent *sent)
{
	struct dn_schk *s = schks[vnet][number];
	struct mbuf *m;

	if (s == NULL || s->siht == NULL)
		return (0);
	enter(vnet);
	m = alg->dequeue((struct dn_sch_inst *)(void *)s->siht);
	leave();
	if (m == NULL)
		return (0);
	if (m->m_pkthdr.serialized)
		sim_panic("a packet leaves with its interface serialized");
	look_at(m, sent);
	sim_m_freem(m);
	return (1);
}

/* Packets and bytes offered, in the queue, drops; dummynet's drops. */
int harness_statistics(uint32_t number, int vnet, uint64_t out[8]);
int
harness_statistics(uint32_t number, int vnet, uint64_t out[8])
{
	const struct dn_schk *s = schks[vnet][number];
	const struct dn_sch_inst *si =
	    (const struct dn_sch_inst *)(const void *)s->siht;
	const struct dn_flow *f, *g;

	if (si == NULL)
		return (-EINVAL);
	f = &si->ni;
	g = &((const struct dn_queue *)(si + 1))->ni;
	out[0] = f->tot_pkts;
	out[1] = f->tot_bytes;
	out[2] = f->length;
	out[3] = f->len_bytes;
	out[4] = f->drops;
	out[5] = g->tot_pkts == f->tot_pkts && g->tot_bytes == f->tot_bytes &&
	    g->length == f->length && g->len_bytes == f->len_bytes &&
	    g->drops == f->drops;
	out[6] = sim_vnet[vnet].dn.io_pkt_drop;
	return (0);
}
