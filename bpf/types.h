/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* What C and Go share. bpf2go makes the Go types from these; nothing is mirrored by hand. */
#pragma once

#include <linux/types.h>

/* An address of either family; IPv4 is ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), in network order. */
union address {
	__u8 bytes[16];
	__be32 words[4];
	__u64 quads[2];
};

/* A flow as its client sends it. Ports are in host order. */
struct tuple {
	union address src;
	union address dst;
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct tuple) == 40, "flow table key");

/* A VIP; port 0 is every port. An entry with an ICMP protocol says that some VIP has this address. */
struct vip_key {
	union address address;
	__u16 port;
	__u8 proto;
	__u8 pad[5];
};
_Static_assert(sizeof(struct vip_key) == 24, "vips key");

enum scheduler {
	scheduler_maglev, /* the five-tuple picks the slot */
	scheduler_source, /* the client's address, masked, picks the slot */
	scheduler_rr,     /* the table is a weighted round-robin sequence; new flows walk it */
	scheduler_lc,     /* the less loaded of two slots */
};

/* What maps a tuple to a slot. The prefix counts from the first of 128 bits. */
struct slot_function {
	__u8 scheduler;
	__u8 source_prefix;
};

enum vip_flag {
	vip_pin_all = 1, /* every flow is pinned: as asked, or because of its scheduler, affinity or a backend's mode */
	vip_was = 2,     /* slot_function changed: `old` is read at the slot of `was` */
	vip_address = 4, /* not a VIP: the entry that marks a VIP's address */
	vip_track_all = 8, /* --track all; read by Go only */
};
enum affinity_limit { affinity_name_size = 16 };

struct vip {
	__u32 id;
	__u32 table_size;
	__u64 changed_at;   /* jiffies of the last change */
	__u64 pinned_since; /* jiffies since when every flow is pinned; 0: they are not */
	struct slot_function function;
	struct slot_function was;
	__u8 flags;
	__u8 mode;          /* of backends that name none; read by Go only */
	__u16 snat_first;   /* its own list in `snat`; */
	__u16 snat_count;   /* 0: the pool's */
	__u8 alias;         /* what ipvsadm calls its scheduler, and flags; 0: nothing; read by Go only */
	__u8 pad;
	__u32 assigned;     /* of vip_address: the interface that `--assign` put it on; read by Go only */
	__u32 affinity;     /* jiffies that a client keeps its backend after its last new flow; 0: none */
	__u32 affinity_group; /* VIPs of one number share their clients' backends */
	__u8 affinity_name[affinity_name_size]; /* of the group, zero-padded; read by Go only */
};
_Static_assert(sizeof(struct vip) == 64, "vips value");

/* Half of `old` is enough for an id: 20 bits of index and 11 of generation. */
struct slot {
	__u32 backend;
	__u32 old : 31;
	__u32 moving : 1;
};
_Static_assert(sizeof(struct slot) == 8, "tables value");

enum backend_id_part {
	backend_index_bits = 20,
	backend_index_mask = (1 << backend_index_bits) - 1,
};

enum mode {
	mode_dr = 1, /* new destination MAC */
	mode_tun,    /* outer IPv4 or IPv6 header */
	mode_nat,
	mode_fullnat,
};

enum backend_flag {
	backend_drain = 1,     /* no new flows */
	backend_down = 2,      /* health checks say so: serves nothing */
	backend_healthy = 4,   /* health checks say so; neither: unknown */
	backend_unlisted = 8,  /* replaced by another id (set --mode); keeps what it has */
	backend_gone = 16,     /* deleted; its counters are yet to be added to the VIP's */
	backend_inherits = 32, /* its mode is the VIP's default */
	backend_changing = 64, /* a command changes it, and the table may not show it yet; read by Go only */
};

enum hop_flag {
	hop_resolved = 1,
	hop_local = 2, /* an address of this host: pass */
};

/* One word each, loaded and stored whole, so that a reader sees an old or a new one. */
struct hop_mac {
	__u8 mac[6];
	__u16 vlan; /* 0: as the frame came; hop_untagged: without a tag */
};
enum hop_vlan { hop_untagged = 0xffff };
struct hop_link {
	__u16 interface; /* index in `interfaces` and `devices` */
	__u16 mtu;       /* of the IP packet, bytes */
	__u32 flags;
};

struct backend {
	__u32 id;  /* index and generation; 0: free */
	__u32 vip; /* its id; of a free record the id it had, for the next generation */
	union address address;
	__u16 port;
	__u16 weight;
	__u16 restore; /* weight that `enable` gives back */
	__u8 mode;
	__u8 flags;
	struct hop_mac mac;
	struct hop_link link;
	union address source; /* outer source of tunnels */
};
_Static_assert(sizeof(struct backend) == 64, "a backend is one cache line");

/* Of an attached interface. MACs as little-endian numbers, as the cursor reads them. */
struct interface {
	__u64 mac;
	__u32 ifindex;
	__u16 flags;
	__u16 mtu; /* of the IP packet, bytes */
	__u64 accept[6]; /* further MACs that are ours: --accept-mac */
};
_Static_assert(sizeof(struct interface) == 64, "one cache line");
enum interface_flag { interface_generic = 1 };
enum interface_limit { interface_accept_max = 6, interface_max = 64 };

enum flow_state {
	flow_spoken = 1,   /* the client sent more than SYNs */
	flow_closing = 2,  /* the client sent FIN or RST */
	flow_answered = 4, /* the backend spoke; this and the following only of NAT and FULL-NAT flows */
	flow_finished = 8, /* the backend sent FIN */
	flow_reset = 16,   /* one of the two sent RST */
	flow_backend_first = 32, /* the backend's FIN came first: it holds the tuple in TIME_WAIT */
	flow_claimed = 64, /* a CPU is about to write another flow in its place */
};
enum flow_stamp { flow_stamp_shift = 8 };
enum flow_direction {
	flow_to_backend, /* the key is the flow as its client sends it */
	flow_to_client,  /* the key is the flow as its backend sends it: NAT and FULL-NAT */
};

/*
 * In NAT and FULL-NAT a flow has two entries, twins, one for each direction. Both know where the client's frames
 * came from: a reply's way, and what the next packet of the client is compared with.
 */
struct flow {
	__u64 stamp; /* jiffies when last seen << flow_stamp_shift | states; one word, changed by compare-and-swap */
	__u32 backend;
	__u8 direction;
	__u8 pad;
	__u16 interface;   /* last hop: index in `interfaces` */
	__u64 id;          /* random, the same in both twins; 0: an entry of DR or TUN, and nothing below is used */
	union address far; /* to the backend: the source it sees; to the client: the client */
	union address vip; /* to the client: the VIP */
	__u16 far_port;
	__u16 vip_port;
	__u32 touched;     /* jiffies when the twin was last touched */
	struct hop_mac last_hop;
};
_Static_assert(sizeof(struct flow) == 72, "flow table value");

/* Which backend a client had last: --affinity. */
struct affinity_key {
	union address client; /* masked */
	__u32 group;          /* vip.affinity_group, or affinity_of_vip | the VIP's id */
	__u32 pad;
};
enum affinity_group { affinity_of_vip = 1 << 31 };
struct affinity {
	union address server; /* other VIPs of the group have it under another id */
	__u64 turn; /* backend | jiffies << 32, when last seen; one word, changed by compare-and-swap */
};

/* VIPs of an affinity group find a server under its address. */
struct server_key {
	union address address;
	__u32 vip;
	__u32 pad;
};

/* What becomes of a packet in NAT and FULL-NAT, and what a flow's beginning writes: too much for the stack. */
struct translation {
	struct tuple key;   /* of the packet: before Linux 6.2 an argument of a function cannot be a map's key */
	struct tuple to;    /* the packet as it leaves */
	struct tuple reply; /* a flow as its backend sends it, or the key of a twin */
	struct flow flow;   /* the entry to write */
	__u32 list;         /* in `snat` */
	__u16 listed;       /* 0: the VIP's own address */
	__u16 low;          /* ports: the first, and how many */
	__u32 span;
	__u8 takes_own;     /* an entry that shows the same flow is no clash */
	__u8 own_only;      /* nothing else is looked for */
	__u8 impatient;     /* no port was free */
	__u8 pad;
};

/* What a choice under --affinity looks up and writes: too much for the stack. */
struct choice {
	struct affinity_key client;
	struct affinity fresh;
	struct server_key server;
};

/* RFC 791, RFC 8200 4.5: what the fragments of one packet have in common. */
struct fragment_key {
	union address src;
	union address dst;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};
struct fragment {
	__u64 seen; /* jiffies */
	__u16 sport;
	__u16 dport;
	__u32 pad;
};
_Static_assert(sizeof(struct fragment_key) == 40 && sizeof(struct fragment) == 16, "fragments");

struct counters {
	__u64 packets;
	__u64 bytes; /* of IP packets, as IPVS counts */
	__u64 connections;
	__u64 reply_packets;
	__u64 reply_bytes;
	__u64 reply_connections;
	__u64 pad[2];
};
_Static_assert(sizeof(struct counters) == 64, "one cache line");

/*
 * What became of a packet; the key of `reasons`. The first three forwarded it or let it pass;
 * every other is one reason why a packet of ours went no further. Go reads the names from BTF.
 */
enum reason {
	passed,
	transmitted,
	redirected,
	no_backend,       /* the VIP has no backend for this flow */
	no_next_hop,      /* the backend's neighbour or interface is unknown */
	ttl_exceeded,     /* TTL or hop limit ran out; the client was told */
	too_big,          /* larger than the next hop's MTU; the client was told */
	rate_limited,     /* a message of ours was due beyond the limit */
	echo_answered,    /* an echo request to a VIP, answered here */
	fragment_unknown, /* a later fragment whose first one was not seen */
	no_headroom,      /* the driver left no room for the outer header */
	snat_exhausted,   /* FULL-NAT: every port toward this backend is in use */
	nat_clash,        /* NAT: this client's port talks to this backend through another VIP */
	flow_unknown,     /* NAT, FULL-NAT: of no flow, and cannot begin one; who sent TCP got a RST */
	twin_lost,        /* the flow's other direction is another flow's by now */
	redirect_failed,  /* counted after the fact, and taken off those forwarded */
	tx_failed,        /* likewise */
	reason_max,
};

enum message {
	message_echo,
	message_ttl_exceeded,
	message_too_big,
	message_reset,
	message_max,
};

/* A token bucket; per CPU and message. */
struct bucket {
	__u64 filled_at; /* jiffies */
	__u64 tokens;
};

enum setting_flag {
	setting_any_port = 1,   /* some VIP has port 0 */
	setting_translates = 2, /* some backend is NAT or FULL-NAT: replies may come */
};

/* The SNAT pool: a part of `snat` for each family. One word: a change writes a list elsewhere and swings this. */
struct snat_pool {
	__u16 first4, count4, first6, count6;
};
enum snat_limit { snat_max = 1024 };

/* Times in jiffies. A map and not global data: it outlives the program. */
struct settings {
	__u32 hash_key[10];
	__u64 tcp_idle;
	__u64 closing;
	__u64 udp_idle;
	__u64 half_open;
	__u64 udp_grace;
	__u64 clock;        /* read instead of jiffies by programs loaded with test_clock */
	__u64 netns_cookie; /* of the network namespace that the interfaces live in */
	__u32 hz;
	__u32 flags;
	__be32 spread_prefix; /* --tun-spread, IPv4 */
	__be32 spread_mask;   /* bits of the outer source that the flow varies; 0: none */
	__u64 key_fingerprint; /* read by Go only */
	struct snat_pool snat;
	__u16 snat_low, snat_high; /* ports that FULL-NAT sends from, both included */
	__u32 pad;
	__u8 given_key[16]; /* what hash_key was made of, for `save`; read by Go only */
};
_Static_assert(sizeof(struct settings) == 152, "settings value");
