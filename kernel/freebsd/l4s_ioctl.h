/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What ioctl(2) does on /dev/l4s. All else goes by read(2) and write(2):
 * l4s_wire.h.
 */
#ifndef L4S_IOCTL_H
#define L4S_IOCTL_H

#include <sys/ioccom.h>

#include "l4s_core.h"
#include "l4s_wire.h"

/* A model in the caller's memory: `size` bytes of a file; 0: unload it. */
struct l4s_model_request {
	uint64_t model;
	uint32_t size;
	uint32_t reserved;	/* 0 */
};

/* SET_LAW, SET_PROB or GET_LAW, and the LAW that answers it. */
struct l4s_law_request {
	struct l4s_command command;
	struct l4s_law law;
};

/*
 * DECIDE is the command of this name with an answer. Its errors: EPERM, this
 * descriptor does not control the queue; EINVAL, malformed; ETIMEDOUT, expired;
 * ESTALE, out of order; ESRCH, not asked; EACCES, the shield holds the queue;
 * ENXIO, there is no queue. LAW gives EPERM, EINVAL and ENXIO for the same
 * reasons, and ERANGE where what is set is out of the operator's bounds. GET_LAW
 * needs no descriptor that may write. MODEL gives EBUSY where another
 * descriptor controls the queue; EFBIG, too large; EPROTONOSUPPORT, of another
 * version; ERANGE, a number is out of range; EINVAL, no model.
 */
#define L4SIOC_DECIDE _IOW('L', 1, struct l4s_command)
#define L4SIOC_STATUS _IOR('L', 2, struct l4s_status)
#define L4SIOC_MODEL _IOW('L', 3, struct l4s_model_request)
#define L4SIOC_LAW _IOWR('L', 4, struct l4s_law_request)

#endif
