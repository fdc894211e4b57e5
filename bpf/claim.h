/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * A flow of NAT or FULL-NAT begins with the claim of its reply's tuple, which no other flow may have: how long a flow
 * has one, and how CPUs that want the same agree.
 */
#pragma once

#include "schedule.h"

enum {
	closed_seconds = 10,    /* that a closed flow stays, as IPVS keeps it */
	time_wait_seconds = 60, /* that a backend which closed first holds the tuple (TCP_TIMEWAIT_LEN, include/net/tcp.h) */
	lag_seconds = 4,        /* that a twin may be behind at most, */
	lag_part = 32,          /* and this part of what it lives: of a handshake less than patience_seconds */
	reuse_seconds = 1,      /* until a tuple may be claimed that no one holds */
	patience_seconds = 3,   /* that a handshake keeps its port when there is no other */
	claim_tries = 32,       /* ports at a time, and of a large range in all */
	claim_whole = 256,      /* a range up to this is tried whole */
};

ALWAYS_INLINE bool translates(const struct backend *backend)
{
	return backend->mode == mode_nat || backend->mode == mode_fullnat;
}

ALWAYS_INLINE bool flow_closed(__u64 states)
{
	return states & flow_reset || (states & flow_closing && states & flow_finished);
}

/* Jiffies that a flow lives after its last packet. Twins have the same states. */
ALWAYS_INLINE __u64 flow_lifetime(__u64 states, __u8 proto, const struct settings *settings)
{
	if (flow_closed(states))
		return settings->hz * (!(states & flow_reset) && states & flow_backend_first ? time_wait_seconds :
											       closed_seconds);
	if (states & (flow_closing | flow_finished))
		return settings->closing;
	if (!(states & flow_spoken))
		return settings->half_open;
	return proto == IPPROTO_UDP ? settings->udp_idle : settings->tcp_idle;
}

/* Another CPU's clock may be a jiffy ahead. */
ALWAYS_INLINE bool older_than(__u64 stamp, __u64 time, __u64 limit)
{
	return (__s64)(time - (stamp >> flow_stamp_shift)) > (__s64)limit;
}

ALWAYS_INLINE bool flow_alive(const struct flow *flow, __u8 proto, __u64 time, const struct settings *settings)
{
	__u64 stamp = flow->stamp;

	return !older_than(stamp, time, flow_lifetime(stamp, proto, settings));
}

/*
 * Jiffies that a flow's other entry may not have heard of it: so often it is touched. A second would make every packet of
 * a million flows touch two entries.
 */
ALWAYS_INLINE __u64 twin_lag(__u64 lifetime, const struct settings *settings)
{
	__u64 most = lag_seconds * settings->hz;

	lifetime /= lag_part;
	return lifetime < most ? lifetime : most;
}

/* Whether a reply's entry is of the flow that is being opened: its other half was lost, or is closing. */
ALWAYS_INLINE bool same_flow(const struct flow *a, const struct flow *b)
{
	return a->direction == flow_to_client && a->backend == b->backend && a->far_port == b->far_port &&
	       a->vip_port == b->vip_port && same_address(&a->far, &b->far) && same_address(&a->vip, &b->vip);
}

/*
 * Jiffies of silence after which an owner gives way. What was a deleted backend's is nobody's, also where that backend was
 * added again. A handshake is one in either map: a tuple that was promoted once stays in `flows`.
 */
ALWAYS_INLINE __u64 owner_keeps(const struct flow *flow, __u64 stamp, const struct translation *work,
				const struct settings *settings)
{
	__u64 limit = flow_lifetime(stamp, work->reply.proto, settings), hz = settings->hz;
	struct backend *backend = find_backend(flow->backend);

	if (!backend || backend->flags & backend_gone)
		return 0;
	if (flow_closed(stamp) && (stamp & flow_reset || !(stamp & flow_backend_first)))
		return reuse_seconds * hz;
	limit += twin_lag(limit, settings); /* so much later its twin may have been touched */
	if (work->impatient && !(stamp & (flow_spoken | flow_closing | flow_finished)) && limit > patience_seconds * hz)
		limit = patience_seconds * hz;
	return limit;
}

/*
 * A dead owner's entry becomes ours: whoever changes its stamp first. An entry of the same flow is taken with its id,
 * so that CPUs that see two packets of the flow at once mean one flow.
 */
ALWAYS_INLINE int take_over(void *map, struct flow *flow, struct translation *work, const struct settings *settings)
{
	__u64 stamp = flow->stamp, time = now(settings), id = flow->id;
	bool own = work->takes_own && same_flow(flow, &work->flow);

	if (!own && (work->own_only || !older_than(stamp, time, owner_keeps(flow, stamp, work, settings))))
		return -1;
	if (stamp & flow_claimed && !older_than(stamp, time, settings->hz))
		return -1;
	if (__sync_val_compare_and_swap(&flow->stamp, stamp, work->flow.stamp | flow_claimed) != stamp)
		return -1;
	if (own)
		work->flow.id = id;
	return bpf_map_update_elem(map, &work->reply, &work->flow, BPF_EXIST) ? -1 : 0;
}

/*
 * Makes the translation's `reply` the flow's. Returns 0, or -1 if another flow has it. The second look into `flows` is
 * for a flow that was promoted between the first one and the insert.
 */
__noinline int claim(void)
{
	struct settings *settings = get_settings();
	struct translation *work = translation();
	struct flow *flow;

	if (!work || !settings)
		return -1;
	flow = bpf_map_lookup_elem(&flows, &work->reply);
	if (flow)
		return take_over(&flows, flow, work, settings);
	if (!work->own_only && !bpf_map_update_elem(&half_open, &work->reply, &work->flow, BPF_NOEXIST)) {
		if (!bpf_map_lookup_elem(&flows, &work->reply))
			return 0;
		bpf_map_delete_elem(&half_open, &work->reply);
		return -1;
	}
	flow = bpf_map_lookup_elem(&half_open, &work->reply);
	return flow ? take_over(&half_open, flow, work, settings) : -1;
}

/* Claims the `number`th of all SNAT ports. One that a VIP listens on is the VIP's. Returns 0 or -1. */
ALWAYS_INLINE int claim_number(struct translation *work, __u32 number)
{
	union address *address;
	struct vip_key key = {};
	__u32 index;

	if (!work->span)
		return -1;
	index = work->list + number / work->span;
	if (work->listed) {
		address = bpf_map_lookup_elem(&snat, &index);
		if (!address)
			return -1;
		work->reply.dst = *address;
	}
	work->reply.dport = work->low + number % work->span;
	key.address = work->reply.dst;
	if (lookup_vip(&key, work->reply.dport, work->reply.proto))
		return -1;
	return claim();
}

/* Some numbers from this one on; in a large range any others. A function, so that the verifier sees its loop once. */
__noinline int claim_run(__u32 number, __u32 total, __u32 tries)
{
	struct translation *work = translation();

	if (!work || !total)
		return -1;
	for (__u32 i = 0; i < claim_tries && i < tries; i++) {
		if (!claim_number(work, number))
			return 0;
		number = (total > claim_whole ? bpf_get_prandom_u32() : number + 1) % total;
	}
	return -1;
}

/* A small range is tried whole, beginning anywhere. */
ALWAYS_INLINE int claim_some(__u32 first, __u32 total)
{
	for (__u32 tried = 0; tried < claim_whole; tried += claim_tries)
		if (!claim_run((first + tried) % total, total, claim_tries))
			return 0;
		else if (total > claim_whole || tried + claim_tries >= total)
			break;
	return -1;
}

/* packet->hash may be its client's only. A function, for its stack: 512 bytes are all that a chain of calls has. */
static __noinline __u32 flow_hash(const struct packet *packet, const struct settings *settings)
{
	return tuple_hash(settings, &packet->tuple);
}

/* A port for a FULL-NAT flow. Without a list of SNAT addresses the VIP's own address is the source. */
ALWAYS_INLINE int claim_port(struct translation *work, const struct packet *packet, const struct vip *vip,
			     const struct settings *settings)
{
	__u32 count = vip->snat_count, first, total;

	work->list = vip->snat_first;
	if (!count) {
		work->list = packet->ipv6 ? settings->snat.first6 : settings->snat.first4;
		count = packet->ipv6 ? settings->snat.count6 : settings->snat.count4;
	}
	work->listed = count;
	work->low = settings->snat_low;
	work->span = settings->snat_high - settings->snat_low + 1;
	total = (count ?: 1) * work->span;
	if (!settings->snat_low || !total)
		return -1;
	first = flow_hash(packet, settings) % total;
	if (!packet->opens) { /* its other half may be all that is left of it: where it tried first */
		work->takes_own = work->own_only = 1;
		if (!claim_run(first, total, 1))
			return 0;
		if (packet->tuple.proto == IPPROTO_TCP)
			return -1;
		work->takes_own = work->own_only = 0;
	}
	if (!claim_some(first, total))
		return 0;
	work->impatient = 1;
	return claim_some(first, total);
}
