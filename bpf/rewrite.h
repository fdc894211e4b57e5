/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* TTL, checksums, and the Ethernet header with its VLAN tags. */
#pragma once

#include <stddef.h>

#include "parse.h"

ALWAYS_INLINE __u16 fold_checksum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum + (sum >> 16);
}

/* RFC 1624, equation 3: HC' = ~(~HC + ~m + m'). */
ALWAYS_INLINE __u16 update_checksum(__u16 check, __u16 from, __u16 to)
{
	return ~fold_checksum((__u64)(__u16)~check + (__u16)~from + to);
}

ALWAYS_INLINE bool decrement_ttl(struct xdp_md *ctx, const struct packet *packet)
{
	if (packet->ipv6) {
		struct ipv6hdr *ip = frame_at(ctx, packet->l3 & l3_mask, sizeof(*ip));

		if (!ip)
			return false;
		ip->hop_limit -= 1;
	} else {
		struct iphdr *ip = frame_at(ctx, packet->l3 & l3_mask, sizeof(*ip));
		__u16 *ttl_and_proto = (__u16 *)&ip->ttl, before, after;

		if (!ip)
			return false;
		before = *ttl_and_proto;
		after = before - bpf_htons(0x0100);
		*ttl_and_proto = after;
		ip->check = update_checksum(ip->check, before, after);
	}
	return true;
}

ALWAYS_INLINE void write_macs(struct ethhdr *eth, const struct hop_mac *to, __u64 from)
{
	__u16 *source = (__u16 *)eth->h_source;

	__builtin_memcpy(eth->h_dest, to->mac, ETH_ALEN);
	source[0] = from;
	source[1] = from >> 16;
	source[2] = from >> 32;
}

ALWAYS_INLINE __be16 retag(__be16 tci, __u16 vlan)
{
	return (tci & bpf_htons(0xf000)) | bpf_htons(vlan);
}

/*
 * The Ethernet header toward a next hop, in front of `type`. Tags stay as they came; a next hop on a VLAN
 * sets the outermost one, or adds it, and one that is known to be on none takes it off. `outer` bytes for outer
 * headers are opened behind it.
 */
ALWAYS_INLINE bool write_ethernet(struct xdp_md *ctx, struct packet *packet, const struct hop_mac *to, __u64 from,
				  __u16 outer, __be16 type)
{
	bool untag = to->vlan == hop_untagged, add = to->vlan && !untag && !packet->tag_count;
	int opened = outer;
	struct vlan_tag *tag;
	struct ethhdr *eth;
	__be16 *next;

	if (untag) {
		opened -= packet->tag_count * sizeof(*tag);
		packet->l3 -= packet->tag_count * sizeof(*tag);
		packet->tag_count = 0;
	} else if (to->vlan) {
		packet->tags[0].tci = retag(packet->tags[0].tci, to->vlan);
	}
	if (add) {
		packet->tags[0].tpid = bpf_htons(ETH_P_8021Q);
		packet->tag_count = 1;
		packet->l3 += sizeof(*tag);
		opened += sizeof(*tag);
	}
	if (opened && bpf_xdp_adjust_head(ctx, -opened))
		return false;
	eth = frame_at(ctx, 0, sizeof(*eth));
	if (!eth)
		return false;
	write_macs(eth, to, from);
	next = (void *)eth + offsetof(struct ethhdr, h_proto);
	for (int i = 0; i < tag_max && i < packet->tag_count; i++) {
		tag = frame_at(ctx, sizeof(*eth) - sizeof(*next) + i * sizeof(*tag), sizeof(*tag) + sizeof(*next));
		if (!tag)
			return false;
		*tag = packet->tags[i];
		next = (__be16 *)(tag + 1);
	}
	*next = type;
	return true;
}
