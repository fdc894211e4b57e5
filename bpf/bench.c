//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * What drives the measured programs: BPF_PROG_RUN repeats without resetting the packet, so this puts the frame
 * back as it was, gives it another tuple out of `flows`, and hands it on by a tail call. On a wire, `generate` makes
 * live frames the same way and sends them, and `sink` counts what comes back.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum { template_max = 96, address_size = 4, expected_max = 64 };

/* The frame, and where its varying parts stand. */
struct frame_template {
	__u8 bytes[template_max];
	__u32 length;  /* of the whole frame */
	__u32 source;  /* offset of the last four bytes of the client's address */
	__u32 vip;     /* offset of the last four bytes of the VIP's */
	__u32 flows;   /* a power of two */
	__u32 vips;    /* addresses that follow each other */
	__u32 next;
	__u32 stride;  /* odd: neighbours in time are no neighbours in memory */
	__u32 ip_sum;  /* offsets of checksums, which stand there summed up but for the source; 0: none (generate only) */
	__u32 tcp_sum;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct frame_template);
	__uint(max_entries, 1);
} template SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 1);
} target SEC(".maps");

static inline __attribute__((always_inline)) void write_number(struct xdp_md *ctx, __u32 offset, __u32 number)
{
	void *at = (void *)(long)ctx->data + (offset & 127);

	if (at + sizeof(__u32) <= (void *)(long)ctx->data_end)
		*(__be32 *)at = bpf_htonl(number);
}

static inline __attribute__((always_inline)) __u32 number_at(const struct frame_template *t, __u32 offset)
{
	offset &= 63;
	return bpf_ntohl(*(const __be32 *)&t->bytes[offset]);
}

/* A flow has one VIP, and eight flows in a row the same. */
static inline __attribute__((always_inline)) __u32 vip_of(const struct frame_template *t, __u32 flow)
{
	return t->vips & (t->vips - 1) ? (flow >> 3) % t->vips : (flow >> 3) & (t->vips - 1);
}

SEC("xdp.frags")
int drive(struct xdp_md *ctx)
{
	__u32 zero = 0, i;
	struct frame_template *t = bpf_map_lookup_elem(&template, &zero);
	long grown;

	if (!t)
		return XDP_ABORTED;
	grown = (long)((void *)(long)ctx->data_end - (void *)(long)ctx->data) - (long)t->length;
	if (grown && bpf_xdp_adjust_head(ctx, grown))
		return XDP_ABORTED;
	if ((void *)(long)ctx->data + template_max > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy((void *)(long)ctx->data, t->bytes, template_max);
	i = t->next & (t->flows - 1);
	t->next += t->stride;
	write_number(ctx, t->source, number_at(t, t->source) + i);
	write_number(ctx, t->vip, number_at(t, t->vip) + vip_of(t, i));
	bpf_tail_call(ctx, &target, 0);
	return XDP_ABORTED;
}

/* The floor: the least that an XDP program does that sends a frame back. */
SEC("xdp.frags")
int swap_macs(struct xdp_md *ctx)
{
	__u16 *mac = (void *)(long)ctx->data, word;

	if ((void *)(mac + 6) > (void *)(long)ctx->data_end)
		return XDP_DROP;
#pragma unroll
	for (int i = 0; i < 3; i++) {
		word = mac[i];
		mac[i] = mac[i + 3];
		mac[i + 3] = word;
	}
	return XDP_TX;
}

/* Live frames enter a veth device only if it has an XDP program or GRO; the kernel forwards faster with this. */
SEC("xdp.frags")
int pass_all(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* Adds a number to a sum that is yet to be finished, and finishes it (RFC 1071). */
static inline __attribute__((always_inline)) void finish_checksum(struct xdp_md *ctx, __u32 offset, __be32 number)
{
	__u16 *at = (void *)(long)ctx->data + (offset & 127);
	__u32 sum;

	if ((void *)(at + 1) > (void *)(long)ctx->data_end)
		return;
	sum = *at + (number & 0xffff) + (number >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*at = ~((sum & 0xffff) + (sum >> 16));
}

/* Makes the next frame out of whatever the balancer left of an earlier one, and sends it. */
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0, source;
	struct frame_template *t = bpf_map_lookup_elem(&template, &zero);

	if (!t || (void *)(long)ctx->data + template_max > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy((void *)(long)ctx->data, t->bytes, template_max);
	source = number_at(t, t->source) + (t->next & (t->flows - 1));
	t->next += t->stride;
	write_number(ctx, t->source, source);
	if (t->ip_sum)
		finish_checksum(ctx, t->ip_sum, bpf_htonl(source));
	if (t->tcp_sum)
		finish_checksum(ctx, t->tcp_sum, bpf_htonl(source));
	return XDP_TX;
}

/* What frames look like that were forwarded, where the mask has ones. */
struct frame_expected {
	__u64 words[expected_max / 8];
	__u64 mask[expected_max / 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct frame_expected);
	__uint(max_entries, 1);
} expected SEC(".maps");

struct frame_arrivals {
	__u64 forwarded;
	__u64 others;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct frame_arrivals);
	__uint(max_entries, 1);
} arrivals SEC(".maps");

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	__u64 *word = (void *)(long)ctx->data, wrong = 0;
	__u32 zero = 0;
	struct frame_expected *e = bpf_map_lookup_elem(&expected, &zero);
	struct frame_arrivals *a = bpf_map_lookup_elem(&arrivals, &zero);

	if (!e || !a)
		return XDP_ABORTED;
	if ((void *)word + expected_max > (void *)(long)ctx->data_end) {
		a->others++;
		return XDP_DROP;
	}
#pragma unroll
	for (int i = 0; i < expected_max / 8; i++)
		wrong |= (word[i] & e->mask[i]) ^ e->words[i];
	if (wrong)
		a->others++;
	else
		a->forwarded++;
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
