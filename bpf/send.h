/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* A packet whose way is known: TTL, MTU, what its mode rewrites, and out. */
#pragma once

#include "count.h"
#include "encap.h"
#include "translate.h"

/* One 8-byte load: Go stores these words whole while packets read them. */
#define LOAD_WORD(field) \
	({ union { __u64 word; typeof(field) value; } loaded = { .word = *(volatile const __u64 *)&(field) }; loaded.value; })

ALWAYS_INLINE enum reason send_frame(const struct hop_link *link)
{
	if (link->interface == this_interface)
		return transmitted;
	return bpf_redirect_map(&devices, link->interface, 0) == XDP_REDIRECT ? redirected : no_next_hop;
}

/* `backend`: NULL if the packet goes back to the client. */
ALWAYS_INLINE bool rewrite_frame(struct xdp_md *ctx, struct packet *packet, const struct backend *backend,
				 const struct settings *settings, const struct hop_mac *mac, __u64 source)
{
	__be16 type = bpf_htons(packet->ipv6 ? ETH_P_IPV6 : ETH_P_IP);

	if (!backend || translates(backend)) {
		struct translation *work = translation();

		return work && !translate(ctx, packet, &work->to) && write_ethernet(ctx, packet, mac, source, 0, type);
	}
	if (!decrement_ttl(ctx, packet))
		return false;
	if (backend->mode == mode_dr)
		return write_ethernet(ctx, packet, mac, source, 0, type);
	type = bpf_htons(is_ipv4(&backend->address) ? ETH_P_IP : ETH_P_IPV6);
	return write_ethernet(ctx, packet, mac, source, outer_size(backend), type) &&
	       write_outer(ctx, packet, backend, settings);
}

ALWAYS_INLINE enum reason send_on(struct xdp_md *ctx, struct packet *packet, const struct backend *backend,
				  const struct settings *settings, const struct hop *hop,
				  const struct interface *interface)
{
	__u32 outer = backend && backend->mode == mode_tun ? outer_size(backend) : 0;

	if (packet->ttl <= 1)
		return tell_ttl_exceeded(ctx, packet, settings);
	if (packet->length + outer > hop->link.mtu)
		return tell_too_big(ctx, packet, settings, hop->link.mtu - outer);
	if (!rewrite_frame(ctx, packet, backend, settings, &hop->mac, interface->mac))
		return no_headroom;
	return send_frame(&hop->link);
}

ALWAYS_INLINE bool was_sent(enum reason reason)
{
	return reason == transmitted || reason == redirected;
}

ALWAYS_INLINE enum reason forward(struct xdp_md *ctx, struct packet *packet, const struct backend *backend,
				  const struct settings *settings)
{
	struct hop hop = { .mac = LOAD_WORD(backend->mac), .link = LOAD_WORD(backend->link) };
	__u32 out = hop.link.interface;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &out);
	enum reason reason;

	if (hop.link.flags & hop_local) { /* the stack is the backend, and does the rest */
		count_backend(backend->id, packet);
		return passed;
	}
	if (!(hop.link.flags & hop_resolved) || !interface || !interface->ifindex)
		return no_next_hop;
	if (translates(backend) && !packet->followed) /* a slot names it before every flow is followed */
		return flow_unknown;
	reason = send_on(ctx, packet, backend, settings, &hop, interface);
	if (was_sent(reason))
		count_backend(backend->id, packet);
	return reason;
}

/* What a backend of NAT or FULL-NAT sends to a client. passed: it is nothing of the kind. */
__noinline enum reason send_back(struct xdp_md *ctx, struct packet *packet, const struct settings *settings)
{
	if (!packet || !settings)
		return passed;

	struct hop hop = {};
	__u32 backend = follow_reply(packet, &hop, settings), out = hop.link.interface;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &out);
	enum reason reason;

	if (!backend)
		return packet->refused;
	if (packet->kind == packet_first_fragment)
		remember_fragment(packet, settings);
	if (!interface || !interface->ifindex)
		return no_next_hop;
	hop.link.mtu = interface->mtu;
	reason = send_on(ctx, packet, NULL, settings, &hop, interface);
	if (was_sent(reason))
		count_reply(backend, packet);
	return reason;
}
