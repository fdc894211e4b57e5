/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* VIP → slot → backend: the hash of a tuple, the lookup tables and the backends they name. */
#pragma once

#include "config.h"

/*
 * NH of UMAC (RFC 4418, 5.2) over the 40 bytes of the tuple: five independent multiplications, then a
 * finalizer. maps/hash.go computes the same, and a test compares the two.
 */
ALWAYS_INLINE __u64 tuple_hash(const struct settings *settings, const struct tuple *tuple)
{
	/* The last word by fields: the CPU cannot forward several small stores to one load. */
	const __u64 words[] = {
		tuple->src.quads[0], tuple->src.quads[1], tuple->dst.quads[0], tuple->dst.quads[1],
		tuple->sport | (__u64)tuple->dport << 16 | (__u64)tuple->proto << 32,
	};
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(words) / sizeof(*words)); i++) {
		__u32 low = words[i], high = words[i] >> 32;

		low += settings->hash_key[2 * i];
		high += settings->hash_key[2 * i + 1];
		sum += (__u64)low * high;
	}
	sum ^= sum >> 32;
	sum *= 0xff51afd7ed558ccd;
	sum ^= sum >> 29;
	sum *= 0xc4ceb9fe1a85ec53;
	return sum ^ sum >> 32;
}

/* The first `bits` of eight bytes, counted as on the wire. */
ALWAYS_INLINE __u64 wire_mask(__u32 bits)
{
	return bits >= 64 ? ~0ULL : bits ? bpf_cpu_to_be64(~0ULL << (64 - bits)) : 0;
}

static __noinline __u64 source_hash(const struct settings *settings, const union address *client, __u32 prefix)
{
	struct tuple tuple = {};

	tuple.src.quads[0] = client->quads[0] & wire_mask(prefix);
	tuple.src.quads[1] = client->quads[1] & wire_mask(prefix > 64 ? prefix - 64 : 0);
	return tuple_hash(settings, &tuple);
}

ALWAYS_INLINE __u64 slot_hash(const struct settings *settings, const struct tuple *tuple,
			      const struct slot_function *function)
{
	if (function->scheduler == scheduler_source)
		return source_hash(settings, &tuple->src, function->source_prefix);
	return tuple_hash(settings, tuple);
}

ALWAYS_INLINE struct slot *find_slot(const struct vip *vip, __u64 hash)
{
	__u32 id = vip->id, index = (hash >> 32) * vip->table_size >> 32;
	void *table = bpf_map_lookup_elem(&tables, &id);

	return table ? bpf_map_lookup_elem(table, &index) : NULL;
}

/* NULL if the id is free or in use by another: a slot or a pin may outlive its backend. */
ALWAYS_INLINE struct backend *find_backend(__u32 id)
{
	__u32 index = id & backend_index_mask;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return id && backend && backend->id == id ? backend : NULL;
}

/* Serves the flows it has. Draining and unresolved backends do. */
ALWAYS_INLINE bool serves(const struct backend *backend)
{
	return backend && !(backend->flags & (backend_gone | backend_down));
}

ALWAYS_INLINE bool backend_up(__u32 id)
{
	return serves(find_backend(id));
}

/* Port and protocol in one store, as the map reads them. */
ALWAYS_INLINE struct vip *lookup_vip(struct vip_key *key, __u16 port, __u8 proto)
{
	__u64 tail = port | (__u32)proto << 16;

	__builtin_memcpy(&key->port, &tail, sizeof(tail));
	return bpf_map_lookup_elem(&vips, key);
}
