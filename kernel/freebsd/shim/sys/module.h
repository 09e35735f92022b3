/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/param.h>

typedef struct module *module_t;

#define MOD_LOAD 0
#define MOD_UNLOAD 1
#define MOD_SHUTDOWN 2
#define MOD_QUIESCE 3

typedef struct moduledata {
	const char *name;
	int (*evhand)(module_t mod, int event, void *argument);
	void *priv;
} moduledata_t;

void sim_add_module(const moduledata_t *data);

#define DECLARE_MODULE(id, data, subsystem, order)                             \
	__attribute__((constructor)) static void                               \
	sim_module_add_##id(void)                                              \
	{                                                                      \
		sim_add_module(&(data));                                       \
	}                                                                      \
	struct sim_nothing
#define MODULE_DEPEND(id, on, low, preferred, high) struct sim_nothing
#define MODULE_VERSION(id, number) struct sim_nothing
