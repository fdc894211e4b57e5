/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Which backend a new flow gets, where its tuple alone does not say: `rr`, `lc` and --affinity. Only the first packet
 * of a flow comes here; all others follow its pin.
 */
#pragma once

#include <linux/errno.h>

#include "flow.h"
#include "table.h"

enum {
	rr_tries = 8,       /* slots whose backend went down a moment ago */
	lc_tries = 16,      /* neighbours of the second slot, until one names another backend */
	affinity_tries = 3, /* CPUs that may have been quicker */
};

/* As Backend.TakesNew in maps/backends.go, but for records that a command is about to list. */
ALWAYS_INLINE bool takes_new(const struct backend *backend)
{
	return backend && backend->weight && backend->link.flags & hop_resolved &&
	       !(backend->flags & (backend_drain | backend_down | backend_gone));
}

/*
 * Open flows of a backend: +1 when one begins, -1 when it begins to close. Not of a backend whose place is another's by
 * now, which a pin may outlive.
 */
ALWAYS_INLINE void count_load(__u32 backend, int by)
{
	__u32 index = backend & backend_index_mask;
	__u64 *load = find_backend(backend) ? bpf_map_lookup_elem(&loads, &index) : NULL;

	if (load)
		__sync_fetch_and_add(load, (__s64)by);
}

/* By what a packet did to the states of its flow. */
ALWAYS_INLINE void count_change(__u32 backend, __u64 from, __u64 to)
{
	if (flow_open(from) != flow_open(to))
		count_load(backend, flow_open(to) ? 1 : -1);
}

/* Below zero after flows that a recount found closed, and that close once more: none. */
ALWAYS_INLINE __u64 load_of(const struct backend *backend)
{
	__u32 index = backend->id & backend_index_mask;
	__s64 *load = bpf_map_lookup_elem(&loads, &index);

	return load && *load > 0 ? *load : 0;
}

/* The next slot in turn, whichever CPU asks. Wraps as the table does, and once more every 2^32 flows. */
ALWAYS_INLINE __u32 next_in_turn(const struct vip *vip)
{
	__u32 id = vip->id;
	__u32 *cursor = bpf_map_lookup_elem(&cursors, &id);
	void *table = bpf_map_lookup_elem(&tables, &id);

	if (!cursor || !table)
		return 0;
	for (int i = 0; i < rr_tries; i++) {
		__u32 index = __sync_fetch_and_add(cursor, 1) % vip->table_size;
		struct slot *slot = bpf_map_lookup_elem(table, &index);

		if (slot && backend_up(slot->backend))
			return slot->backend;
	}
	return 0;
}

/*
 * The second choice: a backend other than the first. Among a few servers two slots often name the same one, which would
 * be no choice; a slot's neighbours in a Maglev table are as random as any.
 */
ALWAYS_INLINE struct backend *second_choice(const struct packet *packet, const struct vip *vip, __u32 first)
{
	__u32 id = vip->id, index = (packet->hash & 0xffffffff) * vip->table_size >> 32;
	void *table = bpf_map_lookup_elem(&tables, &id);

	if (!table)
		return NULL;
	for (int i = 0; i < lc_tries; i++, index++) {
		struct slot *slot = bpf_map_lookup_elem(table, &index); /* beyond the end: one choice less */

		if (slot && slot->backend != first)
			return find_backend(slot->backend);
	}
	return NULL;
}

/*
 * Slots are in proportion to weights, so that a heavy server is asked as often as it has to be; then fewer flows for
 * its weight win. M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 1996.
 */
ALWAYS_INLINE __u32 less_loaded(const struct packet *packet, const struct vip *vip, const struct slot *slot)
{
	struct backend *first = find_backend(slot->backend), *second = second_choice(packet, vip, slot->backend);

	if (!takes_new(second))
		return slot->backend;
	if (!takes_new(first))
		return second->id;
	return load_of(first) * second->weight <= load_of(second) * first->weight ? first->id : second->id;
}

static __noinline __u32 schedule(const struct packet *packet, const struct vip *vip, const struct slot *slot)
{
	switch (vip->function.scheduler) {
	case scheduler_rr:
		return next_in_turn(vip);
	case scheduler_lc:
		return less_loaded(packet, vip, slot);
	default:
		return slot->backend;
	}
}

ALWAYS_INLINE void set_client(struct affinity_key *key, const struct packet *packet, const struct vip *vip)
{
	__u32 prefix = vip->function.source_prefix;

	key->client.quads[0] = packet->tuple.src.quads[0] & wire_mask(prefix);
	key->client.quads[1] = packet->tuple.src.quads[1] & wire_mask(prefix > 64 ? prefix - 64 : 0);
	key->group = vip->affinity_group ?: affinity_of_vip | vip->id;
}

ALWAYS_INLINE __u64 affinity_turn(__u32 backend, __u64 time)
{
	return backend | time << 32;
}

/*
 * The backend that an entry gives a client. None if it expired, or if the backend takes no new flows: a drained one
 * loses its clients at once, as with LVS's expire_quiescent_template, for a drain would never end otherwise.
 */
static __noinline __u32 kept_backend(const struct vip *vip, const struct affinity *entry, __u64 turn, __u64 time,
				     struct choice *choice)
{
	struct backend *backend = find_backend(turn);
	__u32 *id;

	/* Signed: another CPU's clock may be ahead. After weeks of silence an entry may look young once more: no harm. */
	if ((__s32)((__u32)time - (__u32)(turn >> 32)) >= (__s32)vip->affinity)
		return 0;
	if (backend && backend->vip == vip->id && !(backend->flags & backend_unlisted) && takes_new(backend))
		return backend->id;
	/* The record of another VIP in the group, or of a mode that the server had: it is found by its address. */
	choice->server.address = backend ? backend->address : entry->server;
	choice->server.vip = vip->id;
	id = bpf_map_lookup_elem(&servers, &choice->server);
	return id && takes_new(find_backend(*id)) ? *id : 0;
}

/* False: another CPU was quicker. */
static __noinline bool remember_client(struct affinity *entry, __u64 turn, __u32 backend, __u64 time,
				       struct choice *choice)
{
	struct backend *record = find_backend(backend);

	if (!record)
		return true;
	choice->fresh.server = record->address;
	choice->fresh.turn = affinity_turn(backend, time);
	if (!entry)
		return bpf_map_update_elem(&affinities, &choice->client, &choice->fresh, BPF_NOEXIST) != -EEXIST;
	if (__sync_val_compare_and_swap(&entry->turn, turn, choice->fresh.turn) != turn)
		return false;
	entry->server = record->address;
	return true;
}

/* CPUs that see new flows of one client at once agree: one of them writes its choice, and the others find it. */
ALWAYS_INLINE __u32 choose_for_client(const struct packet *packet, const struct vip *vip, const struct slot *slot,
				      __u64 time)
{
	__u32 zero = 0, chosen = 0;
	struct choice *choice = bpf_map_lookup_elem(&choices, &zero);

	if (!choice)
		return 0;
	set_client(&choice->client, packet, vip);
	for (int i = 0; i < affinity_tries; i++) {
		struct affinity *entry = bpf_map_lookup_elem(&affinities, &choice->client);
		__u64 turn = entry ? entry->turn : 0;
		__u32 kept = entry ? kept_backend(vip, entry, turn, time, choice) : 0;

		if (kept) {
			/* An entry of the group keeps the server, not our name for it. */
			__sync_val_compare_and_swap(&entry->turn, turn, affinity_turn(turn, time));
			return kept;
		}
		chosen = chosen ?: schedule(packet, vip, slot);
		if (!chosen || remember_client(entry, turn, chosen, time, choice))
			break;
	}
	return chosen;
}

/* The backend of a new flow; `slot` is the one that its hash picked. --affinity remembers it for the client's next. */
__noinline __u32 choose_backend(const struct packet *packet, const struct vip *vip, const struct slot *slot,
				const struct settings *settings)
{
	if (!packet || !vip || !slot || !settings)
		return 0;

	if (!vip->affinity)
		return schedule(packet, vip, slot);
	return choose_for_client(packet, vip, slot, now(settings));
}
