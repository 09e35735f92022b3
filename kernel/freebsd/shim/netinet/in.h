/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <stdint.h>

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

struct in_addr {
	uint32_t s_addr;
};

struct in6_addr {
	uint8_t s6_addr[16];
};

/* Little-endian machines only. */
#define htons __builtin_bswap16
#define ntohs __builtin_bswap16
#define htonl __builtin_bswap32
#define ntohl __builtin_bswap32
