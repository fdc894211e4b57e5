/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Reasons and counters; per CPU, so plain additions. */
#pragma once

#include "parse.h"

ALWAYS_INLINE void count_reason(enum reason reason)
{
	__u64 *count = bpf_map_lookup_elem(&reasons, &reason);

	if (count)
		*count += 1;
}

ALWAYS_INLINE void count_backend(__u32 backend, const struct packet *packet)
{
	__u32 index = backend & backend_index_mask;
	struct counters *count = bpf_map_lookup_elem(&counters, &index);

	if (!count)
		return;
	count->packets += 1;
	count->bytes += packet->length;
	count->connections += packet->opens;
}

ALWAYS_INLINE void count_reply(__u32 backend, const struct packet *packet)
{
	__u32 index = backend & backend_index_mask;
	struct counters *count = bpf_map_lookup_elem(&counters, &index);

	if (!count)
		return;
	count->reply_packets += 1;
	count->reply_bytes += packet->length;
}
