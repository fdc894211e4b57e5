/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * New addresses and ports for packets of NAT and FULL-NAT. Checksums are changed by what changes under them (RFC 1624):
 * one sum of differences serves the IP header's and the transport's.
 */
#pragma once

#include "icmp.h"

enum { tcp_check_at = 16, udp_check_at = 6 };

/* Where the ports and the checksum of a packet are. */
struct transport {
	__u32 *ports; /* NULL: it shows none */
	__u16 *check; /* NULL: not within what is quoted */
	bool udp;
};

/* Puts a word in place of another. Returns what this adds to a sum, for fold_checksum. */
ALWAYS_INLINE __u64 replace_word(__u32 *word, __u32 to)
{
	__u64 change = (__u64)(__u32)~*word + to;

	*word = to;
	return change;
}

ALWAYS_INLINE __u64 replace_half(__u16 *half, __u16 to)
{
	__u64 change = (__u64)(__u16)~*half + to;

	*half = to;
	return change;
}

ALWAYS_INLINE __u64 replace_addresses(void *header, const union address *src, const union address *dst, const bool ipv6)
{
	__u64 change = 0;

	if (!ipv6) {
		struct iphdr *ip = header;

		return replace_word(&ip->saddr, src->words[3]) + replace_word(&ip->daddr, dst->words[3]);
	}

	struct ipv6hdr *ip = header;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		change += replace_word(&ip->saddr.in6_u.u6_addr32[i], src->words[i]);
		change += replace_word(&ip->daddr.in6_u.u6_addr32[i], dst->words[i]);
		barrier_var(change); /* else the compiler loads all, runs out of registers, and sums up late */
	}
	return change;
}

ALWAYS_INLINE __u32 port_word(__u16 sport, __u16 dport)
{
	return bpf_htons(sport) | (__u32)bpf_htons(dport) << 16;
}

/*
 * Replaces the ports of a packet whose addresses changed by `addresses`. Returns what all that it writes adds to a
 * sum. UDP without a checksum has none afterwards; a sum that comes to zero is sent as its other form (RFC 768).
 */
ALWAYS_INLINE __u64 replace_ports(const struct transport *transport, __u32 ports, __u64 addresses)
{
	__u64 change = replace_word(transport->ports, ports);
	__u16 check;

	if (!transport->check || (transport->udp && !*transport->check))
		return change;
	check = ~fold_checksum((__u16)~*transport->check + addresses + change);
	if (transport->udp && !check)
		check = 0xffff;
	return change + replace_half(transport->check, check);
}

/* `addresses` is what new addresses add to the sum of the header, and a TTL less by one what `ttl` says. */
ALWAYS_INLINE void finish_header(void *header, __u64 addresses, const bool ipv6)
{
	struct iphdr *ip = header;

	if (ipv6) {
		((struct ipv6hdr *)header)->hop_limit -= 1;
		return;
	}
	ip->ttl -= 1;
	ip->check = ~fold_checksum((__u16)~ip->check + addresses + (__u16)~bpf_htons(0x0100));
}

ALWAYS_INLINE void *header_at(const struct xdp_md *ctx, __u32 offset, const bool ipv6)
{
	return frame_at(ctx, offset, ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

/* False if the frame is too short. */
ALWAYS_INLINE bool find_transport(const struct xdp_md *ctx, const struct packet *packet, struct transport *transport)
{
	void *l4 = frame_at(ctx, packet->l4 & l4_mask, sizeof(struct udphdr));

	if (!l4)
		return false;
	transport->ports = l4;
	transport->check = l4 + udp_check_at;
	transport->udp = packet->tuple.proto == IPPROTO_UDP;
	if (transport->udp)
		return true;
	l4 = frame_at(ctx, packet->l4 & l4_mask, sizeof(struct tcphdr));
	transport->check = l4 + tcp_check_at;
	return l4;
}

ALWAYS_INLINE int translate_packet(struct xdp_md *ctx, const struct packet *packet, const struct tuple *to,
				   const bool ipv6)
{
	void *header = header_at(ctx, packet->l3 & l3_mask, ipv6);
	struct transport transport;
	bool later = packet->kind == packet_later_fragment;
	__u64 addresses;

	if (!header || (!later && !find_transport(ctx, packet, &transport)))
		return -1;
	addresses = replace_addresses(header, &to->src, &to->dst, ipv6);
	finish_header(header, addresses, ipv6);
	if (!later)
		replace_ports(&transport, port_word(to->sport, to->dport), addresses);
	return 0;
}

/* Of a quoted packet, which may end anywhere behind its ports. */
ALWAYS_INLINE bool find_quoted_transport(const struct xdp_md *ctx, const struct packet *quoted,
					 struct transport *transport)
{
	__u32 check_at = quoted->l4;

	transport->udp = quoted->tuple.proto == IPPROTO_UDP;
	check_at += transport->udp ? udp_check_at : tcp_check_at;
	transport->ports = frame_at(ctx, quoted->l4 & l4_mask, ports_size);
	transport->check = NULL;
	if (check_at + sizeof(*transport->check) <= quoted->length)
		transport->check = frame_at(ctx, check_at & l4_mask, sizeof(*transport->check));
	return transport->ports;
}

/* The packet that is quoted went the other way: from what is the destination now. Returns the change of the sum. */
ALWAYS_INLINE __u64 translate_quoted(void *header, const struct transport *transport, const struct tuple *to,
				     const bool ipv6)
{
	__u64 addresses = replace_addresses(header, &to->dst, &to->src, ipv6), change = addresses;

	if (!ipv6) {
		struct iphdr *ip = header;

		change += replace_half(&ip->check, ~fold_checksum((__u16)~ip->check + addresses));
	}
	return change + replace_ports(transport, port_word(to->dport, to->sport), addresses);
}

/*
 * An error comes from anywhere on the way. Where the flow's source is hidden from its receiver, so is a router
 * before it; else it keeps its own address, which people look for in a traceroute.
 */
ALWAYS_INLINE int translate_error(struct xdp_md *ctx, const struct packet *packet, const struct tuple *to,
				  const bool ipv6)
{
	bool hidden = !same_address(&to->src, &packet->tuple.src);
	struct packet quoted = quoted_by(packet);
	void *header, *quoted_header;
	struct icmp_message *icmp;
	struct transport transport;
	union address source;
	__u64 addresses, change;

	quoted.ipv6 = ipv6;
	if (parse_quoted(ctx, &quoted))
		return -1;
	header = header_at(ctx, packet->l3 & l3_mask, ipv6);
	icmp = frame_at(ctx, packet->l4 & l4_mask, sizeof(*icmp));
	quoted_header = header_at(ctx, quoted.l3 & l4_mask, ipv6);
	if (!header || !icmp || !quoted_header || !find_quoted_transport(ctx, &quoted, &transport))
		return -1;
	if (hidden)
		source = to->src;
	else if (ipv6)
		copy_ipv6(&source, &((struct ipv6hdr *)header)->saddr);
	else
		map_ipv4(&source, ((struct iphdr *)header)->saddr);
	addresses = replace_addresses(header, &source, &to->dst, ipv6);
	finish_header(header, addresses, ipv6);
	change = translate_quoted(quoted_header, &transport, to, ipv6);
	if (ipv6) /* its checksum covers the addresses: RFC 4443, 2.3 */
		change += addresses;
	icmp->check = ~fold_checksum((__u16)~icmp->check + change);
	return 0;
}

static __noinline int translate_error_of(struct xdp_md *ctx, const struct packet *packet, const struct tuple *to)
{
	return packet->ipv6 ? translate_error(ctx, packet, to, true) : translate_error(ctx, packet, to, false);
}

/*
 * Gives a packet the addresses and ports of `to`, and takes one off its TTL; an ICMP error becomes one about the
 * translated flow. Returns 0, or -1 if the frame is too short, and then nothing was written.
 */
__noinline int translate(struct xdp_md *ctx, const struct packet *packet, const struct tuple *to)
{
	if (!packet || !to)
		return -1;

	if (packet->kind == packet_icmp_error)
		return translate_error_of(ctx, packet, to);
	return packet->ipv6 ? translate_packet(ctx, packet, to, true) : translate_packet(ctx, packet, to, false);
}
