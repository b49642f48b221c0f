//! A record of the ring buffers, decoded and handed on as an [`Event`].

use glasshouse_bpf::abi::{self, Abi};
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{Address, Class, Event, Fact, PathFlags, PathRef, ProcessKey};

/// Buffers that are reused from record to record.
#[derive(Debug, Default)]
pub struct Decoder {
    first: Vec<u8>,
    second: Vec<u8>,
}

/// The fixed part of a record, checked.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Whose and when.
    pub header: abi::Header,
    body: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// Checks version and size; `None` for what is no record of this ABI.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = abi::Header::read(bytes)?;
        let size_is_right =
            header.record_bytes as usize == bytes.len() && bytes.len() <= abi::MAX_RECORD_BYTES;
        if u32::from(header.version) != abi::ABI_VERSION || !size_is_right {
            return None;
        }
        let (fixed, payload) = bytes.split_at_checked(abi::PAYLOAD_OFFSET)?;
        Some(Self { header, body: fixed.get(size_of::<abi::Header>()..)?, payload })
    }

    /// The class that the kernel counted it in.
    pub fn class(&self) -> Class {
        match self.header.kind {
            abi::KIND_FORK | abi::KIND_EXEC | abi::KIND_EXIT => Class::Process,
            abi::KIND_OPEN | abi::KIND_DELETE | abi::KIND_RENAME => Class::File,
            abi::KIND_CONNECT => Class::Network,
            _ => Class::Other,
        }
    }

    /// Who did it.
    pub fn process(&self) -> ProcessKey {
        ProcessKey { tgid: self.header.tgid, start_boot_ns: self.header.start_boot_ns }
    }

    /// The process that a fork made.
    pub fn forked(&self) -> Option<ProcessKey> {
        let fork = (self.header.kind == abi::KIND_FORK).then(|| abi::Fork::read(self.body))??;
        Some(ProcessKey { tgid: fork.child_tgid, start_boot_ns: fork.child_start_boot_ns })
    }
}

/// A path through the redactor.
macro_rules! path {
    ($redactor:expr, $bytes:expr, $flags:expr) => {{
        let masked = $redactor.path($bytes);
        let flags = match &masked {
            std::borrow::Cow::Owned(_) => $flags.with(PathFlags::MASKED),
            std::borrow::Cow::Borrowed(_) => $flags,
        };
        (masked, flags)
    }};
}

impl Decoder {
    /// Decodes a record, masks it, and hands the event to `emit`. `None` for a record that makes no sense.
    pub fn decode<T>(
        &mut self,
        record: &Record<'_>,
        redactor: &mut Redactor,
        emit: impl FnOnce(&Event<'_>) -> T,
    ) -> Option<T> {
        let event = |fact| Event { boot_ns: record.header.boot_ns, process: record.process(), fact };
        let mut payload = record.payload;
        match record.header.kind {
            abi::KIND_FORK => Some(emit(&event(Fact::Fork { child: record.forked()? }))),
            abi::KIND_EXIT => {
                let status = abi::Exit::read(record.body)?.wait_status;
                let signal = (status & 0x7f) as u8;
                let code = if signal == 0 { (status >> 8 & 0xff) as u8 } else { 0 };
                Some(emit(&event(Fact::Exit { code, signal, core_dumped: status & 0x80 != 0 })))
            }
            abi::KIND_EXEC => {
                let exec = abi::Exec::read(record.body)?;
                let exe_flags = crate::paths::take(&exec.exe, &mut payload, &mut self.first)?;
                let cwd_flags = crate::paths::take(&exec.cwd, &mut payload, &mut self.second)?;
                let argv = payload.get(..exec.argv_bytes as usize)?;
                let truncated = exec.argv_total_bytes > u64::from(exec.argv_bytes);
                let argv = argv.strip_suffix(b"\0").unwrap_or(argv);
                let argv: Vec<&[u8]> = match exec.argv_bytes {
                    0 => Vec::new(),
                    _ => argv.split(|byte| *byte == 0).collect(),
                };
                let masked = redactor.argv(&argv);
                let argv: Vec<&[u8]> = masked.iter().map(|argument| argument.as_ref()).collect();
                let (exe, exe_flags) = path!(redactor, &self.first, exe_flags);
                let (cwd, cwd_flags) = path!(redactor, &self.second, cwd_flags);
                Some(emit(&event(Fact::Exec {
                    ppid: exec.parent_tgid,
                    exe: PathRef { bytes: &exe, flags: exe_flags },
                    cwd: PathRef { bytes: &cwd, flags: cwd_flags },
                    argv: &argv,
                    argv_truncated: truncated,
                    uid: exec.uid,
                    gid: exec.gid,
                })))
            }
            abi::KIND_OPEN => {
                let open = abi::Open::read(record.body)?;
                let flags = crate::paths::take(&open.path, &mut payload, &mut self.first)?;
                let (bytes, flags) = path!(redactor, &self.first, flags);
                Some(emit(&event(Fact::Open {
                    path: PathRef { bytes: &bytes, flags },
                    flags: open.open_flags as u32,
                    result: errno(open.result),
                })))
            }
            abi::KIND_DELETE => {
                let delete = abi::Delete::read(record.body)?;
                let flags = crate::paths::take(&delete.path, &mut payload, &mut self.first)?;
                let (bytes, flags) = path!(redactor, &self.first, flags);
                Some(emit(&event(Fact::Delete {
                    path: PathRef { bytes: &bytes, flags },
                    directory: delete.directory != 0,
                    result: errno(delete.result),
                })))
            }
            abi::KIND_RENAME => {
                let rename = abi::Rename::read(record.body)?;
                let from_flags = crate::paths::take(&rename.from, &mut payload, &mut self.first)?;
                let to_flags = crate::paths::take(&rename.to, &mut payload, &mut self.second)?;
                let (from, from_flags) = path!(redactor, &self.first, from_flags);
                let (to, to_flags) = path!(redactor, &self.second, to_flags);
                Some(emit(&event(Fact::Rename {
                    from: PathRef { bytes: &from, flags: from_flags },
                    to: PathRef { bytes: &to, flags: to_flags },
                    result: errno(rename.result),
                })))
            }
            abi::KIND_CONNECT => {
                let connect = abi::Connect::read(record.body)?;
                let result = errno(connect.result);
                let protocol = connect.protocol as u8;
                match connect.family {
                    AF_INET => {
                        let [a, b, c, d, ..] = connect.address;
                        let address = Address::V4([a, b, c, d], connect.port);
                        Some(emit(&event(Fact::Connect { address, protocol, result })))
                    }
                    AF_INET6 => {
                        let address = Address::V6(connect.address, connect.port);
                        Some(emit(&event(Fact::Connect { address, protocol, result })))
                    }
                    AF_UNIX if payload.first() == Some(&0) && connect.path.walked_bytes == 0 => {
                        let name = payload.get(..usize::from(connect.path.user_bytes))?;
                        Some(emit(&event(Fact::Connect {
                            address: Address::Unix(name),
                            protocol: 0,
                            result,
                        })))
                    }
                    AF_UNIX => {
                        if connect.path.user_bytes == 0 {
                            self.first.clear();
                        } else {
                            crate::paths::take(&connect.path, &mut payload, &mut self.first)?;
                        }
                        let path = redactor.path(&self.first);
                        let address = Address::Unix(&path);
                        Some(emit(&event(Fact::Connect { address, protocol: 0, result })))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

// Numbers of Linux, not of the system this is built on.
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// 0 for success (a descriptor included), or the negated errno.
fn errno(result: i64) -> i32 {
    i32::try_from(result.min(0)).unwrap_or(i32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use glasshouse_schema::ExecutionId;
    use glasshouse_schema::lifecycle::RedactionRules;
    use proptest::prelude::*;

    fn redactor() -> Redactor {
        let rules = RedactionRules { path_prefixes: vec!["/secret".into()], tokens: true };
        Redactor::new([1; 32], ExecutionId::from_parts(1, [1; 10]), rules)
    }

    fn record(kind: u16, body: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = abi::Header {
            record_bytes: (abi::PAYLOAD_OFFSET + payload.len()) as u32,
            kind,
            version: abi::ABI_VERSION as u16,
            slot: 3,
            generation: 4,
            boot_ns: 5,
            start_boot_ns: 6,
            tgid: 7,
            tid: 8,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(abi::PAYLOAD_OFFSET, 0);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn debug(bytes: &[u8]) -> Option<String> {
        let record = Record::parse(bytes)?;
        Decoder::default().decode(&record, &mut redactor(), |event| format!("{event:?}"))
    }

    #[test]
    fn exit_status_is_split() {
        let status = |wait_status: u32| {
            debug(&record(abi::KIND_EXIT, abi::Exit { wait_status, reserved: 0 }.as_bytes(), b"")).unwrap()
        };
        assert!(status(0x0300).contains("Exit { code: 3, signal: 0, core_dumped: false }"));
        assert!(status(0x008b).contains("Exit { code: 0, signal: 11, core_dumped: true }"));
    }

    #[test]
    fn masked_prefixes_are_masked_and_marked() {
        let payload = b"key\0secret\0";
        let path = abi::Path { walked_bytes: payload.len() as u16, user_bytes: 0, flags: 0, reserved: 0 };
        let open = abi::Open { result: 5, open_flags: 0, path, flags: 0, syscall: 257 };
        let bytes = record(abi::KIND_OPEN, open.as_bytes(), payload);
        let parsed = Record::parse(&bytes).unwrap();
        let checked = Decoder::default().decode(&parsed, &mut redactor(), |event| match event.fact {
            Fact::Open { path, result, .. } => {
                assert!(path.bytes.starts_with(b"/secret/<masked:"));
                assert!(path.flags.contains(PathFlags::MASKED));
                assert_eq!(result, 0);
            }
            _ => panic!("{event:?}"),
        });
        assert!(checked.is_some());
    }

    proptest! {
        #[test]
        fn hostile_records_are_refused_or_decoded(kind in 0u16..9, body: [u8; 56], payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = debug(&record(kind, &body, &payload));
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            prop_assert!(debug(&bytes).is_none());
        }
    }
}
