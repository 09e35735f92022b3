/*
 * SPDX-License-Identifier: MIT
 *
 * read() and writev() of a Unix socket, the latter without waiting, that take
 * a descriptor along (DIRECT's). `passed` is one that came and was not taken
 * yet, or waits to go; -1: none.
 */
#ifndef L4S_PASS_H
#define L4S_PASS_H

#include <sys/types.h>
#include <sys/uio.h>

#include <stddef.h>

void pass_drop(int *passed);
ssize_t pass_read(int fd, void *to, size_t size, int *passed);
ssize_t pass_write(int fd, struct iovec *pieces, int count, int *passed);

#endif
