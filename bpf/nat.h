/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Flows of NAT and FULL-NAT: two entries each, twins, one for either direction. They expire together, and mend each
 * other when one was evicted.
 */
#pragma once

#include "claim.h"

/* Of the client whose frame this is. Returns one word, as the flow has it. */
ALWAYS_INLINE __u64 last_hop(const struct xdp_md *ctx, const struct packet *packet)
{
	struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));
	__u16 vlan = packet->tag_count ? bpf_ntohs(packet->tags[0].tci) & 0xfff : 0;
	const __u16 *mac;

	if (!eth)
		return 0;
	mac = (const __u16 *)eth->h_source;
	return mac[0] | (__u64)mac[1] << 16 | (__u64)mac[2] << 32 | (__u64)(vlan ?: hop_untagged) << 48;
}

ALWAYS_INLINE __u64 *hop_word(struct flow *flow)
{
	return (__u64 *)&flow->last_hop;
}

ALWAYS_INLINE __u64 client_states(const struct packet *packet)
{
	if (packet->opens)
		return 0;
	return flow_spoken | (packet->closes ? flow_closing : 0) | (packet->resets ? flow_reset : 0);
}

/* The reply's entry of a flow that begins with this packet, and its tuple as far as all modes know it. */
ALWAYS_INLINE void draft_flow(const struct xdp_md *ctx, const struct packet *packet, const struct backend *backend,
			      struct translation *work, __u64 time)
{
	const struct tuple *tuple = &packet->tuple;

	work->flow = (struct flow){
		.stamp = time << flow_stamp_shift | client_states(packet),
		.backend = backend->id,
		.direction = flow_to_client,
		.interface = this_interface,
		.id = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32() | 1,
		.far_port = tuple->sport,
		.vip_port = tuple->dport,
		.touched = time,
	};
	work->flow.far = tuple->src;
	work->flow.vip = tuple->dst;
	*hop_word(&work->flow) = last_hop(ctx, packet);
	work->reply.src = backend->address;
	work->reply.dst = tuple->dst;
	work->reply.sport = backend->port ?: tuple->dport;
	work->reply.proto = tuple->proto;
	work->takes_own = work->own_only = work->impatient = 0;
}

ALWAYS_INLINE void reverse_tuple(struct tuple *to, const struct tuple *from)
{
	to->src = from->dst;
	to->dst = from->src;
	to->sport = from->dport;
	to->dport = from->sport;
	to->proto = from->proto;
}

/* The flow's other entry goes where its tuple had one before, as a pin does. */
ALWAYS_INLINE void insert_forward(const struct packet *packet, struct translation *work, bool promoted)
{
	const struct tuple *tuple = &work->key;

	work->flow.direction = flow_to_backend;
	work->flow.far = work->reply.dst;
	work->flow.far_port = work->reply.dport;
	if (promoted && !packet->opens) {
		bpf_map_update_elem(&flows, tuple, &work->flow, BPF_ANY);
		return;
	}
	if (promoted)
		bpf_map_delete_elem(&flows, tuple);
	bpf_map_update_elem(&half_open, tuple, &work->flow, BPF_ANY);
}

/* A pure function of the tuple names the backend, here and on every other balancer. */
ALWAYS_INLINE bool table_names(const struct vip *vip)
{
	return vip->function.scheduler <= scheduler_source && !vip->affinity;
}

/*
 * A flow that has no entry, toward a backend of NAT or FULL-NAT. Returns the backend's id, or 0 and packet->refused.
 * TCP without a SYN is adopted in NAT; FULL-NAT cannot know what source the backend knows.
 */
__noinline __u32 open_flow(struct xdp_md *ctx, struct packet *packet, const struct vip *vip,
			   const struct backend *backend, bool promoted)
{
	if (!packet || !vip || !backend)
		return 0;

	struct settings *settings = get_settings();
	struct translation *work = translation();
	bool tcp = packet->tuple.proto == IPPROTO_TCP, nat = backend->mode == mode_nat;

	if (!settings || !work)
		return 0;
	if (packet->ttl <= 1) { /* it is not forwarded, and takes nothing */
		packet->refused = ttl_exceeded;
		return 0;
	}
	packet->refused = flow_unknown;
	if (tcp && !packet->opens && ((nat && !table_names(vip)) || packet->resets))
		return 0;
	draft_flow(ctx, packet, backend, work, now(settings));
	if (nat) {
		work->reply.dst = packet->tuple.src;
		work->reply.dport = packet->tuple.sport;
		work->takes_own = 1;
		if (claim()) {
			packet->refused = nat_clash;
			return 0;
		}
	} else if (claim_port(work, packet, vip, settings)) {
		if (packet->opens || !tcp)
			packet->refused = snat_exhausted;
		return 0;
	}
	packet->refused = passed;
	insert_forward(packet, work, promoted);
	count_change(backend->id, 0, work->flow.stamp);
	reverse_tuple(&work->to, &work->reply);
	packet->followed = true;
	packet->opens |= !tcp;
	return backend->id;
}

/* What the client's packets become. False: the entry is dead, or not of this direction. */
ALWAYS_INLINE bool set_forward(struct packet *packet, const struct flow *flow, struct translation *work,
			       __u64 time, const struct settings *settings)
{
	struct backend *backend = find_backend(flow->backend);

	if (!serves(backend) || flow->direction != flow_to_backend ||
	    !flow_alive(flow, packet->tuple.proto, time, settings))
		return false;
	work->to.src = flow->far;
	work->to.dst = backend->address;
	work->to.sport = flow->far_port;
	work->to.dport = backend->port ?: packet->tuple.dport;
	work->to.proto = packet->tuple.proto;
	packet->followed = true;
	return true;
}

/* The way of a packet that must leave no trace. */
ALWAYS_INLINE bool follow_only(struct packet *packet, const struct flow *flow, const struct settings *settings)
{
	struct translation *work = translation();

	return work && set_forward(packet, flow, work, now(settings), settings);
}

/* Builds the twin's entry of this one, whose packet shows what it does not know. Never a copy: the twin may be gone. */
ALWAYS_INLINE void draft_twin(const struct packet *packet, const struct flow *flow, struct translation *work)
{
	bool reply = flow->direction == flow_to_client;

	work->flow = *flow;
	work->flow.stamp &= ~(__u64)flow_claimed;
	work->flow.direction = reply ? flow_to_backend : flow_to_client;
	work->flow.far = reply ? packet->tuple.dst : packet->tuple.src;
	work->flow.far_port = reply ? packet->tuple.dport : packet->tuple.sport;
	work->flow.vip = packet->tuple.dst;
	work->flow.vip_port = packet->tuple.dport;
}

/* The twin was evicted. An entry toward the client is a claim, as ever. */
ALWAYS_INLINE int mend_twin(struct translation *work, bool promoted)
{
	if (work->flow.direction == flow_to_client) {
		work->takes_own = work->own_only = work->impatient = 0;
		if (claim())
			return -1;
		if (promoted)
			move_up(&work->reply, &work->flow, &work->flow);
		return 0;
	}
	if (promoted)
		return bpf_map_update_elem(&flows, &work->reply, &work->flow, BPF_NOEXIST);
	return bpf_map_update_elem(&half_open, &work->reply, &work->flow, BPF_NOEXIST);
}

/* Tells the twin what this entry knows. Returns 0, or -1 if its tuple is another flow's by now. */
__noinline int touch_twin(const struct packet *packet, struct flow *flow, bool promoted)
{
	struct translation *work = translation();
	struct pin twin;
	__u64 stamp;

	if (!packet || !flow || !work)
		return -1;
	draft_twin(packet, flow, work);
	stamp = work->flow.stamp;
	flow->touched = stamp >> flow_stamp_shift;
	reverse_tuple(&work->reply, &work->to);
	twin = find_pin(&work->reply, false);
	if (!twin.flow)
		return mend_twin(work, promoted);
	if (twin.flow->id != work->flow.id)
		return -1;
	touch_pin(&work->reply, &twin, stamp >> flow_stamp_shift, stamp & FLOW_STATES);
	if (*hop_word(twin.flow) != *hop_word(&work->flow) || twin.flow->interface != work->flow.interface) {
		*hop_word(twin.flow) = *hop_word(&work->flow);
		twin.flow->interface = work->flow.interface;
	}
	if (promoted && !twin.promoted)
		move_up(&work->reply, &work->flow, twin.flow);
	return 0;
}

/* Unless the client has begun anew meanwhile. */
ALWAYS_INLINE void delete_lost(const struct tuple *tuple, __u64 id)
{
	struct pin pin = find_pin(tuple, false);

	if (!pin.flow || pin.flow->id != id)
		return;
	if (pin.promoted)
		bpf_map_delete_elem(&flows, tuple);
	else
		bpf_map_delete_elem(&half_open, tuple);
}

ALWAYS_INLINE bool twin_is_due(const struct flow *flow, __u8 proto, __u64 time, const struct settings *settings)
{
	return (__u32)time - flow->touched >= twin_lag(flow_lifetime(flow->stamp, proto, settings), settings);
}

/* A packet of the client. Returns the backend's id; 0 if the flow is dead, and where packet->refused is set, lost. */
ALWAYS_INLINE __u32 follow_flow(struct xdp_md *ctx, struct packet *packet, const struct pin *pin,
				struct translation *work, __u64 time, const struct settings *settings)
{
	struct flow *flow = pin->flow;
	__u64 states, had, hop, id = flow->id;
	__u32 backend = flow->backend;
	bool due, promotes;

	if (!set_forward(packet, flow, work, time, settings))
		return 0;
	if (packet->opens && flow->stamp & (flow_closing | flow_finished | flow_reset))
		return 0; /* a new connection from the same port */
	hop = last_hop(ctx, packet);
	due = hop != *hop_word(flow) || flow->interface != this_interface;
	if (due) {
		*hop_word(flow) = hop;
		flow->interface = this_interface;
	}
	due |= twin_is_due(flow, packet->tuple.proto, time, settings);
	states = client_states(packet);
	had = touch_pin(&work->key, pin, time, states);
	count_change(backend, had, had | states);
	due |= (had | states) != had;
	promotes = !pin->promoted && had & flow_answered && !packet->opens && !packet->resets;
	if ((due || promotes) && touch_twin(packet, flow, pin->promoted || promotes) && flow->id == id) {
		delete_lost(&work->key, id);
		packet->refused = twin_lost;
		return 0;
	}
	if (promotes)
		promote_flow(&work->key, flow, backend, id);
	return backend;
}

/* The same as a function, so that the verifier sees it once: for what is no hot path. */
__noinline __u32 follow_slowly(struct xdp_md *ctx, struct packet *packet, struct flow *flow, bool promoted)
{
	struct settings *settings = get_settings();
	struct translation *work = translation();
	struct pin pin = { .flow = flow, .promoted = promoted };

	if (!packet || !flow || !work || !settings)
		return 0;
	return follow_flow(ctx, packet, &pin, work, now(settings), settings);
}

/* Where a frame goes. */
struct hop {
	struct hop_mac mac;
	struct hop_link link;
};

/* What the backend's packet becomes. NULL: it is no reply, or one of a flow that ended. */
ALWAYS_INLINE struct flow *set_reply(const struct packet *packet, const struct pin *pin, struct translation *work,
				     __u64 time, const struct settings *settings)
{
	struct flow *flow = pin->flow;

	if (!flow || flow->direction != flow_to_client || !backend_up(flow->backend) ||
	    !flow_alive(flow, packet->tuple.proto, time, settings))
		return NULL;
	work->to.src = flow->vip;
	work->to.dst = flow->far;
	work->to.sport = flow->vip_port;
	work->to.dport = flow->far_port;
	work->to.proto = packet->tuple.proto;
	return flow;
}

/* Of a backend whose flow has the states `had`. */
ALWAYS_INLINE __u64 backend_states(const struct packet *packet, __u64 had)
{
	if (packet->resets)
		return flow_answered | flow_reset;
	if (!packet->closes)
		return flow_answered;
	return flow_answered | flow_finished | (had & (flow_closing | flow_finished) ? 0 : flow_backend_first);
}

/*
 * A packet that a backend may have sent back: sets the way it goes and whose it is. Returns the backend's id; 0 if it
 * is none, or where packet->refused is set, is lost. An entry whose client has begun anew stays: the backend may
 * still hold its tuple.
 */
ALWAYS_INLINE __u32 follow_reply(struct packet *packet, struct hop *hop, const struct settings *settings)
{
	struct translation *work = translation();
	__u64 time = now(settings), states, had, word;
	struct flow *flow;
	struct pin pin;
	__u32 backend;

	if (!work)
		return 0;
	work->key = packet->tuple;
	pin = find_pin(&work->key, false);
	flow = set_reply(packet, &pin, work, time, settings);
	if (!flow)
		return 0;
	if (flow->stamp & flow_claimed) { /* of a flow that is dead, and looks alive because another begins */
		packet->refused = twin_lost;
		return 0;
	}
	word = *hop_word(flow);
	__builtin_memcpy(&hop->mac, &word, sizeof(word));
	hop->link.interface = flow->interface;
	backend = flow->backend;
	if (reads_only(packet))
		return backend;
	states = backend_states(packet, flow->stamp);
	had = touch_pin(&work->key, &pin, time, states);
	count_change(backend, had, had | states);
	if (((had | states) != had || twin_is_due(flow, packet->tuple.proto, time, settings)) &&
	    touch_twin(packet, flow, false)) {
		packet->refused = twin_lost;
		return 0;
	}
	return backend;
}
