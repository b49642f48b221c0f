//! Names of Linux error numbers (`include/uapi/asm-generic/errno*.h`): the same on x86-64 and arm64. Receipts name
//! errors by them on every system that reads receipts, so the table is ours and not the host's.

/// Names from 1 on; an empty name is a number that Linux does not use.
const NAMES: [&str; 133] = [
    "EPERM",
    "ENOENT",
    "ESRCH",
    "EINTR",
    "EIO",
    "ENXIO",
    "E2BIG",
    "ENOEXEC",
    "EBADF",
    "ECHILD",
    "EAGAIN",
    "ENOMEM",
    "EACCES",
    "EFAULT",
    "ENOTBLK",
    "EBUSY",
    "EEXIST",
    "EXDEV",
    "ENODEV",
    "ENOTDIR",
    "EISDIR",
    "EINVAL",
    "ENFILE",
    "EMFILE",
    "ENOTTY",
    "ETXTBSY",
    "EFBIG",
    "ENOSPC",
    "ESPIPE",
    "EROFS",
    "EMLINK",
    "EPIPE",
    "EDOM",
    "ERANGE",
    "EDEADLK",
    "ENAMETOOLONG",
    "ENOLCK",
    "ENOSYS",
    "ENOTEMPTY",
    "ELOOP",
    "",
    "ENOMSG",
    "EIDRM",
    "ECHRNG",
    "EL2NSYNC",
    "EL3HLT",
    "EL3RST",
    "ELNRNG",
    "EUNATCH",
    "ENOCSI",
    "EL2HLT",
    "EBADE",
    "EBADR",
    "EXFULL",
    "ENOANO",
    "EBADRQC",
    "EBADSLT",
    "",
    "EBFONT",
    "ENOSTR",
    "ENODATA",
    "ETIME",
    "ENOSR",
    "ENONET",
    "ENOPKG",
    "EREMOTE",
    "ENOLINK",
    "EADV",
    "ESRMNT",
    "ECOMM",
    "EPROTO",
    "EMULTIHOP",
    "EDOTDOT",
    "EBADMSG",
    "EOVERFLOW",
    "ENOTUNIQ",
    "EBADFD",
    "EREMCHG",
    "ELIBACC",
    "ELIBBAD",
    "ELIBSCN",
    "ELIBMAX",
    "ELIBEXEC",
    "EILSEQ",
    "ERESTART",
    "ESTRPIPE",
    "EUSERS",
    "ENOTSOCK",
    "EDESTADDRREQ",
    "EMSGSIZE",
    "EPROTOTYPE",
    "ENOPROTOOPT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "EOPNOTSUPP",
    "EPFNOSUPPORT",
    "EAFNOSUPPORT",
    "EADDRINUSE",
    "EADDRNOTAVAIL",
    "ENETDOWN",
    "ENETUNREACH",
    "ENETRESET",
    "ECONNABORTED",
    "ECONNRESET",
    "ENOBUFS",
    "EISCONN",
    "ENOTCONN",
    "ESHUTDOWN",
    "ETOOMANYREFS",
    "ETIMEDOUT",
    "ECONNREFUSED",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "EALREADY",
    "EINPROGRESS",
    "ESTALE",
    "EUCLEAN",
    "ENOTNAM",
    "ENAVAIL",
    "EISNAM",
    "EREMOTEIO",
    "EDQUOT",
    "ENOMEDIUM",
    "EMEDIUMTYPE",
    "ECANCELED",
    "ENOKEY",
    "EKEYEXPIRED",
    "EKEYREVOKED",
    "EKEYREJECTED",
    "EOWNERDEAD",
    "ENOTRECOVERABLE",
    "ERFKILL",
    "EHWPOISON",
];

/// The result of an operation as a receipt says it: `ok`, the error's name, or `errno <n>` for a number without one.
///
/// `result` is 0 or a negated errno; what is positive counts as success.
pub fn result_name(result: i32) -> String {
    if result >= 0 {
        return "ok".into();
    }
    let number = result.unsigned_abs();
    match NAMES.get(number as usize - 1) {
        Some(name) if !name.is_empty() => (*name).into(),
        _ => format!("errno {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::result_name;

    #[test]
    fn the_table_has_no_shift() {
        let known =
            [(1, "EPERM"), (2, "ENOENT"), (13, "EACCES"), (40, "ELOOP"), (42, "ENOMSG"), (59, "EBFONT")];
        let later = [
            (95, "EOPNOTSUPP"),
            (110, "ETIMEDOUT"),
            (111, "ECONNREFUSED"),
            (115, "EINPROGRESS"),
            (133, "EHWPOISON"),
        ];
        for (number, name) in known.into_iter().chain(later) {
            assert_eq!(result_name(-number), name);
        }
        assert_eq!(
            (result_name(0), result_name(-41), result_name(-999)),
            ("ok".into(), "errno 41".into(), "errno 999".into())
        );
        assert_eq!(result_name(i32::MIN), "errno 2147483648");
    }
}
