/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Ports of later fragments: the first fragment of each of our packets leaves them here. */
#pragma once

#include "parse.h"

enum { fragment_seconds = 30 }; /* as long as Linux keeps fragments (net.ipv4.ipfrag_time) */

ALWAYS_INLINE struct fragment_key fragment_key(const struct packet *packet)
{
	return (struct fragment_key){
		.src = packet->tuple.src,
		.dst = packet->tuple.dst,
		.id = packet->fragment_id,
		.proto = packet->tuple.proto,
	};
}

static __noinline int remember_fragment(const struct packet *packet, const struct settings *settings)
{
	struct fragment_key key;
	struct fragment value = { .seen = 0 };

	if (!packet || !settings)
		return -1;
	key = fragment_key(packet);
	value.seen = now(settings);
	value.sport = packet->tuple.sport;
	value.dport = packet->tuple.dport;
	return bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
}

/* Gives a later fragment its ports; false if its first one was not ours, or not seen. */
ALWAYS_INLINE bool recall_fragment(struct packet *packet, const struct settings *settings)
{
	struct fragment_key key = fragment_key(packet);
	struct fragment *fragment = bpf_map_lookup_elem(&fragments, &key);

	if (!fragment || now(settings) - fragment->seen > fragment_seconds * settings->hz)
		return false;
	packet->tuple.sport = fragment->sport;
	packet->tuple.dport = fragment->dport;
	return true;
}
