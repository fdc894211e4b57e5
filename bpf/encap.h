/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Outer headers of tunnels: IPv4 (RFC 2003) or IPv6 (RFC 2473) by the backend's family, around either. */
#pragma once

#include "icmp.h"
#include "select.h"

enum {
	outer_ttl = 64,
	mtu_min = 576,   /* a lower figure is an attack or a mistake: RFC 1191, 3 wants none below a common link's */
	mtu_min_ipv6 = 1280,
};

#define IPV4_DONT_FRAGMENT 0x4000

ALWAYS_INLINE bool is_ipv4(const union address *address)
{
	return !address->quads[0] && address->words[2] == bpf_htonl(0xffff);
}

ALWAYS_INLINE __u16 outer_size(const struct backend *backend)
{
	return is_ipv4(&backend->address) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

/* The bits of --tun-spread vary with the flow, so that the backend's RSS spreads its tunnels. */
ALWAYS_INLINE __be32 outer_source(const struct packet *packet, const struct backend *backend,
				  const struct settings *settings)
{
	if (!settings->spread_mask)
		return backend->source.words[3];
	return settings->spread_prefix | (bpf_htonl(packet->hash) & settings->spread_mask);
}

/* The identification is 0: what is never fragmented needs none (RFC 6864, 4.1). */
ALWAYS_INLINE bool write_outer_ipv4(struct xdp_md *ctx, const struct packet *packet, const struct backend *backend,
				    const struct settings *settings)
{
	__be32 *ip = frame_at(ctx, packet->l3 & l3_mask, sizeof(struct iphdr));
	__u32 proto = packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	__be32 words[] = {
		bpf_htonl(0x45000000 | (__u32)packet->tos << 16 | (packet->length + sizeof(struct iphdr))),
		bpf_htonl(IPV4_DONT_FRAGMENT),
		bpf_htonl(outer_ttl << 24 | proto << 16),
		outer_source(packet, backend, settings),
		backend->address.words[3],
	};
	__u64 sum = 0;

	if (!ip)
		return false;
#pragma unroll
	for (int i = 0; i < (int)(sizeof(words) / sizeof(*words)); i++)
		sum += words[i];
	words[2] |= (__u32)(__u16)~fold_checksum(sum) << 16;
#pragma unroll
	for (int i = 0; i < (int)(sizeof(words) / sizeof(*words)); i++)
		ip[i] = words[i];
	return true;
}

/* The flow label carries the flow's hash: RFC 6438. */
ALWAYS_INLINE bool write_outer_ipv6(struct xdp_md *ctx, const struct packet *packet, const struct backend *backend)
{
	struct ipv6hdr *ip = frame_at(ctx, packet->l3 & l3_mask, sizeof(*ip));

	if (!ip)
		return false;
	*(__be32 *)ip = bpf_htonl(6 << 28 | (__u32)packet->tos << 20 | (packet->hash & 0xfffff));
	ip->payload_len = bpf_htons(packet->length);
	ip->nexthdr = packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	ip->hop_limit = outer_ttl;
	__builtin_memcpy(&ip->saddr, &backend->source, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &backend->address, sizeof(ip->daddr));
	return true;
}

/* To be called once the space for it is open behind the Ethernet header. */
ALWAYS_INLINE bool write_outer(struct xdp_md *ctx, const struct packet *packet, const struct backend *backend,
			       const struct settings *settings)
{
	if (is_ipv4(&backend->address))
		return write_outer_ipv4(ctx, packet, backend, settings);
	return write_outer_ipv6(ctx, packet, backend);
}

/*
 * A router says that a tunnel's outer packet was too large. It cannot be told to the client here, whose next hop is
 * unknown; but the backend's MTU is lowered, and the client's next packet gets the answer. `refresh` forgets it.
 * The error must quote a packet of ours: its outer addresses, and inside a flow of that backend.
 */
__noinline int learn_path_mtu(struct xdp_md *ctx, const struct packet *packet, const struct settings *settings)
{
	if (!packet || !settings)
		return 0;

	struct icmp_message *icmp = frame_at(ctx, packet->l4 & l4_mask, sizeof(*icmp));
	struct packet quoted = quoted_by(packet);
	struct backend *backend = NULL;
	union address outer_destination;
	struct vip *vip;
	__u32 mtu;

	if (!icmp || !is_too_big(packet, icmp) || parse_quoted(ctx, &quoted) || quoted.tuple.sport ||
	    !same_address(&quoted.tuple.src, &packet->tuple.dst))
		return 0;
	mtu = bpf_ntohl(icmp->rest) & (packet->ipv6 ? ~0U : 0xffff);
	outer_destination = quoted.tuple.dst;
	quoted.l3 = quoted.l4;
	quoted.ipv6 = quoted.tuple.proto == IPPROTO_IPV6;
	if (parse_quoted(ctx, &quoted) || !quoted.tuple.sport)
		return 0;
	vip = find_vip(&quoted, settings);
	if (vip)
		backend = quoted_backend(&quoted, vip, settings);
	if (backend && backend->mode == mode_tun && same_address(&backend->address, &outer_destination) &&
	    mtu >= (packet->ipv6 ? mtu_min_ipv6 : mtu_min) && mtu < backend->link.mtu)
		backend->link.mtu = mtu;
	return 0;
}
