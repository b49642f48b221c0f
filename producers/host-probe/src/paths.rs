//! Paths as records carry them, made absolute.
//!
//! A record holds the names that the kernel walked, the last first, and then the caller's own string if the file could
//! not be walked itself (it was not opened, or is gone). Walked names are the truth. In a caller's string `.`, `..` and
//! doubled slashes are resolved here, by their letters only: a symlink before a `..` is not followed, so such a path is
//! marked [`PathFlags::UNRESOLVED`].

use glasshouse_bpf::abi;
use glasshouse_schema::PathFlags;

/// Takes the bytes of one path off the front of `payload` and writes the absolute path to `out`.
///
/// `None` when the payload is shorter than the path says it is.
pub fn take(path: &abi::Path, payload: &mut &[u8], out: &mut Vec<u8>) -> Option<PathFlags> {
    let (walked, rest) = payload.split_at_checked(usize::from(path.walked_bytes))?;
    let (user, rest) = rest.split_at_checked(usize::from(path.user_bytes))?;
    *payload = rest;
    out.clear();
    if path.flags & abi::PATH_PSEUDO != 0 {
        push_walked(walked, out);
        // `memfd:name` has no directory, and so no leading slash.
        if out.first() == Some(&b'/') {
            out.remove(0);
        }
    } else if !walked.is_empty() {
        push_walked(walked, out);
    } else if path.flags & abi::PATH_USER == 0 || !user.starts_with(b"/") && path.flags & LOST_BASE == 0 {
        out.push(b'/');
    }
    if path.flags & abi::PATH_USER != 0 {
        push_user(user, path.flags & abi::PATH_OTHER_ROOT != 0, out);
    }
    Some(flags(path.flags))
}

/// Where a relative string starts from is not known, or there is no string.
const LOST_BASE: u16 = abi::PATH_NO_BASE | abi::PATH_UNREADABLE;

/// The kernel did not resolve all of it, or not at one moment.
const UNRESOLVED: u16 = abi::PATH_USER | abi::PATH_UNREACHABLE | abi::PATH_OTHER_ROOT | abi::PATH_UNSTABLE;

/// What of the kernel's flags a frame says.
pub(crate) fn flags(kernel: u16) -> PathFlags {
    let bits = [
        (abi::PATH_TRUNCATED | LOST_BASE, PathFlags::TRUNCATED),
        (UNRESOLVED, PathFlags::UNRESOLVED),
        (abi::PATH_UNLINKED | abi::PATH_PSEUDO, PathFlags::UNLINKED),
    ];
    bits.into_iter()
        .filter(|(mask, _)| kernel & mask != 0)
        .fold(PathFlags::default(), |flags, (_, flag)| flags.with(flag))
}

/// `c\0b\0a\0` becomes `/a/b/c`.
fn push_walked(walked: &[u8], out: &mut Vec<u8>) {
    let names = walked.strip_suffix(b"\0").unwrap_or(walked);
    for name in names.rsplit(|byte| *byte == 0) {
        out.push(b'/');
        out.extend_from_slice(name);
    }
}

/// Appends a caller's string to the directory in `out`, or replaces it when the string is absolute. With `other_root`
/// that directory is the caller's own root, where an absolute string starts from and which no dots lead out of.
fn push_user(user: &[u8], other_root: bool, out: &mut Vec<u8>) {
    let absolute = user.starts_with(b"/") || out.starts_with(b"/");
    if user.starts_with(b"/") && !other_root {
        out.clear();
    }
    if out.as_slice() == b"/" {
        out.clear();
    }
    let floor = if user.starts_with(b"/") { out.len() } else { 0 };
    for name in user.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            // Above an unknown directory nothing can be resolved: the dots stay.
            b".." if absolute => {
                out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0).max(floor));
            }
            name => {
                if absolute || !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(name);
            }
        }
    }
    if absolute && out.is_empty() {
        out.push(b'/');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn made(walked: &str, user: Option<&str>, flags: u16) -> String {
        let path = abi::Path {
            walked_bytes: walked.len() as u16,
            user_bytes: user.map_or(0, str::len) as u16,
            flags: flags | if user.is_some() { abi::PATH_USER } else { 0 },
            reserved: 0,
        };
        let payload = [walked.as_bytes(), user.unwrap_or("").as_bytes(), b"rest"].concat();
        let mut payload = payload.as_slice();
        let mut out = b"left over".to_vec();
        take(&path, &mut payload, &mut out).unwrap();
        assert_eq!(payload, b"rest");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn walked_names_are_reversed() {
        assert_eq!(made("passwd\0etc\0", None, 0), "/etc/passwd");
        assert_eq!(made("", None, 0), "/");
        assert_eq!(made("memfd:x\0", None, abi::PATH_PSEUDO), "memfd:x");
        assert_eq!(made("\0", None, abi::PATH_PSEUDO), "");
    }

    #[test]
    fn strings_are_resolved_by_their_letters() {
        assert_eq!(made("b\0a\0", Some("c"), 0), "/a/b/c");
        assert_eq!(made("b\0a\0", Some("./../c//d/"), 0), "/a/c/d");
        assert_eq!(made("b\0a\0", Some("../../../.."), 0), "/");
        assert_eq!(made("", Some("x"), 0), "/x");
        assert_eq!(made("", Some("../x"), 0), "/x");
        assert_eq!(made("", Some("/a/./b/../c"), 0), "/a/c");
        assert_eq!(made("", Some("/"), 0), "/");
        assert_eq!(made("b\0a\0", Some(""), 0), "/a/b");
    }

    #[test]
    fn absolute_strings_start_from_the_callers_own_root() {
        let made = |walked, user| made(walked, Some(user), abi::PATH_OTHER_ROOT);
        assert_eq!(made("jail\0tmp\0", "/etc/passwd"), "/tmp/jail/etc/passwd");
        assert_eq!(made("jail\0tmp\0", "/../../etc/../x"), "/tmp/jail/x");
        assert_eq!(made("jail\0tmp\0", "/"), "/tmp/jail");
        assert_eq!(made("", "/etc"), "/etc");
        assert_eq!(made("jail\0tmp\0", "x"), "/tmp/jail/x");
        assert!(flags(abi::PATH_OTHER_ROOT).contains(PathFlags::UNRESOLVED));
    }

    #[test]
    fn without_its_directory_a_string_stays_relative_and_marked() {
        assert_eq!(made("", Some("x/./y"), abi::PATH_NO_BASE), "x/y");
        assert_eq!(made("", Some("../x"), abi::PATH_NO_BASE), "../x");
        assert_eq!(made("", Some(""), abi::PATH_UNREADABLE), "");
        assert!(flags(abi::PATH_USER | abi::PATH_NO_BASE).contains(PathFlags::TRUNCATED));
        assert!(flags(abi::PATH_USER).contains(PathFlags::UNRESOLVED));
        assert_eq!(flags(0), PathFlags::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(walked: u16, user: u16, flags: u16, payload: Vec<u8>) {
            let path = abi::Path { walked_bytes: walked % 64, user_bytes: user % 64, flags, reserved: 0 };
            let _ = take(&path, &mut payload.as_slice(), &mut Vec::new());
        }

        #[test]
        fn absolute_strings_come_out_normal(user in "/[a./]{0,30}") {
            let path = made("z\0", Some(&user), 0);
            prop_assert!(path.starts_with('/') && !path.contains("//") && !path.contains("/./"));
            prop_assert!(path == "/" || !path.ends_with('/'));
            prop_assert!(!path.split('/').any(|name| name == "." || name == ".."));
        }
    }
}
