// Package bpf holds the XDP programs and what bpf2go makes of them.
//
// The C is cut into headers, each with one purpose; xdplb.c reads as the list
// of steps a packet takes. Go uses this package through maps and loader.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -go-package bpf -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Werror" -type reason -type mode -type scheduler -type vip_flag -type backend_flag -type hop_flag -type flow_state -type flow_stamp -type flow_direction -type hop_vlan -type affinity_group -type snat_limit -type snat_pool -type setting_flag -type interface_flag -type interface_limit -type backend_id_part -type address -type slot_function -type hop_mac -type hop_link Xdplb xdplb.c -- -idirafter /usr/include/x86_64-linux-gnu
