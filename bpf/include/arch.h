/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where an architecture keeps system call arguments, and its numbers. A call an architecture lacks is negative. */
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

/* TS_COMPAT of arch/x86/include/asm/thread_info.h: a 32-bit system call, whose numbers mean something else. */
#define IS_COMPAT(task) ((task)->thread_info.status & 0x0002)
/* __X32_SYSCALL_BIT */
#define X32_BIT 0x40000000

#define NR_open 2
#define NR_rt_sigreturn 15
#define NR_connect 42
#define NR_sendto 44
#define NR_sendmsg 46
#define NR_clone 56
#define NR_fork 57
#define NR_vfork 58
#define NR_exit 60
#define NR_rename 82
#define NR_rmdir 84
#define NR_creat 85
#define NR_unlink 87
#define NR_ptrace 101
#define NR_exit_group 231
#define NR_openat 257
#define NR_unlinkat 263
#define NR_renameat 264
#define NR_open_by_handle_at 304
#define NR_sendmmsg 307
#define NR_process_vm_writev 311
#define NR_renameat2 316
#define NR_io_uring_setup 425
#define NR_io_uring_enter 426
#define NR_io_uring_register 427
#define NR_clone3 435
#define NR_openat2 437
#define NR_pidfd_getfd 438

#elif defined(__TARGET_ARCH_arm64)

#define SYSCALL_NR(regs) ((long)(regs)->syscallno)
/* x0 holds the result on return; the kernel keeps the first argument beside it. */
#define ARG1(regs) ((regs)->orig_x0)
#define ARG2(regs) ((regs)->regs[1])
#define ARG3(regs) ((regs)->regs[2])
#define ARG4(regs) ((regs)->regs[3])
#define ARG5(regs) ((regs)->regs[4])

/* TIF_32BIT of arch/arm64/include/asm/thread_info.h. */
#define IS_COMPAT(task) ((task)->thread_info.flags & (1UL << 22))
#define X32_BIT 0x40000000

#define NR_open -2
#define NR_fork -3
#define NR_vfork -4
#define NR_rename -5
#define NR_rmdir -6
#define NR_creat -7
#define NR_unlink -8
#define NR_unlinkat 35
#define NR_renameat 38
#define NR_openat 56
#define NR_exit 93
#define NR_exit_group 94
#define NR_ptrace 117
#define NR_rt_sigreturn 139
#define NR_connect 203
#define NR_sendto 206
#define NR_sendmsg 211
#define NR_clone 220
#define NR_open_by_handle_at 265
#define NR_sendmmsg 269
#define NR_process_vm_writev 271
#define NR_renameat2 276
#define NR_io_uring_setup 425
#define NR_io_uring_enter 426
#define NR_io_uring_register 427
#define NR_clone3 435
#define NR_openat2 437
#define NR_pidfd_getfd 438

#endif
#endif
