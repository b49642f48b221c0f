/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets: connected, bound, listening, accepting; what goes over them, and what names are asked for. */
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

/* Appends the path of a unix socket as the caller has it. */
static __inline void add_unix(struct scratch *s, const char *address, __u32 length)
{
	struct gh_path *path = &s->record.body.socket.path;
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
		add_path(s, pwd(), path);
	if (first && s->other_root) {
		if (first == '/')
			add_path(s, own_root(), path);
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

static __inline struct sock *sock_of(struct file *file)
{
	struct socket *socket = KREAD(file, private_data);

	/* Only a socket's private data points back. */
	return KREAD(socket, file) == file ? KREAD(socket, sk) : NULL;
}

static __inline void describe(struct gh_address *out, struct sock *sk)
{
	__builtin_memset(out, 0, sizeof(*out));
	out->family = KREAD(sk, __sk_common.skc_family);
	out->socket_type = KREAD(sk, sk_type);
	out->protocol = KREAD(sk, sk_protocol);
}

static __inline void scope(struct gh_address *out, struct sock *sk)
{
	/* Link-local. */
	if (out->address[0] == 0xfe && (out->address[1] & 0xc0) == 0x80)
		out->scope_id = KREAD(sk, __sk_common.skc_bound_dev_if);
}

/* The peer as the kernel has it: the caller's memory may have changed since the kernel read it. False without a peer. */
static __inline bool read_peer(struct gh_address *out, struct sock *sk)
{
	__u16 port = KREAD(sk, __sk_common.skc_dport);

	/* A datagram socket may have port 0 as its peer's. A disconnected socket has none, and is closed. */
	if (!port && KREAD(sk, __sk_common.skc_state) != TCP_ESTABLISHED)
		return false;
	out->port = __builtin_bswap16(port);
	if (out->family == AF_INET) {
		bpf_probe_read_kernel(out->address, 4, &sk->__sk_common.skc_daddr);
		return true;
	}
	if (out->family != AF_INET6 ||
	    bpf_probe_read_kernel(out->address, sizeof(out->address), &sk->__sk_common.skc_v6_daddr))
		return false;
	scope(out, sk);
	return true;
}

static __inline void read_local(struct gh_address *out, struct sock *sk)
{
	out->port = KREAD(sk, __sk_common.skc_num);
	if (out->family == AF_INET) {
		bpf_probe_read_kernel(out->address, 4, &sk->__sk_common.skc_rcv_saddr);
	} else {
		bpf_probe_read_kernel(out->address, sizeof(out->address), &sk->__sk_common.skc_v6_rcv_saddr);
		scope(out, sk);
	}
}

/* An Internet address that the caller passed. The family, or AF_UNSPEC when it can't be had. */
static __inline __u16 read_named(struct gh_address *out, __u64 user_address, __u64 length)
{
	__u16 socket_family = out->family;
	const char *address = (void *)user_address;
	struct inet_address inet = {};
	__u16 family = AF_UNSPEC;

	if (length < sizeof(family) || bpf_probe_read_user(&family, sizeof(family), address))
		return AF_UNSPEC;
	/* To an IPv4 socket no family is its own, see udp_sendmsg() in net/ipv4/udp.c. */
	if (family == AF_UNSPEC && socket_family == AF_INET && length >= INET_BYTES) {
		if (bpf_probe_read_user(&inet, 8, address))
			return AF_UNSPEC;
		__builtin_memcpy(out->address, inet.address4, sizeof(inet.address4));
		inet.family = family = AF_INET;
	} else if (family == AF_INET && length >= INET_BYTES) {
		if (bpf_probe_read_user(&inet, 8, address))
			return AF_UNSPEC;
		__builtin_memcpy(out->address, inet.address4, sizeof(inet.address4));
	} else if (family == AF_INET6 && length >= INET6_BYTES) {
		if (bpf_probe_read_user(&inet, INET6_BYTES, address))
			return AF_UNSPEC;
		if (length >= INET6_SCOPE_BYTES &&
		    bpf_probe_read_user(&inet.scope_id, sizeof(inet.scope_id), address + INET6_BYTES))
			return AF_UNSPEC;
		__builtin_memcpy(out->address, inet.address6, sizeof(inet.address6));
		out->scope_id = inet.scope_id;
	} else {
		return AF_UNSPEC;
	}
	/* Changed between two reads of it: not to be believed. */
	if (inet.family != family)
		return AF_UNSPEC;
	out->family = family;
	out->port = __builtin_bswap16(inet.port);
	return family;
}

/* Begins a record about a socket; what is known of the socket itself is there. */
static __inline void begin_socket(struct task *t, struct scratch *s, __u32 operation, struct sock *sk)
{
	struct gh_socket *body = &s->record.body.socket;

	s->used = 0;
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_SOCKET);
	body->result = s->result;
	body->operation = operation;
	body->syscall = s->nr;
	__builtin_memset(&body->path, 0, sizeof(body->path));
	if (sk)
		describe(&body->address, sk);
	else
		__builtin_memset(&body->address, 0, sizeof(body->address));
}

static __inline int finish_socket(struct scratch *s, struct gh_counters *count)
{
	ADD(count->observed[GH_CLASS_NETWORK], 1);
	return finish_activity(s, count, GH_CLASS_NETWORK);
}

__noinline int on_connect(struct task *t, struct scratch *s, struct gh_counters *count)
{
	const char *address;
	struct gh_address *out;
	struct file *file;
	struct sock *sk = NULL;
	__u16 family = AF_UNSPEC;
	__u16 socket_family = AF_UNSPEC;
	bool is_under_way;
	__u32 length;
	__u32 bytes;

	if (!t || !s || !count)
		return 0;
	address = (void *)s->args[2];
	length = s->args[3];
	out = &s->record.body.socket.address;
	file = file_of(s->args[1]);
	if (file)
		sk = sock_of(file);
	begin_socket(t, s, GH_SOCKET_CONNECT, sk);
	socket_family = out->family;
	if (bpf_probe_read_user(&family, sizeof(family), address))
		family = AF_UNSPEC;

	is_under_way = s->result >= 0 || s->result == -EINPROGRESS || s->result == -EINTR || s->result == -EALREADY;
	if (is_under_way && sk && socket_family != AF_UNIX) {
		if (socket_family != AF_INET && socket_family != AF_INET6) {
			ADD(count->other_family_connects, 1);
			return 0;
		}
		if (!read_peer(out, sk)) {
			/* AF_UNSPEC dissolves an association: nothing is contacted. */
			if (family == AF_UNSPEC)
				return 0;
			s->failed = 1;
		}
		return finish_socket(s, count);
	}
	if (is_under_way && family != AF_UNIX) {
		struct unix_sock *local = (void *)sk;

		if (sk && family == AF_UNSPEC && !KREAD(local, peer))
			return 0;
		/* Somebody was contacted, and the socket or the address is no longer there to tell whom. */
		return lose(count, GH_CLASS_NETWORK);
	}
	if (is_under_way && !sk)
		return lose(count, GH_CLASS_NETWORK);

	if (family == AF_UNSPEC) {
		/* No address, no attempt. */
		return is_refused(s->result) ? 0 : lose(count, GH_CLASS_NETWORK);
	}
	if (family != AF_INET && family != AF_INET6 && family != AF_UNIX) {
		ADD(count->other_family_connects, 1);
		return 0;
	}
	bytes = family == AF_INET ? INET_BYTES : family == AF_INET6 ? INET6_BYTES : sizeof(family) + 1;
	if (length < bytes)
		return is_refused(s->result) ? 0 : lose(count, GH_CLASS_NETWORK);
	out->family = family;
	if (family == AF_UNIX)
		add_unix(s, address, length);
	else if (read_named(out, (__u64)address, length) == AF_UNSPEC)
		s->failed = 1;
	return finish_socket(s, count);
}

/* The path that a unix socket was bound to, as its owner wrote it. */
static __inline void add_bound(struct scratch *s, struct sock *sk, bool is_binding)
{
	struct gh_path *path = &s->record.body.socket.path;
	struct unix_sock *local = (void *)sk;
	struct unix_address *bound = KREAD(local, addr);
	const char *name = (void *)bound + KOFFSET(struct unix_address, len) + sizeof(int) + sizeof(__u16);
	__u32 bytes = bound ? KREAD(bound, len) : 0;
	__u32 used;
	char first = 0;

	/* Its own directory is that of the binding. */
	bpf_probe_read_kernel(&first, sizeof(first), name);
	if (is_binding && bytes > sizeof(__u16) && first && first != '/')
		add_path(s, pwd(), path);
	used = s->used;
	/* Without a name: nothing is appended. */
	if (bytes <= sizeof(__u16) || used > PAYLOAD_BYTES - NAME_BYTES)
		return;
	bytes -= sizeof(__u16);
	/* The kernel ends the longest with a NUL of its own. */
	if (bytes > UNIX_PATH_BYTES + 1)
		bytes = UNIX_PATH_BYTES + 1;
	asm volatile("%0 &= 0x7f" : "+r"(bytes));
	if (bpf_probe_read_kernel(s->payload + used, bytes, name))
		return;
	path->flags |= GH_PATH_USER;
	if (first) {
		/* With its NUL. */
		bytes -= 1;
		if (first != '/' && !is_binding)
			path->flags |= GH_PATH_NO_BASE;
	}
	path->user_bytes = bytes;
	s->used = used + bytes;
}

/* bind, listen, accept. */
__noinline int on_socket(struct task *t, struct scratch *s, struct gh_counters *count, __u32 operation)
{
	struct gh_address *out;
	struct file *file;
	struct sock *sk;

	if (!t || !s || !count)
		return 0;
	out = &s->record.body.socket.address;
	/* Nobody came, or it was no socket. */
	if (s->result < 0 && operation != GH_SOCKET_BIND)
		return 0;
	file = file_of(operation == GH_SOCKET_ACCEPT ? s->result : s->args[1]);
	sk = file ? sock_of(file) : NULL;
	if (!sk)
		return s->result < 0 ? 0 : lose(count, GH_CLASS_NETWORK);
	begin_socket(t, s, operation, sk);
	if (out->family == AF_UNIX) {
		if (operation == GH_SOCKET_BIND && s->result < 0)
			add_unix(s, (void *)s->args[2], s->args[3]);
		else
			add_bound(s, sk, operation == GH_SOCKET_BIND);
		return finish_socket(s, count);
	}
	if (out->family != AF_INET && out->family != AF_INET6)
		return 0;
	if (operation == GH_SOCKET_ACCEPT) {
		/* A peer that has gone already is named all the same. */
		if (!read_peer(out, sk))
			s->failed = 1;
	} else if (s->result < 0) {
		if (read_named(out, s->args[2], s->args[3]) == AF_UNSPEC)
			return 0;
	} else {
		read_local(out, sk);
	}
	return finish_socket(s, count);
}

static __inline __u64 hash_of(const struct gh_address *address)
{
	const __u64 *words = (const void *)address->address;

	return mix(mix(address->port | (__u64)address->family << 16, words[0]), words[1]);
}

/* The beginning of a message, appended: of as many vectors as a resolver could want. */
__noinline int add_text_of(struct scratch *s)
{
	struct iovec vector;
	__u64 vectors;
	__u32 used = 0;
	__u64 left;
	__u64 bytes;

	if (!s)
		return 0;
	vector = s->message.buffer;
	vectors = s->message.vectors;
	left = s->message.bytes > GH_DNS_BYTES ? GH_DNS_BYTES : s->message.bytes;
	for (int i = 0; i < 8 && left; i++) {
		if (vectors) {
			if (i >= s->message.vector_count ||
			    bpf_probe_read_user(&vector, sizeof(vector), (void *)(vectors + i * sizeof(vector))))
				break;
		} else if (i) {
			break;
		}
		bytes = vector.bytes > left ? left : vector.bytes;
		asm volatile("%0 &= 0x7ff" : "+r"(bytes));
		asm volatile("%0 &= 0x7ff" : "+r"(used));
		if (bytes && bpf_probe_read_user(s->payload + used, bytes, (void *)vector.base)) {
			s->failed = 1;
			break;
		}
		used += bytes;
		left -= bytes;
	}
	s->used = used;
	return 0;
}

/* A message from or to a name server: what was asked, and the answer. */
__noinline int add_dns(struct task *t, struct scratch *s, struct gh_counters *count, struct gh_address *server)
{
	struct gh_dns *dns = &s->record.body.dns;

	if (!t || !s || !count || !server)
		return 0;
	s->used = 0;
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_DNS);
	dns->server = *server;
	dns->is_answer = !s->message.sends;
	dns->message_total_bytes = s->message.bytes;
	add_text_of(s);
	dns->message_bytes = s->used;
	ADD(count->observed[GH_CLASS_NETWORK], 1);
	finish_activity(s, count, GH_CLASS_NETWORK);
	s->failed = 0;
	return 0;
}

/* One message that went over an Internet socket. */
__noinline int on_message(struct task *t, struct scratch *s, struct gh_counters *count, __u64 sock_address)
{
	struct sock *sk = (void *)sock_address;
	struct gh_address *address;
	struct peer *peer;
	bool is_named = false;
	__u64 key;

	if (!t || !s || !count)
		return 0;
	address = &s->address;
	describe(address, sk);
	if (s->message.name && (address->socket_type != SOCK_STREAM)) {
		/* The family may be another than the socket's: IPv4 in IPv6. */
		is_named = read_named(address, s->message.name, s->message.name_bytes) != AF_UNSPEC;
		/* To an IPv6 socket a name without a family is none, see udpv6_sendmsg(). */
		if (!is_named && s->message.sends && address->family != AF_INET6)
			return lose(count, GH_CLASS_NETWORK);
	}
	/* A datagram from a socket without a peer, which the caller did not ask for the source of: its address is 0. */
	if (!is_named)
		read_peer(address, sk);
	/* A datagram has no use for the flag. */
	if (s->message.connects && address->socket_type == SOCK_STREAM) {
		begin_socket(t, s, GH_SOCKET_CONNECT, sk);
		s->record.body.socket.address = *address;
		finish_socket(s, count);
	}
	key = mix(hash_of(address), sock_address) | 1;
	peer = &t->peers[key >> 32 & (PEERS - 1)];
	if (peer->key != key) {
		flush_peer(t, s, count, key >> 32 & (PEERS - 1));
		peer->key = key;
		peer->address = *address;
		peer->since = bpf_jiffies64();
		if (is_named && s->message.sends) {
			begin_socket(t, s, GH_SOCKET_SEND, sk);
			s->record.body.socket.result = 0;
			s->record.body.socket.address = *address;
			finish_socket(s, count);
		}
	}
	if (s->message.sends) {
		peer->sends++;
		peer->sent_bytes += s->message.bytes;
	} else {
		peer->receives++;
		peer->received_bytes += s->message.bytes;
	}
	if (address->port == DNS_PORT && address->protocol == IPPROTO_UDP)
		add_dns(t, s, count, address);
	if (!((peer->sends + peer->receives) & 0xff) && (__u32)bpf_jiffies64() - peer->since > TALLY_JIFFIES)
		flush_peer(t, s, count, key >> 32 & (PEERS - 1));
	return 0;
}

struct messages {
	struct task *t;
	struct scratch *s;
	struct gh_counters *count;
	__u64 sk;
};

static __inline void read_header(struct message *message, const struct user_msghdr *header)
{
	/* See __copy_msghdr() in net/socket.c. */
	message->name = header->name_bytes ? header->name : 0;
	message->name_bytes = header->name_bytes;
	message->vectors = header->vectors;
	message->vector_count = header->vector_count;
}

static long message_step(__u32 step, struct messages *of)
{
	struct mmsghdr *header = &of->s->header;
	struct mmsghdr *headers = (void *)of->s->args[2];

	if (step >= of->s->result)
		return 1;
	if (bpf_probe_read_user(header, sizeof(*header), headers + step)) {
		lose(of->count, GH_CLASS_NETWORK);
		return 0;
	}
	read_header(&of->s->message, &header->header);
	of->s->message.bytes = header->message_bytes;
	on_message(of->t, of->s, of->count, of->sk);
	/* Only the first could. */
	of->s->message.connects = 0;
	return 0;
}

/* UIO_MAXIOV: what the kernel takes in one call. */
#define MOST_MESSAGES 1024

/* sendto, sendmsg, sendmmsg and the same of receiving. */
__noinline int on_messages(struct task *t, struct scratch *s, struct gh_counters *count, struct call *call)
{
	struct messages of = { .t = t, .s = s, .count = count };
	struct user_msghdr *header;
	struct message *message = &s->message;
	struct file *file;
	struct sock *sk;
	__u32 name_bytes = 0;
	__u16 family;
	bool sends;

	if (!t || !s || !count || !call)
		return 0;
	sends = call->action == ACTION_SEND;
	header = &s->header.header;
	file = file_of(s->args[1]);
	if (!file)
		/* Bytes went over it, and it is closed. */
		return s->result < 0 ? 0 : lose(count, GH_CLASS_NETWORK);
	sk = sock_of(file);
	if (!sk)
		return 0;
	family = KREAD(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	message->sends = sends;
	message->connects = 0;
	message->name = 0;
	message->name_bytes = 0;
	message->buffer.base = 0;
	message->buffer.bytes = 0;
	message->vectors = 0;
	message->vector_count = 0;
	message->bytes = s->result;
	if (call->kind == MESSAGE_BUFFER) {
		message->buffer.base = s->args[2];
		message->buffer.bytes = s->args[3];
		message->name = s->args[5];
		message->name_bytes = s->args[6];
		if (!sends) {
			bpf_probe_read_user(&name_bytes, sizeof(name_bytes), (void *)s->args[6]);
			message->name_bytes = name_bytes;
		}
	} else if (call->kind == MESSAGE_HEADER || s->result < 0) {
		/* Of several that could not be sent, it was the first. */
		if (bpf_probe_read_user(header, sizeof(*header), (void *)s->args[2]))
			return s->result < 0 ? 0 : lose(count, GH_CLASS_NETWORK);
		read_header(message, header);
	}
	/* The first bytes of a connection go with its request, see tcp_sendmsg_fastopen() in net/ipv4/tcp.c. */
	if (sends && s->args[call->value & 7] & MSG_FASTOPEN && (s->result >= 0 || s->result == -EINPROGRESS))
		message->connects = 1;
	if (s->result < 0 && !message->connects) {
		if (!sends || !message->name)
			return 0;
		begin_socket(t, s, GH_SOCKET_SEND, sk);
		if (read_named(&s->record.body.socket.address, message->name, message->name_bytes) == AF_UNSPEC)
			return 0;
		return finish_socket(s, count);
	}
	if (call->kind != MESSAGE_HEADERS || s->result < 0) {
		if (s->result < 0)
			message->bytes = 0;
		return on_message(t, s, count, (__u64)sk);
	}
	of.sk = (__u64)sk;
	bpf_loop(MOST_MESSAGES, message_step, &of, 0);
	return 0;
}

/*
 * Bytes from or to a descriptor that is not in its task's table of descriptors: a file not met before, a socket, or
 * something that is not told of (a pipe, an event descriptor).
 */
__noinline int on_bytes(struct task *t, struct scratch *s, struct gh_counters *count, int fd, __u32 writes)
{
	struct file *file;
	struct seen *e;
	struct sock *sk;
	__u16 family;
	__u16 type;

	if (!t || !s || !count)
		return 0;
	file = file_of(fd);
	if (!file)
		/* Closed by another thread: what it was is not known. */
		return lose(count, GH_CLASS_FILE);
	type = type_of(file);
	if (type == S_IFREG || type == S_IFBLK || type == S_IFCHR) {
		e = introduce(t, s, count, fd, file);
		if (!e)
			return lose(count, GH_CLASS_FILE);
		add_bytes(e, s->result, writes);
		return 0;
	}
	if (type != S_IFSOCK)
		return 0;
	sk = sock_of(file);
	if (!sk)
		return 0;
	family = KREAD(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	s->message.name = 0;
	s->message.sends = writes;
	s->message.connects = 0;
	s->message.buffer.base = 0;
	s->message.buffer.bytes = 0;
	s->message.vectors = 0;
	s->message.vector_count = 0;
	if (s->nr == NR_read || s->nr == NR_write) {
		s->message.buffer.base = s->args[2];
		s->message.buffer.bytes = s->args[3];
	} else if (s->nr == NR_readv || s->nr == NR_writev) {
		s->message.vectors = s->args[2];
		s->message.vector_count = s->args[3];
	}
	s->message.bytes = s->result;
	return on_message(t, s, count, (__u64)sk);
}

#endif
