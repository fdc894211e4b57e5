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

/* The third look is for an entry that was promoted between the first two; a SYN has none that is. */
ALWAYS_INLINE struct pin find_pin(const struct tuple *tuple, bool opens)
{
	struct pin pin = { .flow = bpf_map_lookup_elem(&flows, tuple), .promoted = true };

	if (!pin.flow) {
		pin.flow = bpf_map_lookup_elem(&half_open, tuple);
		pin.promoted = false;
	}
	if (!pin.flow && !opens) {
		pin.flow = bpf_map_lookup_elem(&flows, tuple);
		pin.promoted = pin.flow;
	}
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

/*
 * Of an entry that another CPU may be promoting: it reads the old entry after it wrote the new one, and here the new one
 * is looked for after the old one was changed. So one of the two sees the other, and no state is lost.
 */
static __noinline __u64 touch_half_open(const struct tuple *tuple, struct flow *flow, __u64 time, __u64 states)
{
	__u64 had = touch_flow(flow, time, states);
	struct flow *moved;

	if ((had | states) == had)
		return had;
	moved = bpf_map_lookup_elem(&flows, tuple);
	if (moved && moved->id == flow->id)
		touch_flow(moved, time, states);
	return had;
}

ALWAYS_INLINE __u64 touch_pin(const struct tuple *tuple, const struct pin *pin, __u64 time, __u64 states)
{
	return pin->promoted ? touch_flow(pin->flow, time, states) : touch_half_open(tuple, pin->flow, time, states);
}

/*
 * In this order, so that the flow is always in one of the two. `from` is the entry in `half_open` that `flow` was made
 * of: what happened to it meanwhile goes along.
 */
static __noinline int move_up(const struct tuple *tuple, const struct flow *flow, const struct flow *from)
{
	struct flow *promoted;
	__u64 stamp;

	if (bpf_map_update_elem(&flows, tuple, flow, BPF_ANY))
		return -1;
	stamp = from->stamp;
	if (stamp != flow->stamp && from->id == flow->id) {
		promoted = bpf_map_lookup_elem(&flows, tuple);
		if (promoted)
			touch_flow(promoted, stamp >> flow_stamp_shift, stamp & FLOW_STATES & ~flow_claimed);
	}
	return bpf_map_delete_elem(&half_open, tuple);
}

/*
 * The entry may be another's by now, whose place in memory it has: LRU maps use them again at once. So what is moved
 * is a copy that shows the flow's own backend and id.
 */
ALWAYS_INLINE void promote_flow(const struct tuple *tuple, const struct flow *flow, __u32 backend, __u64 id)
{
	struct translation *work = translation();

	if (!work)
		return;
	work->flow = *flow;
	if (work->flow.backend == backend && work->flow.id == id && work->flow.direction == flow_to_backend)
		move_up(tuple, &work->flow, flow);
}

/* What a client's packet shows of its flow. */
ALWAYS_INLINE __u64 pin_states(const struct packet *packet)
{
	return packet->opens ? 0 : flow_spoken | (packet->closes ? flow_closing : 0);
}
