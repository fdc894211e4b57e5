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
#include "reset.h"
#include "translate.h"
#include "flow.h"
#include "table.h"
#include "schedule.h"
#include "claim.h"
#include "nat.h"
#include "select.h"
#include "rewrite.h"
#include "encap.h"
#include "count.h"
#include "send.h"
#include "delivery.h"

/* A later fragment without ports may belong to a VIP of one port or to the host; to one of every port surely. */
ALWAYS_INLINE enum reason lost_fragment(const struct packet *packet, const struct settings *settings)
{
	return settings->flags & setting_any_port && find_vip(packet, settings) ? fragment_unknown : passed;
}

/* A packet of ours that has no backend. Who sent TCP that belongs to no flow is told at once. */
static __noinline enum reason refuse(struct xdp_md *ctx, struct packet *packet, const struct settings *settings)
{
	switch (packet->refused) {
	case passed:
		return no_backend;
	case ttl_exceeded:
		return tell_ttl_exceeded(ctx, packet, settings);
	case flow_unknown:
	case nat_clash:
		return tell_reset(ctx, packet, settings, packet->refused);
	default:
		return packet->refused;
	}
}

ALWAYS_INLINE enum reason serve(struct xdp_md *ctx, struct packet *packet, const struct vip *vip,
				const struct settings *settings)
{
	struct backend *backend;

	if (packet->kind == packet_first_fragment)
		remember_fragment(packet, settings);
	backend = select_backend(ctx, packet, vip, settings);
	if (!backend)
		return refuse(ctx, packet, settings);
	return forward(ctx, packet, backend, settings);
}

ALWAYS_INLINE enum reason balance(struct xdp_md *ctx, struct packet *packet)
{
	struct settings *settings = get_settings();
	struct vip *vip;
	enum reason reason;

	if (!settings || !parse(ctx, packet))
		return passed;
	if (packet->kind == packet_icmp && !follow_quoted(ctx, packet)) {
		learn_path_mtu(ctx, packet, settings);
		return answer_echo(ctx, packet, settings);
	}
	if (packet->kind == packet_later_fragment && !recall_fragment(packet, settings))
		return lost_fragment(packet, settings);

	vip = find_exact_vip(packet);
	if (!vip && settings->flags & setting_translates) {
		reason = send_back(ctx, packet, settings);
		if (reason != passed)
			return reason;
	}
	if (!vip && settings->flags & setting_any_port)
		vip = find_any_port_vip(packet);
	return vip ? serve(ctx, packet, vip, settings) : passed;
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
