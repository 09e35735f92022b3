/* SPDX-License-Identifier: BSD-2-Clause */
#pragma once

#define IOC_OUT 0x40000000UL
#define IOC_IN 0x80000000UL
#define SIM_IOC(way, group, number, length)                                    \
	((way) | ((unsigned long)(length) & 0x1fff) << 16 |                    \
	    (unsigned long)(group) << 8 | (number))
#define _IOR(group, number, type) SIM_IOC(IOC_OUT, group, number, sizeof(type))
#define _IOWR(group, number, type)                                             \
	SIM_IOC(IOC_IN | IOC_OUT, group, number, sizeof(type))
#define _IOW(group, number, type) SIM_IOC(IOC_IN, group, number, sizeof(type))
