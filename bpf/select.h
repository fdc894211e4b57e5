/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Just-enough tracking: only flows of moving slots are looked up in the flow tables. */
#pragma once

#include "schedule.h"
#include "nat.h"

/* Where flows of this slot went before it moved. */
ALWAYS_INLINE __u32 old_backend(const struct packet *packet, const struct vip *vip, const struct slot *slot,
				const struct settings *settings)
{
	if (vip->flags & vip_was)
		slot = find_slot(vip, slot_hash(settings, &packet->tuple, &vip->was));
	if (!slot)
		return 0;
	return slot->moving ? slot->old : slot->backend;
}

/* The backend of a packet that has no pin and opens nothing. */
ALWAYS_INLINE __u32 unpinned_backend(const struct packet *packet, const struct vip *vip, const struct slot *slot,
				     const struct settings *settings)
{
	__u32 old = old_backend(packet, vip, slot, settings);

	return backend_up(old) ? old : slot->backend;
}

/*
 * UDP shows no beginning: what has no pin is new a while after a change. Where the tuple does not name the backend, the table
 * cannot either, and it is new as soon as every flow that is not too old has a pin.
 */
ALWAYS_INLINE bool surely_new(const struct packet *packet, const struct vip *vip, __u64 time,
			      const struct settings *settings)
{
	if (packet->tuple.proto != IPPROTO_UDP)
		return false;
	return time - vip->changed_at >= settings->udp_grace ||
	       (!table_names(vip) && vip->pinned_since && time - vip->pinned_since > settings->udp_idle);
}

/* A later fragment or an ICMP error in a moving slot: reads pins, and writes none. */
__noinline __u32 read_moving(struct packet *packet, const struct vip *vip, const struct slot *slot,
			     const struct settings *settings)
{
	if (!packet || !vip || !slot || !settings)
		return 0;

	struct translation *work = translation();
	struct backend *backend;
	struct flow *flow;
	__u32 id;

	if (!work)
		return 0;
	work->key = packet->tuple;
	flow = find_pin(&work->key, false).flow;
	if (flow && backend_up(flow->backend)) {
		if (!flow->id)
			return flow->backend;
		if (follow_only(packet, flow, settings))
			return flow->backend;
	}
	id = surely_new(packet, vip, now(settings), settings) ? slot->backend :
								unpinned_backend(packet, vip, slot, settings);
	backend = find_backend(id);
	if (!backend || !translates(backend))
		return id;
	packet->refused = flow_unknown;
	return 0;
}

/* Of DR and TUN: the pin goes on to its backend, if that is up and the pin alive; else 0. */
ALWAYS_INLINE __u32 follow_pin(const struct packet *packet, const struct tuple *tuple, const struct pin *pin,
			       __u64 time, const struct settings *settings)
{
	__u64 had, states = pin_states(packet);
	__u32 backend = pin->flow->backend;

	if (!backend_up(backend))
		return 0;
	if (packet->opens && (!flow_live(pin->flow, settings) || pin->flow->stamp & flow_closing))
		return 0;
	had = touch_pin(tuple, pin, time, states);
	count_change(backend, had, had | states);
	if (!packet->opens && !pin->promoted)
		promote_flow(tuple, pin->flow, backend, 0);
	return backend;
}

/*
 * In a VIP that pins every flow one that is in `flows` needs no slot. Returns the backend's id; 0: it is not there, is
 * dead, or packet->refused says why it goes no further.
 */
__noinline __u32 follow_promoted(struct xdp_md *ctx, struct packet *packet, const struct settings *settings)
{
	if (!packet || !settings)
		return 0;

	struct translation *work = translation();
	struct pin pin = { .promoted = true };

	if (!work)
		return 0;
	work->key = packet->tuple;
	pin.flow = bpf_map_lookup_elem(&flows, &work->key);
	if (!pin.flow)
		return 0;
	if (pin.flow->id)
		return follow_flow(ctx, packet, &pin, work, now(settings), settings);
	return follow_pin(packet, &work->key, &pin, now(settings), settings);
}

/* A packet of a moving slot: DESIGN.md, just-enough tracking. Returns a backend's id, or 0. */
__noinline __u32 select_moving(struct xdp_md *ctx, struct packet *packet, const struct vip *vip,
			       const struct slot *slot, const struct settings *settings)
{
	if (!packet || !vip || !slot || !settings)
		return 0;

	struct translation *work = translation();
	__u64 time = now(settings), states = pin_states(packet);
	const struct tuple *tuple;
	struct backend *backend;
	struct pin pin;
	__u32 id;

	if (!work)
		return 0;
	work->key = packet->tuple;
	tuple = &work->key;
	pin = find_pin(tuple, packet->opens);
	if (pin.flow) {
		id = pin.flow->id ? follow_slowly(ctx, packet, pin.flow, pin.promoted) :
				    follow_pin(packet, tuple, &pin, time, settings);
		if (id || packet->refused)
			return id;
	}
	if (packet->opens || surely_new(packet, vip, time, settings))
		id = choose_backend(packet, vip, slot, settings);
	else
		id = unpinned_backend(packet, vip, slot, settings);
	backend = find_backend(id);
	if (backend && translates(backend))
		return open_flow(ctx, packet, vip, backend, pin.promoted);
	if (packet->opens && pin.promoted)
		bpf_map_delete_elem(&flows, tuple);
	remember_flow(tuple, id, time, states, pin.promoted && !packet->opens);
	count_change(id, 0, states);
	packet->opens |= tuple->proto == IPPROTO_UDP; /* to be counted: where every flow is pinned, it is new */
	return id;
}

ALWAYS_INLINE bool slot_moves(const struct vip *vip, const struct slot *slot)
{
	return slot->moving || vip->flags & (vip_pin_all | vip_was);
}

/* Sets the packet's hash. NULL: the VIP has no backend for this flow, and packet->refused may say why. */
ALWAYS_INLINE struct backend *select_backend(struct xdp_md *ctx, struct packet *packet, const struct vip *vip,
					     const struct settings *settings)
{
	struct backend *backend;
	struct slot *slot;
	__u32 id;

	if (vip->flags & vip_pin_all && !reads_only(packet) && !packet->opens) {
		id = follow_promoted(ctx, packet, settings);
		backend = find_backend(id);
		if (backend && backend->mode == mode_tun) /* its outer header varies with the flow */
			packet->hash = slot_hash(settings, &packet->tuple, &vip->function);
		if (backend || packet->refused)
			return backend;
	}
	packet->hash = slot_hash(settings, &packet->tuple, &vip->function);
	slot = find_slot(vip, packet->hash);
	if (!slot)
		return NULL;
	id = slot->backend;
	if (slot_moves(vip, slot))
		id = reads_only(packet) ? read_moving(packet, vip, slot, settings) :
					  select_moving(ctx, packet, vip, slot, settings);
	return find_backend(id);
}

/* Whose flow an ICMP error quotes; the same, but it leaves no trace. */
ALWAYS_INLINE struct backend *quoted_backend(struct packet *quoted, const struct vip *vip,
					     const struct settings *settings)
{
	struct slot *slot = find_slot(vip, slot_hash(settings, &quoted->tuple, &vip->function));

	if (!slot)
		return NULL;
	return find_backend(slot_moves(vip, slot) ? read_moving(quoted, vip, slot, settings) : slot->backend);
}

/* A VIP of exactly this port. */
ALWAYS_INLINE struct vip *find_exact_vip(const struct packet *packet)
{
	struct vip_key key = { .address = packet->tuple.dst };

	return lookup_vip(&key, packet->tuple.dport, packet->tuple.proto);
}

/* A VIP of all ports. */
ALWAYS_INLINE struct vip *find_any_port_vip(const struct packet *packet)
{
	struct vip_key key = { .address = packet->tuple.dst };

	return lookup_vip(&key, 0, packet->tuple.proto);
}

ALWAYS_INLINE struct vip *find_vip(const struct packet *packet, const struct settings *settings)
{
	struct vip *vip = find_exact_vip(packet);

	return vip || !(settings->flags & setting_any_port) ? vip : find_any_port_vip(packet);
}
