/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Load-time constants, which the verifier folds, and run-time settings. */
#pragma once

#include "cursor.h"
#include "maps.h"

/* Index in `interfaces` of the interface that this program is attached to. */
volatile const __u32 this_interface = 0;

/* Tests replay years in seconds: time is settings.clock. */
volatile const __u8 test_clock = 0;

/* Nothing reads this: bpf2go finds only the enums that some variable refers to. */
volatile const struct {
	enum scheduler scheduler;
	enum vip_flag vip_flag;
	enum backend_flag backend_flag;
	enum backend_id_part backend_id_part;
	enum mode mode;
	enum hop_flag hop_flag;
	enum interface_flag interface_flag;
	enum interface_limit interface_limit;
	enum flow_state flow_state;
	enum flow_stamp flow_stamp;
	enum flow_direction flow_direction;
	enum hop_vlan hop_vlan;
	enum affinity_group affinity_group;
	enum snat_limit snat_limit;
	enum reason reason;
	enum setting_flag setting_flag;
} enums_for_go = {};

/* An array of one: the lookup cannot fail, and the verifier knows it only after the check. */
ALWAYS_INLINE struct settings *get_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

/* bpf_jiffies64 is inlined to one load; a clock in nanoseconds costs more than the whole lookup. */
ALWAYS_INLINE __u64 now(const struct settings *settings)
{
	return test_clock ? settings->clock : bpf_jiffies64();
}
