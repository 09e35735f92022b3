/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/queue.h>

#ifndef CK_LIST_ENTRY
#define CK_LIST_ENTRY LIST_ENTRY
#define CK_LIST_HEAD LIST_HEAD
#define CK_SLIST_ENTRY SLIST_ENTRY
#define CK_SLIST_HEAD SLIST_HEAD
#define CK_STAILQ_ENTRY STAILQ_ENTRY
#define CK_STAILQ_HEAD STAILQ_HEAD
#endif
