//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * The real server's side of `tun`: strips the outer header of frames that a balancer sent to this host,
 * so that the kernel sees the packet as the client sent it. Whatever is in doubt passes untouched.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "cursor.h"

#define IPV4_FRAGMENT 0x3fff /* more fragments, or an offset */

/* What became of a frame; the key of `outcomes`. Go reads the names from BTF. */
enum outcome {
	outcome_decapsulated,
	outcome_passed,       /* not a tunnel, not to this host, or a fragment of the outer packet */
	outcome_not_accepted, /* the inner destination is none of ours */
	outcome_bad_source,   /* the outer source is not in `--from` */
	outcome_malformed,    /* lengths that contradict each other, or ECN that RFC 6040 forbids */
	outcome_max,
};

struct accepted {
	__u32 ifindex;
	enum mode mode;
	__u32 was_there; /* the address was on lo before: it stays at release */
};
_Static_assert(sizeof(struct accepted) == 12, "accepted value");

/* Counts bits from `family`, so that ::/0 holds no IPv4. */
struct source_key {
	__u32 prefix;
	__u32 family; /* 4 or 6 */
	union address address;
};
_Static_assert(sizeof(struct source_key) == 24, "sources key");

enum sysctl { arp_ignore, arp_announce };

/* Written and read by Go only. */
struct sysctl_key {
	__u32 ifindex; /* 0: all */
	enum sysctl name;
};
struct sysctl_value {
	__u32 before; /* what release restores */
	__u32 set;    /* what accept wrote; anything else is somebody else's and stays */
};
struct identity {
	__u64 netns_cookie; /* inode numbers of namespaces are used again, cookies never */
};

/* Address of a VIP. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union address);
	__type(value, struct accepted);
	__uint(max_entries, 8192);
} accepted SEC(".maps");

/* The addresses of this host. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union address);
	__type(value, __u32);
	__uint(max_entries, 8192);
} hosts SEC(".maps");

/* Outer sources. Everything, if the user named none. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, __u32);
	__uint(max_entries, 1024);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, enum outcome);
	__type(value, __u64);
	__uint(max_entries, outcome_max);
} outcomes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct sysctl_key);
	__type(value, struct sysctl_value);
	__uint(max_entries, 1024);
} sysctls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct identity);
	__uint(max_entries, 1);
} identities SEC(".maps");

enum { tag_max = 2 };

struct link {
	__u8 macs[2 * ETH_ALEN];
	__be32 tags[tag_max]; /* TPID and TCI */
	__u32 tag_count;
};

struct tunnel {
	struct link link;
	struct source_key source; /* outer */
	union address host;       /* outer destination */
	union address vip;        /* inner destination */
	__u32 l3;      /* offset of the outer header */
	__u32 header;  /* its size */
	__u32 payload; /* bytes behind it that belong to the packet */
	__u8 proto;
	__u8 outer_ecn;
	__u8 inner_ecn;
	bool fragment;
};

enum ecn { ecn_none, ecn_ect1, ecn_ect0, ecn_ce, ecn_mask = 3 };

ALWAYS_INLINE void map_ipv4(union address *to, __be32 address)
{
	to->quads[0] = 0;
	to->words[2] = bpf_htonl(0xffff);
	to->words[3] = address;
}

ALWAYS_INLINE __u8 ipv6_ecn(const struct ipv6hdr *ip)
{
	return ip->flow_lbl[0] >> 4 & ecn_mask;
}

/* Returns the ethertype behind the tags, or 0. */
ALWAYS_INLINE __be16 parse_link(struct cursor *cursor, struct tunnel *tunnel)
{
	struct link *link = &tunnel->link;
	void *macs = cursor_take(cursor, sizeof(link->macs));
	__be16 *type;

	if (!macs)
		return 0;
	__builtin_memcpy(link->macs, macs, sizeof(link->macs));
	for (int i = 0; i < tag_max; i++) {
		__be32 *tag;

		type = cursor_peek(cursor, sizeof(*type));
		if (!type || (*type != bpf_htons(ETH_P_8021Q) && *type != bpf_htons(ETH_P_8021AD)))
			break;
		tag = cursor_take(cursor, sizeof(*tag));
		if (!tag)
			return 0;
		link->tags[i] = *tag;
		link->tag_count = i + 1;
	}
	type = cursor_take(cursor, sizeof(*type));
	tunnel->l3 = sizeof(struct ethhdr) + link->tag_count * sizeof(link->tags[0]);
	return type ? *type : 0;
}

ALWAYS_INLINE bool is_tunnel(__u8 proto)
{
	return proto == IPPROTO_IPIP || proto == IPPROTO_IPV6;
}

/* The frame may end in buffers that `data_end` does not cover; only then is the helper called. */
ALWAYS_INLINE bool fits_frame(struct xdp_md *ctx, const struct tunnel *tunnel)
{
	__u32 needed = tunnel->l3 + tunnel->header + tunnel->payload;

	return needed <= ctx->data_end - ctx->data || needed <= bpf_xdp_get_buff_len(ctx);
}

/* Leaves the cursor behind the header and its options. */
ALWAYS_INLINE enum outcome parse_outer_ipv4(struct cursor *cursor, struct tunnel *tunnel)
{
	struct iphdr *ip = cursor_peek(cursor, sizeof(*ip));
	__u32 length;

	if (!ip || !is_tunnel(ip->protocol))
		return outcome_passed;
	length = bpf_ntohs(ip->tot_len);
	tunnel->header = ip->ihl * 4;
	if (ip->version != 4 || tunnel->header < sizeof(*ip) || length < tunnel->header)
		return outcome_malformed;
	tunnel->payload = length - tunnel->header;
	tunnel->proto = ip->protocol;
	tunnel->outer_ecn = ip->tos & ecn_mask;
	tunnel->fragment = ip->frag_off & bpf_htons(IPV4_FRAGMENT);
	tunnel->source.family = 4;
	map_ipv4(&tunnel->source.address, ip->saddr);
	map_ipv4(&tunnel->host, ip->daddr);
	cursor->at += tunnel->header;
	return outcome_decapsulated;
}

ALWAYS_INLINE enum outcome parse_outer_ipv6(struct cursor *cursor, struct tunnel *tunnel)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip || !is_tunnel(ip->nexthdr))
		return outcome_passed;
	if (ip->version != 6)
		return outcome_malformed;
	tunnel->header = sizeof(*ip);
	tunnel->payload = bpf_ntohs(ip->payload_len);
	tunnel->proto = ip->nexthdr;
	tunnel->outer_ecn = ipv6_ecn(ip);
	tunnel->source.family = 6;
	__builtin_memcpy(&tunnel->source.address, &ip->saddr, sizeof(ip->saddr));
	__builtin_memcpy(&tunnel->host, &ip->daddr, sizeof(ip->daddr));
	return outcome_decapsulated;
}

ALWAYS_INLINE bool parse_inner_ipv4(const struct cursor *cursor, struct tunnel *tunnel)
{
	struct iphdr *ip = cursor_peek(cursor, sizeof(*ip));
	__u32 length;

	if (!ip || ip->version != 4 || ip->ihl < sizeof(*ip) / 4)
		return false;
	length = bpf_ntohs(ip->tot_len);
	if (length < ip->ihl * 4 || length > tunnel->payload)
		return false;
	tunnel->inner_ecn = ip->tos & ecn_mask;
	map_ipv4(&tunnel->vip, ip->daddr);
	return true;
}

ALWAYS_INLINE bool parse_inner_ipv6(const struct cursor *cursor, struct tunnel *tunnel)
{
	struct ipv6hdr *ip = cursor_peek(cursor, sizeof(*ip));

	if (!ip || ip->version != 6 || bpf_ntohs(ip->payload_len) + sizeof(*ip) > tunnel->payload)
		return false;
	tunnel->inner_ecn = ipv6_ecn(ip);
	__builtin_memcpy(&tunnel->vip, &ip->daddr, sizeof(ip->daddr));
	return true;
}

ALWAYS_INLINE bool parse_inner(const struct cursor *cursor, struct tunnel *tunnel)
{
	return tunnel->proto == IPPROTO_IPIP ? parse_inner_ipv4(cursor, tunnel) : parse_inner_ipv6(cursor, tunnel);
}

/* Changes nothing. `outcome_decapsulated`: the outer header is to go. */
ALWAYS_INLINE enum outcome classify(struct xdp_md *ctx, struct tunnel *tunnel)
{
	struct cursor cursor = cursor_at(ctx, 0);
	enum outcome outcome = outcome_passed;
	struct accepted *vip;

	switch (parse_link(&cursor, tunnel)) {
	case bpf_htons(ETH_P_IP):
		outcome = parse_outer_ipv4(&cursor, tunnel);
		break;
	case bpf_htons(ETH_P_IPV6):
		outcome = parse_outer_ipv6(&cursor, tunnel);
		break;
	}
	if (outcome != outcome_decapsulated)
		return outcome;
	if (tunnel->fragment || !bpf_map_lookup_elem(&hosts, &tunnel->host))
		return outcome_passed;
	if (!fits_frame(ctx, tunnel) || !parse_inner(&cursor, tunnel))
		return outcome_malformed;
	/* RFC 6040, 4.2: congestion was signalled to a sender that does not listen. */
	if (tunnel->outer_ecn == ecn_ce && tunnel->inner_ecn == ecn_none)
		return outcome_malformed;
	vip = bpf_map_lookup_elem(&accepted, &tunnel->vip);
	if (!vip || vip->mode != mode_tun)
		return outcome_not_accepted;
	tunnel->source.prefix = 8 * (sizeof(tunnel->source) - sizeof(tunnel->source.prefix));
	if (!bpf_map_lookup_elem(&sources, &tunnel->source))
		return outcome_bad_source;
	return outcome_decapsulated;
}

/* RFC 6040, figure 4: what routers of the outer packet signalled, the inner one must tell. */
ALWAYS_INLINE __u8 merge_ecn(const struct tunnel *tunnel)
{
	if (tunnel->outer_ecn == ecn_ce)
		return ecn_ce;
	if (tunnel->outer_ecn == ecn_ect1 && tunnel->inner_ecn == ecn_ect0)
		return ecn_ect1;
	return tunnel->inner_ecn;
}

ALWAYS_INLINE void set_ipv4_ecn(struct iphdr *ip, __u8 ecn)
{
	__u8 tos = (ip->tos & ~ecn_mask) | ecn;
	/* RFC 1624, equation 3; the version, which stays, shares the word and cancels out. */
	__u32 sum = (__u16)~ip->check + (__u16)~bpf_htons(ip->tos) + bpf_htons(tos);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
	ip->tos = tos;
}

ALWAYS_INLINE bool set_ecn(const struct cursor *cursor, __u8 proto, __u8 ecn)
{
	struct iphdr *ipv4 = cursor_peek(cursor, sizeof(*ipv4));
	struct ipv6hdr *ipv6 = (void *)ipv4;

	if (!ipv4)
		return false;
	if (proto == IPPROTO_IPIP)
		set_ipv4_ecn(ipv4, ecn);
	else
		ipv6->flow_lbl[0] = (ipv6->flow_lbl[0] & ~(ecn_mask << 4)) | ecn << 4;
	return true;
}

/* Writes the link header and the ECN bits of a frame that has lost its outer header. */
ALWAYS_INLINE bool finish(const struct xdp_md *ctx, const struct tunnel *tunnel)
{
	const struct link *link = &tunnel->link;
	struct cursor cursor = cursor_at(ctx, 0);
	__u8 ecn = merge_ecn(tunnel);
	void *macs = cursor_take(&cursor, sizeof(link->macs));
	__be16 *type;

	if (!macs)
		return false;
	__builtin_memcpy(macs, link->macs, sizeof(link->macs));
	for (__u32 i = 0; i < tag_max && i < link->tag_count; i++) {
		__be32 *tag = cursor_take(&cursor, sizeof(*tag));

		if (!tag)
			return false;
		*tag = link->tags[i];
	}
	type = cursor_take(&cursor, sizeof(*type));
	if (!type)
		return false;
	*type = tunnel->proto == IPPROTO_IPIP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return ecn == tunnel->inner_ecn || set_ecn(&cursor, tunnel->proto, ecn);
}

ALWAYS_INLINE void count(enum outcome outcome)
{
	__u64 *packets = bpf_map_lookup_elem(&outcomes, &outcome);

	if (packets)
		*packets += 1;
}

SEC("xdp.frags")
int realserver(struct xdp_md *ctx)
{
	struct tunnel tunnel = {};
	enum outcome outcome = classify(ctx, &tunnel);

	if (outcome == outcome_decapsulated && bpf_xdp_adjust_head(ctx, tunnel.header))
		outcome = outcome_malformed;
	if (outcome == outcome_decapsulated && !finish(ctx, &tunnel))
		return XDP_ABORTED; /* never: all of it was checked before the head moved */
	count(outcome);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
