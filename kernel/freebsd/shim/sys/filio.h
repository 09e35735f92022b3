/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#include <sys/ioccom.h>

#define FIONBIO _IOW('f', 126, int)
#define FIOASYNC _IOW('f', 125, int)
