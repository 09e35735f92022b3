/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * net.inet.ip.dummynet.l4s: a sysctl for each parameter of the core, with the
 * core's ranges; what the module itself can be told; and its counters. One set
 * for all instances, which take a change at once and keep their packets.
 */
#include "l4s_include.h"
#include "l4s_kern.h"

static struct l4s_softc *const sc = &l4s_softc;

SYSCTL_DECL(_net_inet);
SYSCTL_DECL(_net_inet_ip);
SYSCTL_DECL(_net_inet_ip_dummynet);
static SYSCTL_NODE(_net_inet_ip_dummynet, OID_AUTO, l4s,
    CTLFLAG_RW | CTLFLAG_MPSAFE, 0, "L4S: DualPI2");

/* -- parameters of the core; arg2: place in the struct */

static int
set_parameter(SYSCTL_HANDLER_ARGS)
{
	struct l4s_params params;
	uint64_t value;
	int error;

	mtx_lock(&l4s_mtx);
	value = *(uint64_t *)((char *)&sc->params + arg2);
	mtx_unlock(&l4s_mtx);
	error = sysctl_handle_64(oidp, &value, 0, req);
	if (error != 0 || req->newptr == NULL)
		return (error);
	mtx_lock(&l4s_mtx);
	params = sc->params;
	*(uint64_t *)((char *)&params + arg2) = value;
	if (l4s_params_check(&params) >= 0)
		error = EINVAL;
	else
		l4s_apply(&params);
	mtx_unlock(&l4s_mtx);
	return (error);
}

#define L4S_SYSCTL(name, normal, low, high, text)                              \
	SYSCTL_PROC(_net_inet_ip_dummynet_l4s, OID_AUTO, name,                 \
	    CTLTYPE_U64 | CTLFLAG_RW | CTLFLAG_MPSAFE, NULL,                   \
	    offsetof(struct l4s_params, name), set_parameter, "QU", text);
L4S_PARAMETERS(L4S_SYSCTL)
#undef L4S_SYSCTL

/* -- the module's own settings */

static int
set_ring_entries(SYSCTL_HANDLER_ARGS)
{
	uint32_t value = sc->ring_entries;
	int error;

	error = sysctl_handle_32(oidp, &value, 0, req);
	if (error != 0 || req->newptr == NULL)
		return (error);
	if (value < L4S_RING_LEAST || value > L4S_RING_MOST)
		return (EINVAL);
	return (l4s_ring_resize(value));
}

static int
set_instance(SYSCTL_HANDLER_ARGS)
{
	uint32_t value = sc->instance;
	int error;

	error = sysctl_handle_32(oidp, &value, 0, req);
	if (error != 0 || req->newptr == NULL)
		return (error);
	mtx_lock(&l4s_mtx);
	sc->instance = value;
	if (value != 0 && sc->parked.number != value)
		sc->parked.number = 0;
	l4s_choose();
	mtx_unlock(&l4s_mtx);
	return (0);
}

static int
set_log(SYSCTL_HANDLER_ARGS)
{
	uint32_t value = sc->log;
	int error;

	error = sysctl_handle_32(oidp, &value, 0, req);
	if (error != 0 || req->newptr == NULL)
		return (error);
	if (value > 1)
		return (EINVAL);
	mtx_lock(&l4s_mtx);
	sc->log = value;
	mtx_unlock(&l4s_mtx);
	return (0);
}

SYSCTL_PROC(_net_inet_ip_dummynet_l4s, OID_AUTO, ring_entries,
    CTLTYPE_U32 | CTLFLAG_RW | CTLFLAG_MPSAFE, NULL, 0, set_ring_entries, "IU",
    "entries that /dev/l4s keeps for its readers");
SYSCTL_PROC(_net_inet_ip_dummynet_l4s, OID_AUTO, instance,
    CTLTYPE_U32 | CTLFLAG_RW | CTLFLAG_MPSAFE, NULL, 0, set_instance, "IU",
    "scheduler that /dev/l4s speaks of; 0: the first");
SYSCTL_PROC(_net_inet_ip_dummynet_l4s, OID_AUTO, log,
    CTLTYPE_U32 | CTLFLAG_RW | CTLFLAG_MPSAFE, NULL, 0, set_log, "IU",
    "1: print each row as the testbed's kernel does");

/* -- counters: X(name, meaning) */

#define L4S_COUNTERS(X)                                                        \
	X(packets, "packets offered to all instances")                         \
	X(rows, "rows reported")                                               \
	X(rows_lost, "entries lost because a reader was slow")                 \
	X(no_memory, "packets dropped for want of memory")

static int
get_counter(SYSCTL_HANDLER_ARGS)
{
	uint64_t value;

	mtx_lock(&l4s_mtx);
	value = *(uint64_t *)((char *)sc + arg2);
	mtx_unlock(&l4s_mtx);
	return (sysctl_handle_64(oidp, &value, 0, req));
}

static SYSCTL_NODE(_net_inet_ip_dummynet_l4s, OID_AUTO, status,
    CTLFLAG_RD | CTLFLAG_MPSAFE, 0, "counters");

#define L4S_COUNTER(name, text)                                                \
	SYSCTL_PROC(_net_inet_ip_dummynet_l4s_status, OID_AUTO, name,          \
	    CTLTYPE_U64 | CTLFLAG_RD | CTLFLAG_MPSAFE, NULL,                   \
	    offsetof(struct l4s_softc, name), get_counter, "QU", text);
L4S_COUNTERS(L4S_COUNTER)
#undef L4S_COUNTER

static int
get_controlled(SYSCTL_HANDLER_ARGS)
{
	uint32_t value;

	mtx_lock(&l4s_mtx);
	value = sc->controller != NULL;
	mtx_unlock(&l4s_mtx);
	return (sysctl_handle_32(oidp, &value, 0, req));
}

SYSCTL_PROC(_net_inet_ip_dummynet_l4s_status, OID_AUTO, controlled,
    CTLTYPE_U32 | CTLFLAG_RD | CTLFLAG_MPSAFE, NULL, 0, get_controlled, "IU",
    "1: a controller is attached");
