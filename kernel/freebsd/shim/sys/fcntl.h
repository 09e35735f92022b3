/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#define O_NONBLOCK 0x0004
#define FREAD 0x0001
#define FWRITE 0x0002
