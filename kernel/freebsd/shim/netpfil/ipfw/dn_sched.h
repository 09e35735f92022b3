/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

struct dn_alg {
	uint32_t type;
	const char *name;
	uint32_t flags;
	size_t schk_datalen, si_datalen, q_datalen;
	int (*enqueue)(struct dn_sch_inst *si, struct dn_queue *q,
	    struct mbuf *m);
	struct mbuf *(*dequeue)(struct dn_sch_inst *si);
	int (*config)(struct dn_schk *schk);
	int (*destroy)(struct dn_schk *schk);
	int (*new_sched)(struct dn_sch_inst *si);
	int (*free_sched)(struct dn_sch_inst *si);
	int (*new_fsk)(struct dn_fsk *fs);
	int (*free_fsk)(struct dn_fsk *fs);
	int (*new_queue)(struct dn_queue *q);
	int (*free_queue)(struct dn_queue *q);
	int (*getconfig)(struct dn_schk *schk, struct dn_extra_parms *ep);
	int ref_count;
	CK_LIST_ENTRY(dn_alg) next;
};

#define _SI(field) field

int dn_sched_modevent(module_t mod, int event, void *argument);

#define DECLARE_DNSCHED_MODULE(id, alg)                                        \
	static moduledata_t id##_mod = { #id, dn_sched_modevent, alg };        \
	DECLARE_MODULE(id, id##_mod, SI_SUB_PROTO_FIREWALL, SI_ORDER_ANY);     \
	MODULE_DEPEND(id, dummynet, 3, 3, 3)
