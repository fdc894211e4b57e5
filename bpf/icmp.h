/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* The flow that an ICMP error quotes; the ICMP messages that we send. */
#pragma once

#include "rewrite.h"

enum {
	message_rate = 1000, /* a second, CPU and kind: pings must not silence packet-too-big */
	message_ttl = 64,
	quote_max = 548,     /* IPv4: a message of 576 bytes (RFC 1812, 4.3.2.3); well below IPv6's 1280 */
	ports_size = 4,
};

/* RFC 792 and RFC 4443. The kernel's headers for these need a C library. */
enum icmp_type {
	icmp_echo_reply = 0,
	icmp_unreachable = 3,
	icmp_echo_request = 8,
	icmp_time_exceeded = 11,
	icmp_parameter_problem = 12,
	icmpv6_unreachable = 1,
	icmpv6_too_big = 2,
	icmpv6_time_exceeded = 3,
	icmpv6_parameter_problem = 4,
	icmpv6_echo_request = 128,
	icmpv6_echo_reply = 129,
	icmp_code_fragmentation_needed = 4,
};

/* ICMP and ICMPv6 share this form. */
struct icmp_message {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 rest;
};

ALWAYS_INLINE bool is_icmp_error(const struct packet *packet, __u8 type)
{
	if (packet->ipv6)
		return type >= icmpv6_unreachable && type <= icmpv6_parameter_problem;
	return type == icmp_unreachable || type == icmp_time_exceeded || type == icmp_parameter_problem;
}

ALWAYS_INLINE bool is_too_big(const struct packet *packet, const struct icmp_message *icmp)
{
	if (packet->ipv6)
		return icmp->type == icmpv6_too_big;
	return icmp->type == icmp_unreachable && icmp->code == icmp_code_fragmentation_needed;
}

/*
 * Parses the headers that an error quotes, from quoted->l3 to the ports: it may hold as little as 8 bytes behind
 * the IP header (RFC 792). Tunnels have no ports. Returns 0, or -1 if this is nothing to follow.
 */
int parse_quoted(struct xdp_md *ctx, struct packet *quoted);

__noinline int parse_quoted(struct xdp_md *ctx, struct packet *quoted)
{
	__be16 *ports;

	if (!quoted)
		return -1;
	if (!quoted->ipv6) {
		struct iphdr *ip = frame_at(ctx, quoted->l3 & l4_mask, sizeof(*ip));

		if (!ip || ip->version != 4 || ip->ihl < sizeof(*ip) / 4 ||
		    ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET))
			return -1;
		quoted->l4 = quoted->l3 + ip->ihl * 4;
		quoted->tuple.proto = ip->protocol;
		map_ipv4(&quoted->tuple.src, ip->saddr);
		map_ipv4(&quoted->tuple.dst, ip->daddr);
	} else {
		struct ipv6hdr *ip = frame_at(ctx, quoted->l3 & l4_mask, sizeof(*ip));

		if (!ip || ip->version != 6)
			return -1;
		quoted->l4 = quoted->l3 + sizeof(*ip);
		quoted->tuple.proto = ip->nexthdr;
		copy_ipv6(&quoted->tuple.src, &ip->saddr);
		copy_ipv6(&quoted->tuple.dst, &ip->daddr);
		if (is_extension(ip->nexthdr) && skip_extensions(ctx, quoted))
			return -1;
	}
	if (quoted->kind == packet_later_fragment)
		return -1;
	if (quoted->tuple.proto == IPPROTO_IPIP || quoted->tuple.proto == IPPROTO_IPV6)
		return 0;
	if (quoted->tuple.proto != IPPROTO_TCP && quoted->tuple.proto != IPPROTO_UDP)
		return -1;
	ports = frame_at(ctx, quoted->l4 & l4_mask, ports_size);
	if (!ports || quoted->l4 + ports_size > quoted->length) /* behind the packet there may be padding */
		return -1;
	quoted->tuple.sport = bpf_ntohs(ports[0]);
	quoted->tuple.dport = bpf_ntohs(ports[1]);
	return 0;
}

/* What an ICMP error quotes begins behind its header; `length` is here where it ends in the frame. */
ALWAYS_INLINE struct packet quoted_by(const struct packet *packet)
{
	return (struct packet){
		.ipv6 = packet->ipv6,
		.l3 = packet->l4 + sizeof(struct icmp_message),
		.length = packet->l3 + packet->length,
	};
}

ALWAYS_INLINE bool same_address(const union address *a, const union address *b)
{
	return a->quads[0] == b->quads[0] && a->quads[1] == b->quads[1];
}

/* If the packet is an ICMP error about a packet that a VIP sent, the packet goes on as that flow. */
static __noinline bool follow_quoted(struct xdp_md *ctx, struct packet *packet)
{
	struct icmp_message *icmp = frame_at(ctx, packet->l4 & l4_mask, sizeof(*icmp));
	struct packet quoted = quoted_by(packet);
	struct tuple *tuple = &packet->tuple;

	if (!icmp || !is_icmp_error(packet, icmp->type) || parse_quoted(ctx, &quoted))
		return false;
	if (!quoted.tuple.sport || !same_address(&quoted.tuple.src, &tuple->dst))
		return false;
	tuple->src = quoted.tuple.dst;
	tuple->sport = quoted.tuple.dport;
	tuple->dport = quoted.tuple.sport;
	tuple->proto = quoted.tuple.proto;
	packet->kind = packet_icmp_error;
	return true;
}

/* One token of a bucket that fills with message_rate a second. */
ALWAYS_INLINE bool may_send(enum message message, const struct settings *settings)
{
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &message);
	__u64 time = now(settings), elapsed;

	if (!bucket)
		return false;
	elapsed = time - bucket->filled_at;
	if (elapsed >= settings->hz) {
		bucket->tokens = message_rate;
		bucket->filled_at = time;
	} else if (elapsed) {
		bucket->tokens += elapsed * message_rate / (settings->hz ? settings->hz : 1);
		if (bucket->tokens > message_rate)
			bucket->tokens = message_rate;
		bucket->filled_at = time;
	}
	if (!bucket->tokens)
		return false;
	bucket->tokens -= 1;
	return true;
}

ALWAYS_INLINE bool swap_macs(struct xdp_md *ctx)
{
	struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));
	__u8 mac[ETH_ALEN];

	if (!eth)
		return false;
	__builtin_memcpy(mac, eth->h_dest, sizeof(mac));
	__builtin_memcpy(eth->h_dest, eth->h_source, sizeof(mac));
	__builtin_memcpy(eth->h_source, mac, sizeof(mac));
	return true;
}

/* Addresses exchanged and TTL renewed; the sum of what the addresses add to checksums stays. */
ALWAYS_INLINE bool turn_around(struct xdp_md *ctx, const struct packet *packet)
{
	if (packet->ipv6) {
		struct ipv6hdr *ip = frame_at(ctx, packet->l3 & l3_mask, sizeof(*ip));
		struct in6_addr source;

		if (!ip)
			return false;
		source = ip->saddr;
		ip->saddr = ip->daddr;
		ip->daddr = source;
		ip->hop_limit = message_ttl;
	} else {
		struct iphdr *ip = frame_at(ctx, packet->l3 & l3_mask, sizeof(*ip));
		__be32 source;

		if (!ip)
			return false;
		source = ip->saddr;
		ip->saddr = ip->daddr;
		ip->daddr = source;
		ip->check = update_checksum(ip->check, bpf_htons(ip->ttl << 8), bpf_htons(message_ttl << 8));
		ip->ttl = message_ttl;
	}
	return swap_macs(ctx);
}

/* An echo request to the address of a VIP. */
__noinline enum reason answer_echo(struct xdp_md *ctx, struct packet *packet, const struct settings *settings)
{
	if (!packet || !settings)
		return passed;

	struct vip_key key = { .address = packet->tuple.dst, .proto = packet->tuple.proto };
	__u8 request = packet->ipv6 ? icmpv6_echo_request : icmp_echo_request;
	__u8 reply = packet->ipv6 ? icmpv6_echo_reply : icmp_echo_reply;
	struct icmp_message *icmp = frame_at(ctx, packet->l4 & l4_mask, sizeof(*icmp));

	if (!icmp || icmp->type != request || icmp->code || !bpf_map_lookup_elem(&vips, &key))
		return passed;
	if (!may_send(message_echo, settings))
		return rate_limited;
	icmp->check = update_checksum(icmp->check, request, reply);
	icmp->type = reply;
	packet->answered = turn_around(ctx, packet);
	return echo_answered;
}

/* Words and not bpf_csum_diff: the verifier has to see the size that a helper reads. */
ALWAYS_INLINE __u64 sum_words(const struct cursor *from, __u32 size)
{
	struct cursor cursor = *from;
	__u64 sum = 0;

	for (__u32 i = 0; i < (quote_max + icmp_size) / sizeof(__u32); i++) {
		__u32 *word = cursor_take(&cursor, sizeof(*word));

		if (i * sizeof(*word) >= size || !word)
			break;
		sum += *word;
	}
	return sum;
}

/* The IP header of a message of `size` bytes from the packet's destination to its source. */
ALWAYS_INLINE bool write_message_ipv4(struct cursor *cursor, const struct packet *packet, __u16 size, __u8 proto)
{
	struct iphdr *ip = cursor_take(cursor, sizeof(*ip));
	__u32 *words = (__u32 *)ip;
	__u64 sum = 0;

	if (!ip)
		return false;
	*ip = (struct iphdr){
		.version = 4,
		.ihl = sizeof(*ip) / 4,
		.tot_len = bpf_htons(sizeof(*ip) + size),
		.ttl = message_ttl,
		.protocol = proto,
		.saddr = packet->tuple.dst.words[3],
		.daddr = packet->tuple.src.words[3],
	};
#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / sizeof(*words)); i++)
		sum += words[i];
	ip->check = ~fold_checksum(sum);
	return true;
}

ALWAYS_INLINE bool write_message_ipv6(struct cursor *cursor, const struct packet *packet, __u16 size, __u8 proto)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip)
		return false;
	*(__be32 *)ip = bpf_htonl(6 << 28);
	ip->payload_len = bpf_htons(size);
	ip->nexthdr = proto;
	ip->hop_limit = message_ttl;
	__builtin_memcpy(&ip->saddr, &packet->tuple.dst, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &packet->tuple.src, sizeof(ip->daddr));
	return true;
}

/* The sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1): what maps IPv4 addresses is ffff, which is 0 in sums. */
ALWAYS_INLINE __u64 pseudo_header(const struct packet *packet, __u16 size, __u8 proto)
{
	__u64 sum = bpf_htonl(size) + (__u64)bpf_htonl(proto);

	for (int i = 0; i < 4; i++)
		sum += (__u64)packet->tuple.src.words[i] + packet->tuple.dst.words[i];
	return sum;
}

/* Cuts the frame to what is quoted, and opens the space in front of it. Returns the bytes quoted, or 0. */
ALWAYS_INLINE __u16 open_message(struct xdp_md *ctx, struct packet *packet, __u32 headers)
{
	__u32 quote = packet->length > quote_max ? quote_max : packet->length & ~3;
	struct ethhdr eth, *to;

	to = frame_at(ctx, 0, sizeof(eth));
	if (!to)
		return 0;
	eth = *to;
	if (bpf_xdp_adjust_tail(ctx, (int)(packet->l3 + quote) - (int)bpf_xdp_get_buff_len(ctx)) ||
	    bpf_xdp_adjust_head(ctx, -(int)headers))
		return 0;
	to = frame_at(ctx, 0, sizeof(eth));
	if (!to)
		return 0;
	*to = eth;
	for (int i = 0; i < tag_max && i < packet->tag_count; i++) {
		struct vlan_tag *tag = frame_at(ctx, sizeof(eth) + i * sizeof(*tag), sizeof(*tag));
		bool last = i + 1 == packet->tag_count;

		if (!tag) /* in the frame: TCI, then the type of what follows */
			return 0;
		tag->tpid = packet->tags[i].tci;
		tag->tci = last ? bpf_htons(packet->ipv6 ? ETH_P_IPV6 : ETH_P_IP) : packet->tags[1].tpid;
	}
	return swap_macs(ctx) ? quote : 0;
}

/* RFC 1122, 3.2.2: no error about an error, a later fragment, or a packet from nobody in particular. */
ALWAYS_INLINE bool deserves_error(const struct packet *packet)
{
	const __u8 *source = packet->tuple.src.bytes;

	if (packet->kind == packet_icmp_error || packet->kind == packet_later_fragment)
		return false;
	if (packet->ipv6)
		return source[0] != 0xff && (packet->tuple.src.quads[0] || packet->tuple.src.quads[1]);
	return source[12] && source[12] != 127 && source[12] < 224;
}

/* The frame becomes an error to its sender, `rest` in the second half of the ICMP header. Returns what to count. */
ALWAYS_INLINE enum reason tell_sender(struct xdp_md *ctx, struct packet *packet, const struct settings *settings,
				      enum message message, struct icmp_message icmp, enum reason reason)
{
	struct icmp_message *written;
	struct cursor cursor;
	__u64 sum;
	__u16 size;
	bool ok;

	if (!deserves_error(packet))
		return reason;
	if (!may_send(message, settings))
		return rate_limited;
	size = packet->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	size = open_message(ctx, packet, size + sizeof(icmp));
	if (!size)
		return reason;
	size += sizeof(icmp);
	cursor = cursor_at(ctx, packet->l3 & l3_mask);
	ok = packet->ipv6 ? write_message_ipv6(&cursor, packet, size, IPPROTO_ICMPV6) :
			    write_message_ipv4(&cursor, packet, size, IPPROTO_ICMP);
	written = cursor_peek(&cursor, sizeof(*written));
	if (!ok || !written)
		return reason;
	*written = icmp;
	sum = packet->ipv6 ? pseudo_header(packet, size, IPPROTO_ICMPV6) : 0;
	written->check = ~fold_checksum(sum + sum_words(&cursor, size));
	packet->answered = true;
	return reason;
}

__noinline enum reason tell_ttl_exceeded(struct xdp_md *ctx, struct packet *packet,
					 const struct settings *settings)
{
	if (!packet || !settings)
		return ttl_exceeded;

	struct icmp_message icmp = { .type = packet->ipv6 ? icmpv6_time_exceeded : icmp_time_exceeded };

	return tell_sender(ctx, packet, settings, message_ttl_exceeded, icmp, ttl_exceeded);
}

/* `mtu`: of the sender's IP packets, bytes. Without DF too: we do not fragment, and its sender can. */
__noinline enum reason tell_too_big(struct xdp_md *ctx, struct packet *packet, const struct settings *settings,
				    __u32 mtu)
{
	if (!packet || !settings)
		return too_big;

	struct icmp_message icmp = {
		.type = packet->ipv6 ? icmpv6_too_big : icmp_unreachable,
		.code = packet->ipv6 ? 0 : icmp_code_fragmentation_needed,
		.rest = bpf_htonl(mtu),
	};

	return tell_sender(ctx, packet, settings, message_too_big, icmp, too_big);
}
