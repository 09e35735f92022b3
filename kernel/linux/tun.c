/*
 * SPDX-License-Identifier: MIT
 *
 * A TUN device in another network namespace: a device is made in the namespace
 * in which /dev/net/tun is opened, so go there, open, and come back.
 */
#include <sys/ioctl.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "router.h"

static int
tun_make(const char *where, const char *name)
{
	struct ifreq request;
	int fd;

	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "l4s-router: /dev/net/tun: %s: needs root, and "
		    "a kernel with TUN\n", strerror(errno));
		return (-1);
	}
	memset(&request, 0, sizeof(request));
	request.ifr_flags = IFF_TUN | IFF_NO_PI;
	memcpy(request.ifr_name, name, strlen(name));
	if (ioctl(fd, TUNSETIFF, &request) < 0) {
		fprintf(stderr, "l4s-router: %s: cannot make the TUN device: "
		    "%s\n", where, strerror(errno));
		close(fd);
		return (-1);
	}
	return (fd);
}

int
tun_open(const char *where)
{
	char path[256];
	const char *name = strrchr(where, ':');
	int home, there, fd = -1, length;

	if (name == NULL || name == where || name[1] == '\0' ||
	    strlen(name + 1) >= IFNAMSIZ) {
		fprintf(stderr, "l4s-router: %s: not of the form "
		    "NETNS:IFNAME\n", where);
		return (-1);
	}
	length = (int)(name - where);
	snprintf(path, sizeof(path), "%s%.*s",
	    memchr(where, '/', (size_t)length) == NULL ? "/run/netns/" : "",
	    length, where);
	home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	there = open(path, O_RDONLY | O_CLOEXEC);
	if (home < 0 || there < 0 || setns(there, CLONE_NEWNET) < 0) {
		fprintf(stderr, "l4s-router: %s: cannot enter the network "
		    "namespace: %s\n", path, strerror(errno));
	} else {
		fd = tun_make(where, name + 1);
		if (setns(home, CLONE_NEWNET) < 0) {
			fprintf(stderr, "l4s-router: cannot come back from "
			    "%s: %s\n", path, strerror(errno));
			if (fd >= 0)
				close(fd);
			fd = -1;
		}
	}
	if (home >= 0)
		close(home);
	if (there >= 0)
		close(there);
	return (fd);
}
