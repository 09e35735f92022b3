/*
 * SPDX-License-Identifier: MIT
 *
 * A simulated FreeBSD kernel for the module: what its three parts share. One
 * thread runs in it. Whatever the real kernel forbids ends the process with a
 * message: locks out of order or twice, sleeping under one, V_ variables
 * without a vnet, use of what is gone. Functions named harness_* are for the
 * tests; they give 0 or a count, and an errno as a negative number.
 */
#ifndef HARNESS_KERNEL_H
#define HARNESS_KERNEL_H

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/callout.h>
#include <sys/ck.h>
#include <sys/conf.h>
#include <sys/errno.h>
#include <sys/event.h>
#include <sys/fcntl.h>
#include <sys/libkern.h>
#include <sys/malloc.h>
#include <sys/mbuf.h>
#include <sys/module.h>
#include <sys/mutex.h>
#include <sys/poll.h>
#include <sys/queue.h>
#include <sys/selinfo.h>
#include <sys/sysctl.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <vm/uma.h>
#include <net/ethernet.h>
#include <net/vnet.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_var.h>
#include <netinet/ip_dummynet.h>
#include <netpfil/ipfw/ip_fw_private.h>
#include <netpfil/ipfw/ip_dn_private.h>
#include <netpfil/ipfw/dn_sched.h>

#include "l4s_core.h"
#include "l4s_wire.h"

/* What can be made to fail: harness_fail(). */
enum {
	FAIL_ALLOCATION,	/* with M_NOWAIT */
	FAIL_MAKE_DEV,
	FAIL_CDEVPRIV,
	FAIL_COPY,		/* uiomove, copyin: EFAULT */
	FAIL_MODEVENT,		/* dummynet's */
	FAIL_KINDS
};

#define VNETS 2

struct vnet {
	struct dn_parms dn;
};

extern struct vnet sim_vnet[VNETS];

/* Whether this is the call that shall fail. */
bool sim_fails(int kind);

void sim_may_sleep(const char *what);	/* panics if a lock is held */
void sim_live(int64_t change, const char *what);	/* leak check */
void sim_pass(int64_t to_ns);
int64_t sim_callout_ns(void);		/* of the next; INT64_MAX: none */

/* A packet that has left. */
struct harness_sent {
	uint32_t length;
	uint32_t flow;
	uint32_t ecn;
	uint32_t checksum_holds;
};

int harness_open(int flags);
int64_t harness_read(int fd, void *memory, int64_t size, int nonblocking);
int64_t harness_write(int fd, const void *memory, int64_t size);
int harness_close(int fd);
void harness_advance(int64_t to_ns);
int64_t harness_now(void);
int harness_arrive(uint32_t number, int vnet, uint32_t length, uint32_t flow,
    uint32_t ecn, uint32_t form);
int harness_dequeue(uint32_t number, int vnet, struct harness_sent *sent);

#endif
