//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * xdplb's data path. A packet goes down balance(): what it is, whose it is, which backend, how to get
 * there. Each step either goes on or returns the one reason under which the packet is counted; only
 * xdplb() makes a verdict of it.
 */
#include "types.h"
#include "maps.h"
#include "config.h"
#include "cursor.h"
#include "parse.h"
#include "fragment.h"
#include "icmp.h"
#include "flow.h"
#include "select.h"
#include "rewrite.h"
#include "encap.h"
#include "count.h"
#include "delivery.h"

/* One 8-byte load: Go stores these words whole while packets read them. */
#define LOAD_WORD(field) \
	({ union { __u64 word; typeof(field) value; } loaded = { .word = *(volatile const __u64 *)&(field) }; loaded.value; })

ALWAYS_INLINE enum reason send_frame(const struct hop_link *link)
{
	if (link->interface == this_interface)
		return transmitted;
	return bpf_redirect_map(&devices, link->interface, 0) == XDP_REDIRECT ? redirected : no_next_hop;
}

ALWAYS_INLINE bool rewrite_frame(struct xdp_md *ctx, struct packet *packet, const struct backend *backend,
				 const struct settings *settings, const struct hop_mac *mac, __u64 source)
{
	__be16 type = bpf_htons(packet->ipv6 ? ETH_P_IPV6 : ETH_P_IP);

	if (!decrement_ttl(ctx, packet))
		return false;
	if (backend->mode == mode_dr)
		return write_ethernet(ctx, packet, mac, source, 0, type);
	type = bpf_htons(is_ipv4(&backend->address) ? ETH_P_IP : ETH_P_IPV6);
	return write_ethernet(ctx, packet, mac, source, outer_size(backend), type) &&
	       write_outer(ctx, packet, backend, settings);
}

ALWAYS_INLINE enum reason forward(struct xdp_md *ctx, struct packet *packet, const struct backend *backend,
				  const struct settings *settings)
{
	struct hop_link link = LOAD_WORD(backend->link);
	struct hop_mac mac = LOAD_WORD(backend->mac);
	__u32 outer = backend->mode == mode_tun ? outer_size(backend) : 0;
	__u32 out = link.interface;
	struct interface *interface = bpf_map_lookup_elem(&interfaces, &out);
	enum reason reason;

	if (link.flags & hop_local) { /* the stack is the backend, and does the rest */
		count_backend(backend->id, packet);
		return passed;
	}
	if (!(link.flags & hop_resolved) || !interface || !interface->ifindex)
		return no_next_hop;
	if (packet->ttl <= 1)
		return tell_ttl_exceeded(ctx, packet, settings);
	if (packet->length + outer > link.mtu)
		return tell_too_big(ctx, packet, settings, link.mtu - outer);
	if (!rewrite_frame(ctx, packet, backend, settings, &mac, interface->mac))
		return no_headroom;
	reason = send_frame(&link);
	if (reason != no_next_hop)
		count_backend(backend->id, packet);
	return reason;
}

/* A later fragment without ports may belong to a VIP of one port or to the host; to one of every port surely. */
ALWAYS_INLINE enum reason lost_fragment(const struct packet *packet, const struct settings *settings)
{
	return settings->flags & setting_any_port && find_vip(packet, settings) ? fragment_unknown : passed;
}

ALWAYS_INLINE enum reason balance(struct xdp_md *ctx, struct packet *packet)
{
	struct settings *settings = get_settings();
	struct backend *backend;
	struct vip *vip;

	if (!settings || !parse(ctx, packet))
		return passed;
	if (packet->kind == packet_icmp && !follow_quoted(ctx, packet)) {
		learn_path_mtu(ctx, packet, settings);
		return answer_echo(ctx, packet, settings);
	}
	if (packet->kind == packet_later_fragment && !recall_fragment(packet, settings))
		return lost_fragment(packet, settings);

	vip = find_vip(packet, settings);
	if (!vip)
		return passed;
	if (packet->kind == packet_first_fragment)
		remember_fragment(packet, settings);

	backend = select_backend(packet, vip, settings);
	if (!backend)
		return no_backend;
	return forward(ctx, packet, backend, settings);
}

ALWAYS_INLINE int verdict(enum reason reason, const struct packet *packet)
{
	switch (reason) {
	case passed:
		return XDP_PASS;
	case transmitted:
		return XDP_TX;
	case redirected:
		return XDP_REDIRECT;
	default:
		return packet->answered ? XDP_TX : XDP_DROP;
	}
}

SEC("xdp.frags")
int xdplb(struct xdp_md *ctx)
{
	struct packet packet = {};
	enum reason reason = balance(ctx, &packet);

	count_reason(reason);
	return verdict(reason, &packet);
}

char _license[] SEC("license") = "Dual MIT/GPL";
