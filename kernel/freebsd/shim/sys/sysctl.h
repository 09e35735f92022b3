/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

#define CTLTYPE_U32 0x0e
#define CTLTYPE_U64 0x09
#define CTLFLAG_RD 0x80000000u
#define CTLFLAG_WR 0x40000000u
#define CTLFLAG_RW (CTLFLAG_RD | CTLFLAG_WR)
#define CTLFLAG_MPSAFE 0x00040000u
#define OID_AUTO (-1)

struct sysctl_req {
	const void *newptr;
	uint64_t fresh, old;
};

struct sysctl_oid;

#define SYSCTL_HANDLER_ARGS                                                    \
	struct sysctl_oid *oidp __unused, void *arg1 __unused,                 \
	    intptr_t arg2 __unused, struct sysctl_req *req

struct sysctl_oid {
	const char *parent, *name;
	u_int kind;
	void *arg1;
	intptr_t arg2;
	int (*handler)(SYSCTL_HANDLER_ARGS);
	struct sysctl_oid *next;
};

int sim_sysctl_handle(uint64_t *value, struct sysctl_req *req);
int sim_sysctl_handle_32(uint32_t *value, struct sysctl_req *req);
void sim_add_sysctl(struct sysctl_oid *oid);

#define sysctl_handle_64(oidp, value, arg2, req) sim_sysctl_handle(value, req)
#define sysctl_handle_32(oidp, value, arg2, req)                               \
	sim_sysctl_handle_32(value, req)

#define SYSCTL_DECL(name) extern struct sysctl_oid sysctl__##name
#define SYSCTL_NODE(parent, number, id, flags, handler, text)                  \
	struct sysctl_oid sysctl__##parent##_##id __unused
#define SYSCTL_PROC(above, number, id, flags, a1, a2, function, format, text)  \
	static struct sysctl_oid sysctl__##above##_##id = { .parent = #above,  \
		.name = #id, .kind = (flags), .arg1 = (a1), .arg2 = (a2),      \
		.handler = (function) };                                       \
	__attribute__((constructor)) static void                               \
	sysctl_add_##above##_##id(void)                                        \
	{                                                                      \
		sim_add_sysctl(&sysctl__##above##_##id);                       \
	}                                                                      \
	struct sim_nothing
