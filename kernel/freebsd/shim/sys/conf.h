/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

struct cdev;
struct knote;
struct uio;

typedef int d_open_t(struct cdev *dev, int flags, int type, struct thread *td);
typedef int d_read_t(struct cdev *dev, struct uio *uio, int ioflag);
typedef int d_write_t(struct cdev *dev, struct uio *uio, int ioflag);
typedef int d_ioctl_t(struct cdev *dev, u_long request, caddr_t data,
    int flags, struct thread *td);
typedef int d_poll_t(struct cdev *dev, int events, struct thread *td);
typedef int d_kqfilter_t(struct cdev *dev, struct knote *kn);

#define D_VERSION 1

struct cdevsw {
	int d_version;
	const char *d_name;
	d_open_t *d_open;
	d_read_t *d_read;
	d_write_t *d_write;
	d_ioctl_t *d_ioctl;
	d_poll_t *d_poll;
	d_kqfilter_t *d_kqfilter;
};

struct make_dev_args {
	int mda_flags;
	struct cdevsw *mda_devsw;
	unsigned int mda_uid, mda_gid;
	int mda_mode;
};

#define MAKEDEV_WAITOK 0x08
#define MAKEDEV_CHECKNAME 0x20
#define UID_ROOT 0
#define GID_WHEEL 0

int sim_make_dev(struct make_dev_args *args, struct cdev **dev,
    const char *name);
void sim_destroy_dev(struct cdev *dev);
int sim_set_cdevpriv(void *data, void (*destructor)(void *data));
int sim_get_cdevpriv(void **data);

#define make_dev_args_init(args) ((void)memset((args), 0, sizeof(*(args))))
#define make_dev_s sim_make_dev
#define destroy_dev sim_destroy_dev
#define devfs_set_cdevpriv sim_set_cdevpriv
#define devfs_get_cdevpriv sim_get_cdevpriv
