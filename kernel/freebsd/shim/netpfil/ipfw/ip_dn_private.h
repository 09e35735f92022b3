/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

struct mq {
	struct mbuf *head, *tail;
	int count;
};

static inline void
set_oid(struct dn_id *o, int type, int length)
{
	o->type = (uint8_t)type;
	o->len = (uint16_t)length;
	o->subtype = 0;
}

struct dn_parms {
	unsigned long io_pkt_drop;
	uint64_t curr_time;
#ifdef L4S_SHIM
	struct mtx uh_mtx;
#endif
};

struct dn_alg;
struct dn_fsk;

struct dn_queue {
	struct dn_flow ni;
	struct mq mq;
	struct dn_sch_inst *_si;
	struct dn_fsk *fs;
	uint64_t q_time;
};

struct dn_schk {
	struct dn_sch sch;
	struct dn_alg *fp;
	struct dn_link link;
	struct dn_id *cfg;
	struct dn_fsk *fs;
	struct dn_ht *siht;
};

struct dn_sch_inst {
	struct dn_flow ni;
	struct dn_schk *sched;
	int kflags;
};

struct dn_pkt_tag {
	struct ipfw_rule_ref rule;
	int dn_dir;
	uint64_t output_time;
	struct ifnet *ifp;
	struct _ip6dn_args ip6opt;
	uint16_t iphdr_off;
};

enum {
	PROTO_LAYER2 = 0x4,
};

#ifdef L4S_SHIM
/* Checks that there is a current vnet. */
struct dn_parms *sim_dn_parms(void);
#define V_dn_cfg (*sim_dn_parms())
#else
VNET_DECLARE(struct dn_parms, dn_cfg);
#define V_dn_cfg VNET(dn_cfg)
#endif

struct dn_pkt_tag *dn_tag_get(struct mbuf *m);
int ecn_mark(struct mbuf *m);
