// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The allow-list of a sandbox's network. Attached to the cgroup of one execution.
 *
 * What a call names is judged in the call, which fails with EPERM. What a packet holds is judged as well: there are ways to
 * an address that no call names (source routes, connections that somebody else opened).
 */
#include "helpers.h"

enum { BPF_MAP_TYPE_LPM_TRIE = 11 };
enum { REFUSE = 0, PASS = 1 };
#ifndef IPPROTO_TCP
#define IPPROTO_TCP 6
#endif

static long (*bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 size) = (void *)26;

/* Of include/uapi/linux/bpf.h, up to the last field that is used. */
struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port;
};

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
};

/* `Peer` in producers/backends/src/process/sandbox/network.rs. */
struct peer {
	/* How many of the bits behind it count. */
	__u32 bits;
	/* 4 or 6; an IPv4 address that is written as one of IPv6 is one of IPv4. */
	__u16 version;
	/* 0 in an entry for all of them. In network byte order, as the address. */
	__u16 port;
	__u32 address[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct peer);
	__type(value, __u8);
} allowed SEC(".maps");

static __inline int is_allowed(struct peer *peer)
{
	peer->bits = 8 * (sizeof(*peer) - sizeof(peer->bits));
	if (bpf_map_lookup_elem(&allowed, peer))
		return PASS;
	peer->port = 0;
	return bpf_map_lookup_elem(&allowed, peer) ? PASS : REFUSE;
}

static __inline int v4(__u32 address, __u16 port)
{
	struct peer peer = {.version = 4, .port = port, .address = {address}};

	return is_allowed(&peer);
}

static __inline int v6(const __u32 *address, __u16 port)
{
	struct peer peer = {.version = 6, .port = port};

	if (address[0] == 0 && address[1] == 0 && address[2] == __builtin_bswap32(0xffff))
		return v4(address[3], port);
	peer.address[0] = address[0];
	peer.address[1] = address[1];
	peer.address[2] = address[2];
	peer.address[3] = address[3];
	return is_allowed(&peer);
}

static __inline int of_call_v4(struct bpf_sock_addr *call)
{
	return v4(call->user_ip4, call->user_port);
}

static __inline int of_call_v6(struct bpf_sock_addr *call)
{
	__u32 address[4] = {call->user_ip6[0], call->user_ip6[1], call->user_ip6[2], call->user_ip6[3]};

	return v6(address, call->user_port);
}

SEC("cgroup/connect4")
int allow_connect4(struct bpf_sock_addr *call)
{
	return of_call_v4(call);
}

SEC("cgroup/connect6")
int allow_connect6(struct bpf_sock_addr *call)
{
	return of_call_v6(call);
}

SEC("cgroup/sendmsg4")
int allow_sendmsg4(struct bpf_sock_addr *call)
{
	return of_call_v4(call);
}

SEC("cgroup/sendmsg6")
int allow_sendmsg6(struct bpf_sock_addr *call)
{
	return of_call_v6(call);
}

enum direction { IN, OUT };

/* Plain TCP and UDP from or to who is allowed; nothing with options or extensions, which can send it elsewhere. */
static __inline int packet(struct __sk_buff *skb, enum direction direction)
{
	__u16 ports[2];

	if (skb->protocol == __builtin_bswap16(0x0800)) {
		struct {
			__u8 version_and_words, tos;
			__u16 length, id, fragment;
			__u8 ttl, protocol;
			__u16 checksum;
			__u32 addresses[2];
		} ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) < 0 || ip.version_and_words != 0x45)
			return REFUSE;
		if (ip.protocol != IPPROTO_TCP && ip.protocol != IPPROTO_UDP)
			return REFUSE;
		if (bpf_skb_load_bytes(skb, sizeof(ip), ports, sizeof(ports)) < 0)
			return REFUSE;
		return v4(ip.addresses[direction], ports[direction]);
	}
	if (skb->protocol == __builtin_bswap16(0x86dd)) {
		struct {
			__u32 flow;
			__u16 length;
			__u8 next, hops;
			__u32 addresses[2][4];
		} ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) < 0)
			return REFUSE;
		if (ip.next != IPPROTO_TCP && ip.next != IPPROTO_UDP)
			return REFUSE;
		if (bpf_skb_load_bytes(skb, sizeof(ip), ports, sizeof(ports)) < 0)
			return REFUSE;
		return v6(ip.addresses[direction], ports[direction]);
	}
	return REFUSE;
}

SEC("cgroup_skb/egress")
int allow_egress(struct __sk_buff *skb)
{
	return packet(skb, OUT);
}

SEC("cgroup_skb/ingress")
int allow_ingress(struct __sk_buff *skb)
{
	return packet(skb, IN);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
