/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The decision record, little-endian and packed. Made from l4s_gym/schema.py
 * by `python -m l4s_gym.bridge.header`: change it there.
 */
#ifndef L4S_RECORD_H
#define L4S_RECORD_H

#include "l4s_types.h"

#define L4S_SCHEMA_VERSION 1
#define L4S_RECORD_SIZE 135
#define L4S_LAYOUT { 0xdb, 0xb8, 0x12, 0x3d, 0x44, 0xbb, 0x4d, 0xae }

/* actions: 0 enqueue, 1 drop, 2 mark */
struct L4S_PACKED l4s_record {
	uint8_t queue_type; /* 0 = C, 1 = L */
	uint32_t qdelay_ref; /* us */
	uint32_t tupdate; /* us */
	uint32_t max_burst; /* us */
	uint16_t max_ecn_threshold; /* 1/8192 */
	uint32_t alpha; /* 1/8192 */
	uint32_t beta; /* 1/8192 */
	uint32_t flags; /* bits */
	uint32_t burst_allowance; /* us */
	uint32_t drop_probability; /* 1/(2^31-1) */
	uint32_t current_queue_delay; /* us */
	uint32_t queue_delay_old; /* us */
	uint64_t accumulated_probability; /* 1/(2^31-1) */
	uint32_t measurement_start; /* us */
	uint32_t average_dequeue_time; /* us */
	uint32_t dequeue_count; /* B */
	uint32_t status_flags; /* bits */
	uint64_t total_packets; /* packets */
	uint64_t total_bytes; /* B */
	uint32_t length_in_packets; /* packets */
	uint32_t length_in_bytes; /* B */
	uint32_t total_drops; /* packets */
	uint32_t packet_length; /* B */
	uint8_t action; /* 0, 1, 2 */
	uint64_t sequence; /* records */
	uint64_t time_us; /* us */
	uint32_t flow_id; /* index */
	uint8_t ecn; /* codepoint */
	uint8_t decided_by; /* index */
	uint8_t applied_action; /* 0, 1, 2 */
	uint64_t accumulated_probability_before; /* 1/(2^31-1) */
	uint32_t interval_drops; /* packets */
};

#endif
