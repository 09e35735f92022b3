/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <netinet/in.h>

#define IPTOS_ECN_MASK 0x03
#define IP_MF 0x2000
#define IP_OFFMASK 0x1fff

struct ip {
	uint8_t ip_hl : 4, ip_v : 4;
	uint8_t ip_tos;
	uint16_t ip_len;
	uint16_t ip_id;
	uint16_t ip_off;
	uint8_t ip_ttl;
	uint8_t ip_p;
	uint16_t ip_sum;
	struct in_addr ip_src, ip_dst;
} __attribute__((packed, aligned(2)));
