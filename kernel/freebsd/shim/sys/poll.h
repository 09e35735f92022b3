/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#define POLLIN 0x0001
#define POLLOUT 0x0004
#define POLLHUP 0x0010
#define POLLRDNORM 0x0040
#define POLLWRNORM POLLOUT
