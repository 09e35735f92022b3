/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <netinet/ip_fw.h>

#define NEW_AQM

enum {
	DN_SCH_I = 4,
	DN_QUEUE = 5,
};

struct dn_id {
	uint16_t len;
	uint8_t type, subtype;
	uint32_t id;
};

struct dn_link {
	struct dn_id oid;
	uint32_t bandwidth;	/* bit/s */
};

struct dn_flow {
	struct dn_id oid;
	struct ipfw_flow_id fid;
	uint64_t tot_pkts, tot_bytes;
	uint32_t length, len_bytes, drops;
};

struct dn_sch {
	struct dn_id oid;
	uint32_t sched_nr;
	char name[16];
};

struct dn_extra_parms {
	struct dn_id oid;
	char name[16];
	uint32_t nr;
	int64_t par[10];
};
