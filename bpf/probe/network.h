/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* connect, as it returns. */
#ifndef GLASSHOUSE_NETWORK_H
#define GLASSHOUSE_NETWORK_H

#include "file.h"

/* sun_path of struct sockaddr_un. */
#define UNIX_PATH_BYTES 108

/* sizeof(struct sockaddr_in), and of struct sockaddr_in6 without its scope (SIN6_LEN_RFC2133) and with it. */
#define INET_BYTES 16
#define INET6_BYTES 24
#define INET6_SCOPE_BYTES 28

struct inet_address {
	__u16 family;
	__u16 port;
	/* IPv4 address, or the flow label of IPv6. */
	__u8 address4[4];
	__u8 address6[16];
	__u32 scope_id;
};

static __inline void add_unix(struct scratch *s, const char *address, __u32 length)
{
	struct gh_path *path = &s->record.body.connect.path;
	const char *string = address + sizeof(__u16);
	__u32 room = length > sizeof(__u16) ? length - sizeof(__u16) : 0;
	__u32 used;
	char first = 0;
	long bytes;

	if (room > UNIX_PATH_BYTES)
		room = UNIX_PATH_BYTES;
	if (!room)
		return;
	if (bpf_probe_read_user(&first, sizeof(first), string)) {
		s->failed = 1;
		return;
	}
	if (first && first != '/')
		add_walked(s, pwd(), path);
	if (first && s->other_root) {
		if (first == '/')
			add_walked(s, own_root(), path);
		path->flags |= GH_PATH_OTHER_ROOT;
		s->other_root_paths = 1;
	}
	path->flags |= GH_PATH_USER;
	used = s->used;
	if (used > PAYLOAD_BYTES - NAME_BYTES) {
		s->failed = 1;
		return;
	}
	/* Tells the verifier the bound again, whatever the compiler made of the one above. */
	asm volatile("%0 &= 0x7f" : "+r"(room));
	if (first) {
		/* Need not end with a NUL: it ends with the length at the latest. */
		bytes = bpf_probe_read_user_str(s->payload + used, room + 1, string);
		bytes -= 1;
	} else {
		bytes = bpf_probe_read_user(s->payload + used, room, string);
		if (!bytes)
			bytes = room;
	}
	if (bytes < 0 || bytes > UNIX_PATH_BYTES) {
		s->failed = 1;
		return;
	}
	path->user_bytes = bytes;
	s->used = used + bytes;
}

/* The call was refused before it could contact anybody. */
static __inline bool is_refused(long result)
{
	return result == -EBADF || result == -EFAULT || result == -EINVAL || result == -ENOTSOCK ||
	       result == -EAFNOSUPPORT;
}

/* The peer as the kernel has it: the caller's memory may have changed since the kernel read it. */
static __inline int add_peer(struct gh_connect *connect, struct sock *sk, __u16 family)
{
	__u16 port = KREAD(sk, __sk_common.skc_dport);

	/* A datagram socket may have port 0 as its peer's. A disconnected socket has none, and is closed. */
	if (!port && KREAD(sk, __sk_common.skc_state) != TCP_ESTABLISHED)
		return 0;
	connect->port = __builtin_bswap16(port);
	if (family == AF_INET) {
		__u32 address = KREAD(sk, __sk_common.skc_daddr);

		__builtin_memcpy(connect->address, &address, sizeof(address));
	} else {
		if (bpf_probe_read_kernel(connect->address, sizeof(connect->address), &sk->__sk_common.skc_v6_daddr))
			return 0;
		/* Link-local. */
		if (connect->address[0] == 0xfe && (connect->address[1] & 0xc0) == 0x80)
			connect->scope_id = KREAD(sk, __sk_common.skc_bound_dev_if);
	}
	return 1;
}

__noinline int on_connect(struct scratch *s, struct gh_counters *count, int fd, __u64 user_address, __u32 length)
{
	const char *address = (void *)user_address;
	struct gh_connect *connect;
	struct inet_address inet = {};
	struct sock *sk = NULL;
	struct file *file;
	__u16 family = AF_UNSPEC;
	__u16 socket_family = AF_UNSPEC;
	bool is_under_way;
	__u32 bytes;

	if (!s || !count)
		return 0;
	connect = &s->record.body.connect;
	connect->port = 0;
	connect->protocol = 0;
	connect->socket_type = 0;
	connect->scope_id = 0;
	connect->reserved = 0;
	__builtin_memset(connect->address, 0, sizeof(connect->address));
	__builtin_memset(&connect->path, 0, sizeof(connect->path));

	file = file_of(fd);
	if (file) {
		struct socket *socket = KREAD(file, private_data);

		/* Only a socket's private data points back. */
		if (KREAD(socket, file) == file) {
			sk = KREAD(socket, sk);
			socket_family = KREAD(sk, __sk_common.skc_family);
			connect->socket_type = KREAD(sk, sk_type);
			connect->protocol = KREAD(sk, sk_protocol);
		}
	}
	if (bpf_probe_read_user(&family, sizeof(family), address))
		family = AF_UNSPEC;

	is_under_way = connect->result >= 0 || connect->result == -EINPROGRESS || connect->result == -EINTR ||
		       connect->result == -EALREADY;
	if (is_under_way && sk && socket_family != AF_UNIX) {
		if (socket_family != AF_INET && socket_family != AF_INET6) {
			ADD(count->other_family_connects, 1);
			return 0;
		}
		connect->family = socket_family;
		if (!add_peer(connect, sk, socket_family)) {
			/* AF_UNSPEC dissolves an association: nothing is contacted. */
			if (family == AF_UNSPEC)
				return 0;
			s->failed = 1;
		}
		ADD(count->observed[GH_CLASS_NETWORK], 1);
		finish(&activity_ring, s, count, GH_CLASS_NETWORK);
		return 0;
	}
	if (is_under_way && family != AF_UNIX) {
		struct unix_sock *local = (void *)sk;

		if (sk && family == AF_UNSPEC && !KREAD(local, peer))
			return 0;
		/* Somebody was contacted, and the socket or the address is no longer there to tell whom. */
		goto lost;
	}
	if (is_under_way && !sk)
		goto lost;

	if (family == AF_UNSPEC) {
		/* No address, no attempt. */
		if (is_refused(connect->result))
			return 0;
		goto lost;
	}
	if (family != AF_INET && family != AF_INET6 && family != AF_UNIX) {
		ADD(count->other_family_connects, 1);
		return 0;
	}
	bytes = family == AF_INET ? INET_BYTES : family == AF_INET6 ? INET6_BYTES : sizeof(family) + 1;
	if (length < bytes) {
		if (is_refused(connect->result))
			return 0;
		goto lost;
	}
	ADD(count->observed[GH_CLASS_NETWORK], 1);
	connect->family = family;
	if (family == AF_UNIX) {
		add_unix(s, address, length);
	} else if (family == AF_INET) {
		if (bpf_probe_read_user(&inet, 8, address))
			s->failed = 1;
		__builtin_memcpy(connect->address, inet.address4, sizeof(inet.address4));
		connect->port = __builtin_bswap16(inet.port);
	} else {
		if (bpf_probe_read_user(&inet, INET6_BYTES, address))
			s->failed = 1;
		if (length >= INET6_SCOPE_BYTES &&
		    bpf_probe_read_user(&inet.scope_id, sizeof(inet.scope_id), address + INET6_BYTES))
			s->failed = 1;
		__builtin_memcpy(connect->address, inet.address6, sizeof(inet.address6));
		connect->port = __builtin_bswap16(inet.port);
		connect->scope_id = inet.scope_id;
	}
	/* Changed between two reads of it: not to be believed. */
	if (family != AF_UNIX && inet.family != family)
		s->failed = 1;
	finish(&activity_ring, s, count, GH_CLASS_NETWORK);
	return 0;
lost:
	ADD(count->observed[GH_CLASS_NETWORK], 1);
	ADD(count->lost_read[GH_CLASS_NETWORK], 1);
	return 0;
}

#endif
