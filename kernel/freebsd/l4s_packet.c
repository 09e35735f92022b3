/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the core is told of a packet: length, ECN codepoint, flow.
 */
#include "l4s_include.h"

#include <sys/fnv_hash.h>

#include <net/ethernet.h>

#include <netinet/ip.h>
#include <netinet/ip6.h>

#include "l4s_kern.h"

#define IP_VERSION_4 4
#define IP_VERSION_6 6

/* The version of the IP header at `offset`, 0 where there is none. */
static int
version_of(const struct mbuf *m, const struct dn_pkt_tag *tag)
{
	int offset = tag->iphdr_off;
	uint8_t first;
	uint16_t type;

	if (m->m_pkthdr.len <= offset)
		return (0);
	if ((tag->dn_dir & PROTO_LAYER2) != 0) {
		m_copydata(m, offsetof(struct ether_header, ether_type),
		    sizeof(type), (caddr_t)&type);
		if (type != htons(ETHERTYPE_IP) &&
		    type != htons(ETHERTYPE_IPV6))
			return (0);
	}
	m_copydata(m, offset, 1, (caddr_t)&first);
	return (first >> 4);
}

/* Add the ports of TCP and UDP at `offset` to a flow's hash. */
static uint32_t
with_ports(const struct mbuf *m, int offset, uint8_t protocol, uint32_t flow)
{
	uint8_t ports[4];

	flow = fnv_32_buf(&protocol, sizeof(protocol), flow);
	if ((protocol != IPPROTO_TCP && protocol != IPPROTO_UDP) ||
	    m->m_pkthdr.len < offset + (int)sizeof(ports))
		return (flow);
	m_copydata(m, offset, sizeof(ports), (caddr_t)ports);
	return (fnv_32_buf(ports, sizeof(ports), flow));
}

static void
read_ip4(const struct mbuf *m, int offset, struct l4s_packet *packet)
{
	struct ip ip;
	uint32_t flow;

	m_copydata(m, offset, sizeof(ip), (caddr_t)&ip);
	packet->ecn = ip.ip_tos & IPTOS_ECN_MASK;
	flow = fnv_32_buf(&ip.ip_src, sizeof(ip.ip_src), FNV1_32_INIT);
	flow = fnv_32_buf(&ip.ip_dst, sizeof(ip.ip_dst), flow);
	/* Only the first fragment has ports: all of them go without. */
	if ((ntohs(ip.ip_off) & (IP_OFFMASK | IP_MF)) != 0)
		packet->flow = fnv_32_buf(&ip.ip_p, sizeof(ip.ip_p), flow);
	else
		packet->flow = with_ports(m, offset + (ip.ip_hl << 2), ip.ip_p,
		    flow);
}

static void
read_ip6(const struct mbuf *m, int offset, struct l4s_packet *packet)
{
	struct ip6_hdr ip6;
	uint32_t flow;

	m_copydata(m, offset, sizeof(ip6), (caddr_t)&ip6);
	packet->ecn = (ntohl(ip6.ip6_flow) >> 20) & IPTOS_ECN_MASK;
	flow = fnv_32_buf(&ip6.ip6_src, sizeof(ip6.ip6_src), FNV1_32_INIT);
	flow = fnv_32_buf(&ip6.ip6_dst, sizeof(ip6.ip6_dst), flow);
	packet->flow = with_ports(m, offset + (int)sizeof(ip6), ip6.ip6_nxt,
	    flow);
}

/*
 * Fill in what the core needs. The header is made contiguous, because
 * dummynet's ecn_mark() writes into it: another mbuf may come back, or NULL,
 * and then the packet is gone. What is not IP, as layer 2 may bring, is
 * classic and not ECN-capable.
 */
struct mbuf *
l4s_parse(struct mbuf *m, struct l4s_packet *packet)
{
	const struct dn_pkt_tag *tag = dn_tag_get(m);
	int offset = tag->iphdr_off, version = version_of(m, tag), header;

	packet->length = (uint32_t)m->m_pkthdr.len;
	packet->ecn = L4S_NOT_ECT;
	packet->flow = 0;
	if (version == IP_VERSION_4)
		header = offset + (int)sizeof(struct ip);
	else if (version == IP_VERSION_6)
		header = offset + (int)sizeof(struct ip6_hdr);
	else
		return (m);
	if (m->m_pkthdr.len < header)
		return (m);
	if (m->m_len < header && (m = m_pullup(m, header)) == NULL)
		return (NULL);
	packet->length -= (uint32_t)offset;
	if (version == IP_VERSION_4)
		read_ip4(m, offset, packet);
	else
		read_ip6(m, offset, packet);
	return (m);
}
