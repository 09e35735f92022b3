/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <ck_queue.h>
