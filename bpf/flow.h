/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * The flow tables: pins of flows to backends. A tuple seen once is in `half_open`, one that spoke again
 * in `flows`: a flood of fresh tuples can push out only others like it.
 */
#pragma once

#include "parse.h"

#define FLOW_STATES ((1 << flow_stamp_shift) - 1)

enum { stamp_tries = 4 };

struct pin {
	struct flow *flow; /* NULL: the tuple has none */
	bool promoted;     /* it is in `flows` */
};

/* Writes no entries: it may be late, or a lie. */
ALWAYS_INLINE bool reads_only(const struct packet *packet)
{
	return packet->kind == packet_later_fragment || packet->kind == packet_icmp_error;
}

ALWAYS_INLINE struct pin find_pin(const struct tuple *tuple)
{
	struct pin pin = { .flow = bpf_map_lookup_elem(&flows, tuple) };

	pin.promoted = pin.flow;
	if (!pin.flow)
		pin.flow = bpf_map_lookup_elem(&half_open, tuple);
	return pin;
}

/* Whether a SYN belongs to the connection that has the pin. An entry that has seen only SYNs dies early. */
ALWAYS_INLINE bool flow_live(const struct flow *flow, const struct settings *settings)
{
	__u64 stamp = flow->stamp;
	__u64 idle = now(settings) - (stamp >> flow_stamp_shift);

	return idle <= (stamp & flow_spoken ? settings->tcp_idle : settings->half_open);
}

/*
 * Two CPUs may touch one flow: neither a later time nor a state of the other's is lost. Returns the states that the
 * flow had.
 */
ALWAYS_INLINE __u64 touch_flow(struct flow *flow, __u64 time, __u64 states)
{
	__u64 stamp = flow->stamp;

	for (int i = 0; i < stamp_tries; i++) {
		__u64 next = time << flow_stamp_shift | (stamp & FLOW_STATES) | states;
		__u64 found;

		if (next == stamp)
			break;
		found = __sync_val_compare_and_swap(&flow->stamp, stamp, next);
		if (found == stamp)
			break;
		stamp = found;
	}
	return stamp & FLOW_STATES;
}

/* Of a flow that counts toward the load of its backend: a handshake is none, lest a flood of SYNs be one. */
ALWAYS_INLINE bool flow_open(__u64 states)
{
	return (states & (flow_spoken | flow_closing | flow_finished | flow_reset)) == flow_spoken;
}

ALWAYS_INLINE struct translation *translation(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&translations, &zero);
}

/*
 * An insert that fails (the table is full of flows in use on every CPU) loses a pin, not a packet:
 * the flow falls back to its slot's `old`.
 */
ALWAYS_INLINE void remember_flow(const struct tuple *tuple, __u32 backend, __u64 time, __u64 states, bool promoted)
{
	struct translation *work = translation();

	if (!work)
		return;
	work->flow = (struct flow){
		.stamp = time << flow_stamp_shift | states,
		.backend = backend,
		.direction = flow_to_backend,
	};
	if (promoted)
		bpf_map_update_elem(&flows, tuple, &work->flow, BPF_ANY);
	else
		bpf_map_update_elem(&half_open, tuple, &work->flow, BPF_ANY);
}

/* In this order, so that the flow is always in one of the two. */
ALWAYS_INLINE void promote_flow(const struct tuple *tuple, const struct flow *flow)
{
	if (!bpf_map_update_elem(&flows, tuple, flow, BPF_ANY))
		bpf_map_delete_elem(&half_open, tuple);
}
