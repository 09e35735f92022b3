/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <stdint.h>

#define ETHERTYPE_IP 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHER_HDR_LEN 14

struct ether_header {
	uint8_t ether_dhost[6];
	uint8_t ether_shost[6];
	uint16_t ether_type;
} __attribute__((packed));
