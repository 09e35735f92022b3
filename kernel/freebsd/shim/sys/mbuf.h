/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

struct ifnet;

struct sim_tag;

struct pkthdr {
	struct ifnet *rcvif;
	int32_t len;
	/* the simulation's own */
	struct sim_tag *tag;
	bool serialized;
};

struct mbuf {
	struct mbuf *m_next;
	struct mbuf *m_nextpkt;
	caddr_t m_data;
	int32_t m_len;
	struct pkthdr m_pkthdr;
	char sim_data[128];
};

void sim_m_freem(struct mbuf *m);
struct mbuf *sim_m_pullup(struct mbuf *m, int length);
void sim_m_copydata(const struct mbuf *m, int offset, int length, caddr_t to);
void sim_m_rcvif_serialize(struct mbuf *m);
struct ifnet *sim_m_rcvif_restore(struct mbuf *m);

#define m_freem sim_m_freem
#define m_pullup sim_m_pullup
#define m_copydata sim_m_copydata
#define m_rcvif_serialize sim_m_rcvif_serialize
#define m_rcvif_restore sim_m_rcvif_restore
