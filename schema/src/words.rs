//! Words that a receipt has for numbers of the kernel and of DNS. Receipts are read on every system, so the tables are
//! ours and not the host's; a number without a word stands for itself.

use std::borrow::Cow;

use crate::event::Operation;

/// The name of a Linux signal: the same on x86-64 and arm64 (`include/uapi/asm-generic/signal.h`).
pub fn signal(number: u64) -> Cow<'static, str> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = number.checked_sub(1).and_then(|index| NAMES.get(usize::try_from(index).ok()?));
    name.map_or_else(|| number.to_string().into(), |name| format!("SIG{name}").into())
}

/// The namespaces in the flags of unshare(2) and setns(2), joined with `|` (`include/uapi/linux/sched.h`); other bits
/// as one hexadecimal number.
pub fn namespaces(flags: u64) -> String {
    const NAMES: [(u64, &str); 11] = [
        (0x80, "time"),
        (0x200, "fs"),
        (0x400, "files"),
        (0x2_0000, "mount"),
        (0x4_0000, "sysvsem"),
        (0x200_0000, "cgroup"),
        (0x400_0000, "uts"),
        (0x800_0000, "ipc"),
        (0x1000_0000, "user"),
        (0x2000_0000, "pid"),
        (0x4000_0000, "net"),
    ];
    let mut words: Vec<String> =
        NAMES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
    let rest = NAMES.iter().fold(flags, |rest, (bit, _)| rest & !bit);
    if rest != 0 {
        words.push(format!("{rest:#x}"));
    }
    words.join("|")
}

/// What the value of an [`Operation`] means.
pub fn operation_detail(operation: Operation, value: u64) -> String {
    match operation {
        Operation::Signal => signal(value).into_owned(),
        Operation::Unshare | Operation::SetNamespace => namespaces(value),
        Operation::ProcessMemory => if value == 1 { "write" } else { "read" }.into(),
        Operation::Ptrace | Operation::Bpf | Operation::Keyring | Operation::IoUring | Operation::Reboot => {
            value.to_string()
        }
        _ if value == 0 => String::new(),
        _ => value.to_string(),
    }
}

/// The name of a DNS resource record type (IANA, “Domain Name System Parameters”).
pub fn dns_type(number: u16) -> Cow<'static, str> {
    Cow::Borrowed(match number {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        39 => "DNAME",
        43 => "DS",
        46 => "RRSIG",
        48 => "DNSKEY",
        52 => "TLSA",
        64 => "SVCB",
        65 => "HTTPS",
        255 => "ANY",
        257 => "CAA",
        other => return other.to_string().into(),
    })
}

/// The name of a DNS response code, `asked` for a question.
pub fn dns_result(code: Option<u8>) -> Cow<'static, str> {
    Cow::Borrowed(match code {
        None => "asked",
        Some(0) => "NOERROR",
        Some(1) => "FORMERR",
        Some(2) => "SERVFAIL",
        Some(3) => "NXDOMAIN",
        Some(4) => "NOTIMP",
        Some(5) => "REFUSED",
        Some(6) => "YXDOMAIN",
        Some(7) => "YXRRSET",
        Some(8) => "NXRRSET",
        Some(9) => "NOTAUTH",
        Some(10) => "NOTZONE",
        Some(other) => return other.to_string().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_words_or_stand_for_themselves() {
        let signals = [0, 1, 9, 15, 31, 32, 64, u64::MAX].map(signal);
        assert_eq!(signals[..4], ["0", "SIGHUP", "SIGKILL", "SIGTERM"]);
        assert_eq!(signals[4..], ["SIGSYS", "32", "64", "18446744073709551615"]);
        assert_eq!(namespaces(0), "");
        assert_eq!(namespaces(0x1002_0000), "mount|user");
        assert_eq!(namespaces(0x2000_0001), "pid|0x1");
        assert_eq!((dns_type(28), dns_type(9999)), ("AAAA".into(), "9999".into()));
        assert_eq!(
            [dns_result(None), dns_result(Some(3)), dns_result(Some(99))],
            ["asked", "NXDOMAIN", "99"]
        );
    }

    #[test]
    fn operations_say_what_their_value_means() {
        let detail = |operation, value| operation_detail(operation, value);
        assert_eq!(detail(Operation::Signal, 9), "SIGKILL");
        assert_eq!(detail(Operation::SetNamespace, 0x4000_0000), "net");
        assert_eq!(
            (detail(Operation::ProcessMemory, 0), detail(Operation::ProcessMemory, 1)),
            ("read".into(), "write".into())
        );
        assert_eq!((detail(Operation::Ptrace, 0), detail(Operation::Chroot, 0)), ("0".into(), String::new()));
    }
}
