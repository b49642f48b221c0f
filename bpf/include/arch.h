/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where an architecture keeps system call arguments, and its numbers. */
#ifndef GLASSHOUSE_ARCH_H
#define GLASSHOUSE_ARCH_H

#include "helpers.h"

#if defined(__TARGET_ARCH_x86)

/* Arguments stay in pt_regs until the return to user mode, so sys_exit alone sees both them and the result. */
#define SYSCALL_NR(regs) ((long)(regs)->orig_ax)
#define ARG1(regs) ((regs)->di)
#define ARG2(regs) ((regs)->si)
#define ARG3(regs) ((regs)->dx)
#define ARG4(regs) ((regs)->r10)
#define ARG5(regs) ((regs)->r8)
#define ARG6(regs) ((regs)->r9)
/* What syscall_rollback() makes the result. */
#define ROLLED_BACK(regs) ((long)(regs)->orig_ax)

/* TS_COMPAT of arch/x86/include/asm/thread_info.h: a 32-bit system call, whose numbers mean something else. */
#define IS_COMPAT(task) ((task)->thread_info.status & 0x0002)
/* __X32_SYSCALL_BIT */
#define X32_BIT 0x40000000

#define NR_read 0
#define NR_write 1
#define NR_open 2
#define NR_mmap 9
#define NR_rt_sigreturn 15
#define NR_pread64 17
#define NR_pwrite64 18
#define NR_readv 19
#define NR_writev 20
#define NR_sendfile 40
#define NR_connect 42
#define NR_accept 43
#define NR_sendto 44
#define NR_recvfrom 45
#define NR_sendmsg 46
#define NR_recvmsg 47
#define NR_bind 49
#define NR_listen 50
#define NR_clone 56
#define NR_fork 57
#define NR_vfork 58
#define NR_exit 60
#define NR_truncate 76
#define NR_ftruncate 77
#define NR_rename 82
#define NR_mkdir 83
#define NR_rmdir 84
#define NR_creat 85
#define NR_link 86
#define NR_unlink 87
#define NR_symlink 88
#define NR_chmod 90
#define NR_fchmod 91
#define NR_chown 92
#define NR_fchown 93
#define NR_lchown 94
#define NR_ptrace 101
#define NR_mknod 133
#define NR_pivot_root 155
#define NR_chroot 161
#define NR_mount 165
#define NR_umount2 166
#define NR_reboot 169
#define NR_init_module 175
#define NR_delete_module 176
#define NR_exit_group 231
#define NR_kexec_load 246
#define NR_add_key 248
#define NR_request_key 249
#define NR_keyctl 250
#define NR_openat 257
#define NR_mkdirat 258
#define NR_mknodat 259
#define NR_fchownat 260
#define NR_unlinkat 263
#define NR_renameat 264
#define NR_linkat 265
#define NR_symlinkat 266
#define NR_fchmodat 268
#define NR_unshare 272
#define NR_splice 275
#define NR_accept4 288
#define NR_preadv 295
#define NR_pwritev 296
#define NR_perf_event_open 298
#define NR_recvmmsg 299
#define NR_open_by_handle_at 304
#define NR_sendmmsg 307
#define NR_setns 308
#define NR_process_vm_readv 310
#define NR_process_vm_writev 311
#define NR_finit_module 313
#define NR_renameat2 316
#define NR_memfd_create 319
#define NR_kexec_file_load 320
#define NR_bpf 321
#define NR_userfaultfd 323
#define NR_copy_file_range 326
#define NR_preadv2 327
#define NR_pwritev2 328
#define NR_io_uring_setup 425
#define NR_io_uring_enter 426
#define NR_io_uring_register 427
#define NR_move_mount 429
#define NR_clone3 435
#define NR_openat2 437
#define NR_pidfd_getfd 438
#define NR_fchmodat2 452
#define NR_kill 62
#define NR_rt_sigqueueinfo 129
#define NR_tkill 200
#define NR_tgkill 234
#define NR_rt_tgsigqueueinfo 297
#define NR_pidfd_send_signal 424
#define NR_mprotect 10
#define NR_pkey_mprotect 329
#define NR_io_submit 209

#elif defined(__TARGET_ARCH_arm64)

#define SYSCALL_NR(regs) ((long)(regs)->syscallno)
/* x0 holds the result on return; the kernel keeps the first argument beside it. */
#define ARG1(regs) ((regs)->orig_x0)
#define ARG2(regs) ((regs)->regs[1])
#define ARG3(regs) ((regs)->regs[2])
#define ARG4(regs) ((regs)->regs[3])
#define ARG5(regs) ((regs)->regs[4])
#define ARG6(regs) ((regs)->regs[5])
/* What syscall_rollback() makes the result. */
#define ROLLED_BACK(regs) ((long)(regs)->orig_x0)

/* TIF_32BIT of arch/arm64/include/asm/thread_info.h. */
#define IS_COMPAT(task) ((task)->thread_info.flags & (1UL << 22))
#define X32_BIT 0x40000000

#define NR_mknodat 33
#define NR_mkdirat 34
#define NR_unlinkat 35
#define NR_symlinkat 36
#define NR_linkat 37
#define NR_renameat 38
#define NR_umount2 39
#define NR_mount 40
#define NR_pivot_root 41
#define NR_truncate 45
#define NR_ftruncate 46
#define NR_chroot 51
#define NR_fchmod 52
#define NR_fchmodat 53
#define NR_fchownat 54
#define NR_fchown 55
#define NR_openat 56
#define NR_read 63
#define NR_write 64
#define NR_readv 65
#define NR_writev 66
#define NR_pread64 67
#define NR_pwrite64 68
#define NR_preadv 69
#define NR_pwritev 70
#define NR_sendfile 71
#define NR_splice 76
#define NR_exit 93
#define NR_exit_group 94
#define NR_unshare 97
#define NR_kexec_load 104
#define NR_init_module 105
#define NR_delete_module 106
#define NR_ptrace 117
#define NR_rt_sigreturn 139
#define NR_reboot 142
#define NR_bind 200
#define NR_listen 201
#define NR_accept 202
#define NR_connect 203
#define NR_sendto 206
#define NR_recvfrom 207
#define NR_sendmsg 211
#define NR_recvmsg 212
#define NR_add_key 217
#define NR_request_key 218
#define NR_keyctl 219
#define NR_clone 220
#define NR_mmap 222
#define NR_perf_event_open 241
#define NR_accept4 242
#define NR_recvmmsg 243
#define NR_setns 268
#define NR_open_by_handle_at 265
#define NR_sendmmsg 269
#define NR_process_vm_readv 270
#define NR_process_vm_writev 271
#define NR_finit_module 273
#define NR_renameat2 276
#define NR_memfd_create 279
#define NR_bpf 280
#define NR_userfaultfd 282
#define NR_copy_file_range 285
#define NR_preadv2 286
#define NR_pwritev2 287
#define NR_kexec_file_load 294
#define NR_io_uring_setup 425
#define NR_io_uring_enter 426
#define NR_io_uring_register 427
#define NR_move_mount 429
#define NR_clone3 435
#define NR_openat2 437
#define NR_pidfd_getfd 438
#define NR_fchmodat2 452

#define NR_mprotect 226
#define NR_io_submit 2
#define NR_pkey_mprotect 288
#define NR_kill 129
#define NR_tkill 130
#define NR_tgkill 131
#define NR_rt_sigqueueinfo 138
#define NR_rt_tgsigqueueinfo 240
#define NR_pidfd_send_signal 424

#endif
#endif
