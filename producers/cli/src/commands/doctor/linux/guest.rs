//! A guest of a few dozen instructions, run in a child of `doctor`.
//!
//! It goes the way every kernel boots: real mode, protected mode, long mode with paging. There it asks for CPUID and
//! EFER, takes an exception and returns from it, reloads CR3, and halts. At each step it writes to a port, and the child
//! passes that on, so that the parent knows how far the guest came even if it hangs.

#![allow(unsafe_code, reason = "KVM takes raw memory; the guest's instructions are in an assembly block")]

use std::io::Write as _;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Error, Kvm, VcpuExit, VcpuFd, VmFd};

/// Ends the child if its parent is gone and the guest hangs.
const LIFETIME_SECONDS: u32 = 5;
const PAGE_BYTES: usize = 4096;
/// Page 1 is the code, 4 to 6 the page tables, 7 the interrupt table and the stack's end.
const PAGES: usize = 16;
const CODE_PAGE: usize = 1;
/// Where the guest writes its steps (one byte each), and EFER (four bytes).
const STEP_PORT: u16 = 0xe9;
const EFER_PORT: u16 = 0xea;
/// Above the guest's memory, as KVM on Intel processors wants it.
const TSS_ADDRESS: usize = 0xfffb_d000;

std::arch::global_asm!(
    r#"
    .pushsection .rodata.glasshouse_doctor_guest, "a"
    .global glasshouse_doctor_guest
    .hidden glasshouse_doctor_guest
    .global glasshouse_doctor_guest_end
    .hidden glasshouse_doctor_guest_end
glasshouse_doctor_guest:
    .code16
    cli
    movb $'r', %al
    outb %al, $0xe9
    lgdtl (7f - glasshouse_doctor_guest + 0x1000)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $(2f - glasshouse_doctor_guest + 0x1000)

2:  // Protected mode.
    .code32
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x8000, %esp
    movb $'p', %al
    outb %al, $0xe9
    // The first 2 MiB mapped to themselves: PML4 at 0x4000, PDPT at 0x5000, one large page in the PD at 0x6000.
    movl $0x5003, 0x4000
    movl $0x6003, 0x5000
    movl $0x0083, 0x6000
    // CR4.PAE, CR3, EFER.LME, CR0.PG.
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0x4000, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmpl $0x18, $(3f - glasshouse_doctor_guest + 0x1000)

3:  // Long mode.
    .code64
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq $0x8000, %rsp
    movb $'l', %al
    outb %al, $0xe9
    xorl %eax, %eax
    cpuid
    movb $'c', %al
    outb %al, $0xe9
    movl $0xc0000080, %ecx
    rdmsr
    outl %eax, $0xea
    // Invalid opcode is vector 6: a 64-bit interrupt gate at 0x7000 + 6 * 16.
    movl $(0x180000 + 5f - glasshouse_doctor_guest + 0x1000), %eax
    movl %eax, 0x7060
    movl $0x00008e00, 0x7064
    movq $0, 0x7068
    lidt (8f - glasshouse_doctor_guest + 0x1000)
    ud2
    // The mapping must survive a reload.
    movq %cr3, %rax
    movq %rax, %cr3
    movb $'d', %al
    outb %al, $0xe9
4:  hlt
    jmp 4b

5:  // Steps over the two bytes of ud2.
    movb $'x', %al
    outb %al, $0xe9
    addq $2, (%rsp)
    iretq

    .balign 8
6:  // Null, 32-bit code, data, 64-bit code.
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00af9b000000ffff
7:  .word 31
    .long 6b - glasshouse_doctor_guest + 0x1000
8:  .word 0x6f
    .quad 0x7000
glasshouse_doctor_guest_end:
    .popsection
    "#,
    options(att_syntax)
);

// SAFETY: both are defined above, in read-only data.
unsafe extern "C" {
    #[link_name = "glasshouse_doctor_guest"]
    static GUEST: u8;
    #[link_name = "glasshouse_doctor_guest_end"]
    static GUEST_END: u8;
}

fn code() -> &'static [u8] {
    let (start, end) = (&raw const GUEST, &raw const GUEST_END);
    let length = (end as usize).saturating_sub(start as usize);
    // SAFETY: the two symbols enclose initialised read-only bytes of one section, which live as long as the program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// Boots the guest and tells every step on standard output, one a line; [`super::kvm`] reads them.
pub(super) fn run() {
    nix::unistd::alarm::set(LIFETIME_SECONDS);
    let mut lines = std::io::stdout().lock();
    let mut tell = |line: &str| {
        // Nobody may be left to read it.
        let _ = writeln!(lines, "{line}").and_then(|()| lines.flush());
    };
    if let Err((step, error)) = boot(&mut tell).and_then(|()| devices(&mut tell)) {
        tell(&format!(
            "failed {} {step}: {}",
            error.errno(),
            std::io::Error::from_raw_os_error(error.errno())
        ));
    }
}

type Step<T> = Result<T, (&'static str, Error)>;

fn at<T>(step: &'static str, result: Result<T, Error>) -> Step<T> {
    result.map_err(|error| (step, error))
}

fn boot(tell: &mut dyn FnMut(&str)) -> Step<()> {
    let kvm = at("opening /dev/kvm", Kvm::new())?;
    // Before the machine, so that it outlives it.
    let mut memory = vec![Page([0; PAGE_BYTES]); PAGES].into_boxed_slice();
    memory[CODE_PAGE].0[..code().len()].copy_from_slice(code());
    let vm = at("KVM_CREATE_VM", kvm.create_vm())?;
    if kvm.check_extension(Cap::SetTssAddr) {
        at("KVM_SET_TSS_ADDR", vm.set_tss_address(TSS_ADDRESS))?;
    }
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: (PAGES * PAGE_BYTES) as u64,
        userspace_addr: memory.as_mut_ptr() as u64,
    };
    // SAFETY: the region is page-aligned memory of exactly that size, it outlives the machine, and nothing but the guest
    // touches it from here on.
    at("KVM_SET_USER_MEMORY_REGION", unsafe { vm.set_user_memory_region(region) })?;
    let mut vcpu = vcpu(&kvm, &vm)?;
    tell("run");
    loop {
        match at("KVM_RUN", vcpu.run())? {
            VcpuExit::IoOut(STEP_PORT, &[step]) => tell(&format!("step {}", char::from(step))),
            VcpuExit::IoOut(EFER_PORT, &[a, b, c, d]) => {
                tell(&format!("efer {:x}", u32::from_le_bytes([a, b, c, d])));
            }
            VcpuExit::Hlt => {
                tell("halt");
                return Ok(());
            }
            other => {
                tell(&format!("exit {other:?}"));
                return Ok(());
            }
        }
    }
}

fn vcpu(kvm: &Kvm, vm: &VmFd) -> Step<VcpuFd> {
    let vcpu = at("KVM_CREATE_VCPU", vm.create_vcpu(0))?;
    // Without the host's CPUID the guest has no long mode.
    let cpuid = at("KVM_GET_SUPPORTED_CPUID", kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
    at("KVM_SET_CPUID2", vcpu.set_cpuid2(&cpuid))?;
    let mut segments = at("KVM_GET_SREGS", vcpu.get_sregs())?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    at("KVM_SET_SREGS", vcpu.set_sregs(&segments))?;
    let mut registers = at("KVM_GET_REGS", vcpu.get_regs())?;
    registers.rip = (CODE_PAGE * PAGE_BYTES) as u64;
    // The bit that is always set.
    registers.rflags = 2;
    at("KVM_SET_REGS", vcpu.set_regs(&registers))?;
    Ok(vcpu)
}

/// Every VMM asks for these. They are in another machine, because with them a halt no longer ends KVM_RUN.
fn devices(tell: &mut dyn FnMut(&str)) -> Step<()> {
    let kvm = at("opening /dev/kvm", Kvm::new())?;
    let vm = at("KVM_CREATE_VM", kvm.create_vm())?;
    at("KVM_CREATE_IRQCHIP", vm.create_irq_chip())?;
    at("KVM_CREATE_PIT2", vm.create_pit2(kvm_pit_config::default()))?;
    tell("devices");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_its_page_and_starts_in_real_mode() {
        assert!(code().len() < PAGE_BYTES, "{}", code().len());
        // cli; mov al, 'r'; out 0xe9, al
        assert_eq!(code()[..5], [0xfa, 0xb0, b'r', 0xe6, 0xe9]);
    }
}
