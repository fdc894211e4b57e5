/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* The RST to a sender whose TCP packet belongs to no flow, so that it reconnects at once. */
#pragma once

#include "icmp.h"

/* What of a TCP packet its RST is made of. */
struct refused {
	__be32 seq, ack;
	__u32 length; /* of what it takes up of the sequence space */
	bool acks;
};

/* RFC 9293, 3.10.7.1. */
ALWAYS_INLINE struct tcphdr reset_of(const struct packet *packet, const struct refused *refused)
{
	struct tcphdr tcp = {
		.source = bpf_htons(packet->tuple.dport),
		.dest = bpf_htons(packet->tuple.sport),
		.doff = sizeof(tcp) / 4,
		.rst = 1,
	};

	if (refused->acks) {
		tcp.seq = refused->ack;
	} else {
		tcp.ack = 1;
		tcp.ack_seq = bpf_htonl(bpf_ntohl(refused->seq) + refused->length);
	}
	return tcp;
}

/* False if it is to get no RST. */
ALWAYS_INLINE bool deserves_reset(struct xdp_md *ctx, const struct packet *packet, struct refused *refused)
{
	struct tcphdr *tcp = frame_at(ctx, packet->l4 & l4_mask, sizeof(*tcp));

	if (packet->kind == packet_icmp || packet->tuple.proto != IPPROTO_TCP || !deserves_error(packet) || !tcp ||
	    tcp->rst)
		return false;
	refused->seq = tcp->seq;
	refused->ack = tcp->ack_seq;
	refused->length = packet->length - (packet->l4 - packet->l3) - tcp->doff * 4 + tcp->syn + tcp->fin;
	refused->acks = tcp->ack;
	return true;
}

/* The frame becomes a RST to its sender; the tags stay where they are. */
ALWAYS_INLINE bool write_reset(struct xdp_md *ctx, const struct packet *packet, const struct refused *refused)
{
	struct tcphdr tcp = reset_of(packet, refused), *written;
	__u32 header = packet->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u32 *words = (__u32 *)&tcp;
	struct cursor cursor;
	__u64 sum;
	bool ok;

	if (bpf_xdp_adjust_tail(ctx, (int)(packet->l3 + header + sizeof(tcp)) - (int)bpf_xdp_get_buff_len(ctx)))
		return false;
	cursor = cursor_at(ctx, packet->l3 & l3_mask);
	ok = packet->ipv6 ? write_message_ipv6(&cursor, packet, sizeof(tcp), IPPROTO_TCP) :
			    write_message_ipv4(&cursor, packet, sizeof(tcp), IPPROTO_TCP);
	written = cursor_peek(&cursor, sizeof(*written));
	if (!ok || !written)
		return false;
	sum = pseudo_header(packet, sizeof(tcp), IPPROTO_TCP);
#pragma unroll
	for (int i = 0; i < (int)(sizeof(tcp) / sizeof(*words)); i++)
		sum += words[i];
	tcp.check = ~fold_checksum(sum);
	*written = tcp;
	return swap_macs(ctx);
}

/*
 * Never in answer to a RST, to an ICMP error, to a later fragment, or to nobody in particular. Returns what to
 * count: `reason`, or rate_limited.
 */
__noinline enum reason tell_reset(struct xdp_md *ctx, struct packet *packet, const struct settings *settings,
				  enum reason reason)
{
	if (!packet || !settings)
		return reason;

	struct refused refused;

	if (!deserves_reset(ctx, packet, &refused))
		return reason;
	if (!may_send(message_reset, settings))
		return rate_limited;
	packet->answered = write_reset(ctx, packet, &refused);
	return reason;
}
