/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* connect, as it returns. */
#ifndef GLASSHOUSE_NETWORK_H
#define GLASSHOUSE_NETWORK_H

#include "file.h"

/* sun_path of struct sockaddr_un. */
#define UNIX_PATH_BYTES 108

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

__noinline int on_connect(struct scratch *s, struct gh_counters *count, int fd, __u64 user_address, __u32 length)
{
	const char *address = (void *)user_address;
	struct gh_connect *connect;
	struct inet_address inet = {};
	struct file *file;
	__u16 family;

	if (!s || !count)
		return 0;
	connect = &s->record.body.connect;
	if (bpf_probe_read_user(&family, sizeof(family), address)) {
		/* No address, no attempt, when the kernel could not read it either. */
		if (connect->result == -EFAULT || length < sizeof(family))
			return 0;
		ADD(count->observed[GH_CLASS_NETWORK], 1);
		ADD(count->lost_read[GH_CLASS_NETWORK], 1);
		return 0;
	}
	/* AF_UNSPEC dissolves an association: nothing is contacted. */
	if (family == AF_UNSPEC)
		return 0;
	if (family != AF_INET && family != AF_INET6 && family != AF_UNIX) {
		ADD(count->other_family_connects, 1);
		return 0;
	}
	ADD(count->observed[GH_CLASS_NETWORK], 1);
	connect->family = family;
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
		struct sock *sk = KREAD(socket, sk);

		/* Only a socket's private data points back. */
		if (KREAD(socket, file) == file) {
			connect->socket_type = KREAD(sk, sk_type);
			connect->protocol = KREAD(sk, sk_protocol);
		}
	}
	if (family == AF_UNIX) {
		add_unix(s, address, length);
	} else {
		/* The shorter IPv4 address ends where IPv6 has its own: read no further than the caller vouches for. */
		__u32 bytes = family == AF_INET ? 8 : sizeof(inet);

		if (length < bytes) {
			/* The kernel refuses it (EINVAL), and there is no address to tell. */
			if (connect->result >= 0)
				s->failed = 1;
		} else if (family == AF_INET) {
			if (bpf_probe_read_user(&inet, 8, address))
				s->failed = 1;
			__builtin_memcpy(connect->address, inet.address4, sizeof(inet.address4));
		} else {
			if (bpf_probe_read_user(&inet, sizeof(inet), address))
				s->failed = 1;
			__builtin_memcpy(connect->address, inet.address6, sizeof(inet.address6));
			connect->scope_id = inet.scope_id;
		}
		connect->port = __builtin_bswap16(inet.port);
	}
	finish(&activity_ring, s, count, GH_CLASS_NETWORK);
	return 0;
}

#endif
