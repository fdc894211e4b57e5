/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Ethernet, VLAN, IPv4, IPv6, TCP, UDP into one struct packet. IPv4 becomes ::ffff:a.b.c.d here, and
 * everything after this header knows one family. What is malformed or not TCP, UDP or ICMP is not ours.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>

#include "config.h"

enum packet_kind {
	packet_whole,
	packet_first_fragment,
	packet_later_fragment, /* its ports are unknown */
	packet_icmp,           /* the tuple has the addresses of the frame, and no ports */
	packet_icmp_error,     /* the tuple is that of the quoted flow, as its client sends it */
};

struct vlan_tag {
	__be16 tpid;
	__be16 tci;
};

struct packet {
	struct tuple tuple;
	__u64 hash;
	__u32 fragment_id;
	struct vlan_tag tags[2];
	__u16 tag_count;
	__u16 l3;     /* offset of the IP header in the frame */
	__u16 l4;     /* offset of what follows it and its options */
	__u16 length; /* of the IP packet */
	bool ipv6;
	__u8 ttl;
	__u8 tos;
	__u8 kind;
	bool opens;  /* SYN without ACK */
	bool closes; /* FIN or RST */
	bool resets; /* RST */
	bool answered; /* the frame has become a message to its sender */
	bool followed; /* NAT, FULL-NAT: what it becomes is known */
	__u8 refused;  /* enum reason: why there is no backend, if it is not no_backend */
};

enum { tag_max = 2, extension_max = 6, icmp_size = 8 };
enum { l3_mask = 31, l4_mask = 0x3fff }; /* bounds that the verifier can use */

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff

/* Extension headers that all begin with next header and length (RFC 8200, 4.2). */
struct extension {
	__u8 next;
	__u8 length; /* in 8 bytes, beyond the first 8 */
	__u8 type;
	__u8 segments_left;
	__u8 rest[4];
};
struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

ALWAYS_INLINE void map_ipv4(union address *to, __be32 address)
{
	to->quads[0] = 0;
	to->quads[1] = (__u64)address << 32 | bpf_htonl(0xffff); /* in one store: it is read as one word */
}

ALWAYS_INLINE void copy_ipv6(union address *to, const struct in6_addr *address)
{
	__builtin_memcpy(to, address, sizeof(*to));
}

/* XDP runs before the kernel's own check: a flooding switch shows us frames for others. */
ALWAYS_INLINE bool sent_to_us(const struct ethhdr *eth)
{
	__u32 index = this_interface;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &index);
	const __u16 *words = (const __u16 *)eth->h_dest;
	__u64 mac = words[0] | (__u64)words[1] << 16 | (__u64)words[2] << 32;

	if (!interface)
		return false;
	if (mac == interface->mac)
		return true;
	for (int i = 0; i < interface_accept_max; i++)
		if (mac == interface->accept[i])
			return mac != 0;
	return false;
}

/* Returns the ethertype of what follows the VLAN tags, or 0 if the frame is not for us. */
ALWAYS_INLINE __be16 parse_ethernet(struct cursor *cursor, struct packet *packet)
{
	struct ethhdr *eth = cursor_take(cursor, sizeof(*eth));
	__be16 type;

	if (!eth || !sent_to_us(eth))
		return 0;
	type = eth->h_proto;
	packet->l3 = sizeof(*eth);
	for (int i = 0; i < tag_max; i++) {
		struct vlan_tag *tag; /* here: TCI, then the type of what follows */

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		tag = cursor_take(cursor, sizeof(*tag));
		if (!tag)
			return 0;
		packet->tags[i] = (struct vlan_tag){ .tpid = type, .tci = tag->tpid };
		packet->tag_count = i + 1;
		packet->l3 += sizeof(*tag);
		type = tag->tci;
	}
	return type;
}

/* The frame may end in buffers that `data_end` does not cover; only then is the helper called. */
ALWAYS_INLINE bool fits_frame(struct xdp_md *ctx, const struct packet *packet)
{
	__u32 needed = packet->l3 + packet->length;

	return needed <= ctx->data_end - ctx->data || needed <= bpf_xdp_get_buff_len(ctx);
}

/* Leaves the cursor behind the header and its options. */
ALWAYS_INLINE bool parse_ipv4(struct xdp_md *ctx, struct cursor *cursor, struct packet *packet)
{
	struct iphdr *ip = cursor_peek(cursor, sizeof(*ip));
	__u16 fragment;
	__u32 header;

	if (!ip || ip->version != 4 || ip->ihl < sizeof(*ip) / 4)
		return false;
	header = ip->ihl * 4;
	packet->length = bpf_ntohs(ip->tot_len);
	if (packet->length < header || !fits_frame(ctx, packet))
		return false;
	cursor->at += header;
	packet->l4 = packet->l3 + header;
	packet->ttl = ip->ttl;
	packet->tos = ip->tos;
	packet->tuple.proto = ip->protocol;
	map_ipv4(&packet->tuple.src, ip->saddr);
	map_ipv4(&packet->tuple.dst, ip->daddr);
	fragment = bpf_ntohs(ip->frag_off);
	if (fragment & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET)) {
		packet->fragment_id = ip->id;
		packet->kind = fragment & IPV4_FRAGMENT_OFFSET ? packet_later_fragment : packet_first_fragment;
	}
	return true;
}

ALWAYS_INLINE bool is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_DSTOPTS || proto == IPPROTO_ROUTING ||
	       proto == IPPROTO_FRAGMENT;
}

/*
 * Steps over extension headers, from packet->l4 to the transport header, or to where the ports would be in a later
 * fragment. Returns 0, or -1 if the packet is not ours. A global function: verified once, not for every caller.
 */
int skip_extensions(struct xdp_md *ctx, struct packet *packet);

__noinline int skip_extensions(struct xdp_md *ctx, struct packet *packet)
{
	if (!packet)
		return -1;
	for (int i = 0; i < extension_max && is_extension(packet->tuple.proto); i++) {
		struct extension *extension = frame_at(ctx, packet->l4 & l4_mask, sizeof(*extension));
		__u16 size = sizeof(*extension);

		if (!extension)
			return -1;
		if (packet->tuple.proto == IPPROTO_FRAGMENT) {
			struct fragment_header *fragment = (void *)extension;
			__u16 offset = bpf_ntohs(fragment->offset);

			packet->fragment_id = fragment->id;
			if (offset & 0xfff8) {
				packet->kind = packet_later_fragment;
				packet->tuple.proto = extension->next;
				return 0;
			}
			if (offset & 1)
				packet->kind = packet_first_fragment;
		} else {
			/* On its way through routers that it names: the address is not its destination yet. */
			if (packet->tuple.proto == IPPROTO_ROUTING && extension->segments_left)
				return -1;
			size += extension->length * 8;
		}
		packet->tuple.proto = extension->next;
		packet->l4 += size;
	}
	return 0;
}

ALWAYS_INLINE bool parse_ipv6(struct xdp_md *ctx, struct cursor *cursor, struct packet *packet)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip || ip->version != 6 || !ip->payload_len)
		return false;
	packet->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (packet->length < sizeof(*ip) || !fits_frame(ctx, packet))
		return false;
	packet->ipv6 = true;
	packet->l4 = packet->l3 + sizeof(*ip);
	packet->ttl = ip->hop_limit;
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	packet->tuple.proto = ip->nexthdr;
	copy_ipv6(&packet->tuple.src, &ip->saddr);
	copy_ipv6(&packet->tuple.dst, &ip->daddr);
	if (is_extension(ip->nexthdr)) {
		if (skip_extensions(ctx, packet))
			return false;
		*cursor = cursor_at(ctx, packet->l4 & l4_mask);
	}
	return true;
}

ALWAYS_INLINE bool fits_packet(const struct packet *packet, __u32 transport_size)
{
	return packet->l4 - packet->l3 + transport_size <= packet->length;
}

ALWAYS_INLINE bool parse_tcp(const struct cursor *cursor, struct packet *packet)
{
	struct tcphdr *tcp = cursor_peek(cursor, sizeof(*tcp));

	if (!tcp || tcp->doff < sizeof(*tcp) / 4 || !fits_packet(packet, tcp->doff * 4))
		return false;
	packet->tuple.sport = bpf_ntohs(tcp->source);
	packet->tuple.dport = bpf_ntohs(tcp->dest);
	packet->opens = tcp->syn && !tcp->ack;
	packet->closes = tcp->fin || tcp->rst;
	packet->resets = tcp->rst;
	return true;
}

ALWAYS_INLINE bool parse_udp(const struct cursor *cursor, struct packet *packet)
{
	struct udphdr *udp = cursor_peek(cursor, sizeof(*udp));

	if (!udp || bpf_ntohs(udp->len) < sizeof(*udp) || !fits_packet(packet, sizeof(*udp)))
		return false;
	if (packet->kind == packet_whole && !fits_packet(packet, bpf_ntohs(udp->len)))
		return false;
	packet->tuple.sport = bpf_ntohs(udp->source);
	packet->tuple.dport = bpf_ntohs(udp->dest);
	return true;
}

/* Fills a zeroed packet. False: it can be none of ours, and nothing in it was changed. */
ALWAYS_INLINE bool parse(struct xdp_md *ctx, struct packet *packet)
{
	struct cursor cursor = cursor_at(ctx, 0);
	__u8 icmp = IPPROTO_ICMP;

	switch (parse_ethernet(&cursor, packet)) {
	case bpf_htons(ETH_P_IP):
		if (!parse_ipv4(ctx, &cursor, packet))
			return false;
		break;
	case bpf_htons(ETH_P_IPV6):
		if (!parse_ipv6(ctx, &cursor, packet))
			return false;
		icmp = IPPROTO_ICMPV6;
		break;
	default:
		return false;
	}
	if (packet->kind == packet_later_fragment) /* a fragment header may stand in padding */
		return fits_packet(packet, packet->ipv6 ? sizeof(struct fragment_header) : 0) &&
		       (packet->tuple.proto == IPPROTO_TCP || packet->tuple.proto == IPPROTO_UDP);
	if (packet->tuple.proto == IPPROTO_TCP)
		return parse_tcp(&cursor, packet);
	if (packet->tuple.proto == IPPROTO_UDP)
		return parse_udp(&cursor, packet);
	if (packet->tuple.proto == icmp && packet->kind == packet_whole && fits_packet(packet, icmp_size)) {
		packet->kind = packet_icmp;
		return true;
	}
	return false;
}
