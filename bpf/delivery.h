/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * A verdict is not a delivery: the kernel may drop a frame after we said transmit or redirect. These
 * programs count such frames of our interfaces (trace events of include/trace/events/xdp.h).
 */
#pragma once

#include <bpf/bpf_tracing.h>

#include "count.h"

struct bpf_prog;
struct net {
	__u64 net_cookie;
} __attribute__((preserve_access_index));
typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;
struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

/* An index is unique only within its network namespace. */
ALWAYS_INLINE bool is_our_device(const struct net_device *device)
{
	struct settings *settings = get_settings();
	int ifindex = device->ifindex;

	if (!settings || device->nd_net.net->net_cookie != settings->netns_cookie)
		return false;
	for (__u32 i = 0; i < interface_max; i++) {
		__u32 index = i;
		struct interface *interface = bpf_map_lookup_elem(&interfaces, &index);

		if (interface && interface->ifindex == (__u32)ifindex)
			return true;
	}
	return false;
}

ALWAYS_INLINE void count_reasons(enum reason reason, int number)
{
	__u64 *count = bpf_map_lookup_elem(&reasons, &reason);

	if (count && number > 0)
		*count += number;
}

SEC("tp_btf/xdp_redirect_err")
int BPF_PROG(on_redirect_err, const struct net_device *device)
{
	if (is_our_device(device))
		count_reasons(redirect_failed, 1);
	return 0;
}

SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(on_devmap_xmit, const struct net_device *from, const struct net_device *to, int sent, int drops)
{
	if (drops > 0 && is_our_device(from))
		count_reasons(tx_failed, drops);
	return 0;
}

SEC("tp_btf/xdp_bulk_tx")
int BPF_PROG(on_bulk_tx, const struct net_device *device, int sent, int drops)
{
	if (drops > 0 && is_our_device(device))
		count_reasons(tx_failed, drops);
	return 0;
}

SEC("tp_btf/xdp_exception")
int BPF_PROG(on_exception, const struct net_device *device, const struct bpf_prog *prog, __u32 action)
{
	if (action == XDP_TX && is_our_device(device))
		count_reasons(tx_failed, 1);
	return 0;
}
