/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

typedef struct ck_epoch_entry {
	void *unused;
} ck_epoch_entry_t;

typedef struct ck_epoch_section {
	unsigned int unused;
} ck_epoch_section_t;
