/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Outer headers of tunnels: IPv4 (RFC 2003) or IPv6 (RFC 2473) by the backend's family, around either. */
#pragma once

#include "rewrite.h"

enum { outer_ttl = 64 };

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

ALWAYS_INLINE bool write_outer_ipv4(struct xdp_md *ctx, const struct packet *packet, const struct backend *backend,
				    const struct settings *settings)
{
	struct iphdr *ip = frame_at(ctx, packet->l3 & l3_mask, sizeof(*ip));
	__u32 *words = (__u32 *)ip;
	__u64 sum = 0;

	if (!ip)
		return false;
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = packet->tos;
	ip->tot_len = bpf_htons(packet->length + sizeof(*ip));
	ip->id = 0; /* it is never fragmented: RFC 6864, 4.1 */
	ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
	ip->ttl = outer_ttl;
	ip->protocol = packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	ip->check = 0;
	ip->saddr = outer_source(packet, backend, settings);
	ip->daddr = backend->address.words[3];
#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / sizeof(*words)); i++)
		sum += words[i];
	ip->check = ~fold_checksum(sum);
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
