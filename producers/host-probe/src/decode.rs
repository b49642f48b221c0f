//! A record of the ring buffers, decoded and handed on as [`Event`]s.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use glasshouse_bpf::abi::{self, Abi};
use glasshouse_schema::event::{ExecFlags, FileChange, Operation, SocketOperation, Usage};
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{Address, Class, Event, Fact, PathFlags, PathRef, ProcessKey};

use crate::{dns, environment, paths};

/// Tasks whose tables are kept at most: one that lost the record of its end stays until the seal.
const MAX_TASKS: usize = 1 << 16;

/// Decodes the records of one execution: keeps buffers, and what each of its tasks has in its table of files.
#[derive(Debug, Default)]
pub struct Decoder {
    first: Vec<u8>,
    second: Vec<u8>,
    tables: HashMap<u32, Table, RandomState>,
    /// For the next task: their buffers are used again.
    spare: Vec<Table>,
}

/// The user space half of `struct task` in `bpf/probe/common.h`: what the kernel's tallies are about.
#[derive(Debug, Default)]
struct Table(Box<[Entry; abi::SEEN]>);

#[derive(Debug, Default)]
struct Entry {
    what: What,
    path: Vec<u8>,
    flags: PathFlags,
}

#[derive(Debug, Clone, Copy, Default)]
enum What {
    /// Nothing was told of it, or that was lost.
    #[default]
    Nothing,
    /// It was there before the task: only bytes are counted.
    File,
    Opened {
        flags: u32,
        created: bool,
    },
    Mapped {
        writable: u64,
    },
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
            abi::KIND_FORK | abi::KIND_EXEC | abi::KIND_EXIT | abi::KIND_CREDENTIALS => Class::Process,
            abi::KIND_OPEN
            | abi::KIND_DELETE
            | abi::KIND_RENAME
            | abi::KIND_CHANGE
            | abi::KIND_FILE
            | abi::KIND_TALLIES => Class::File,
            abi::KIND_SOCKET | abi::KIND_TRAFFIC | abi::KIND_DNS => Class::Network,
            _ => Class::Other,
        }
    }

    /// How many facts the kernel counted for it.
    pub fn facts(&self) -> u64 {
        match self.header.kind {
            abi::KIND_FILE => 0,
            abi::KIND_TALLIES => self.tallies().map(|tally| facts_of(&tally)).sum(),
            abi::KIND_TRAFFIC => abi::Traffic::read(self.body)
                .map_or(0, |traffic| u64::from(traffic.sends) + u64::from(traffic.receives)),
            _ => 1,
        }
    }

    /// Who did it.
    pub fn process(&self) -> ProcessKey {
        ProcessKey { tgid: self.header.tgid, start_boot_ns: self.header.start_boot_ns }
    }

    fn tallies(&self) -> impl Iterator<Item = abi::Tally> {
        let (tallies, _) = self.payload.as_chunks::<{ size_of::<abi::Tally>() }>();
        tallies.iter().filter_map(|bytes| abi::Tally::read(bytes)).take(abi::SEEN)
    }

    fn event<'e>(&self, fact: Fact<'e>) -> Event<'e> {
        Event { boot_ns: self.header.boot_ns, process: self.process(), fact }
    }
}

fn facts_of(tally: &abi::Tally) -> u64 {
    u64::from(tally.again) + u64::from(tally.reads) + u64::from(tally.writes)
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
    /// Decodes a record, masks it, and hands its events to `emit`, each with the number of identical facts it stands
    /// for. Gives how many of [`Record::facts`] could not be told; `None` for a record that makes no sense.
    pub fn decode(
        &mut self,
        record: &Record<'_>,
        redactor: &mut Redactor,
        mut emit: impl FnMut(&Event<'_>, u64),
    ) -> Option<u64> {
        let mut payload = record.payload;
        match record.header.kind {
            abi::KIND_FORK => {
                let fork = abi::Fork::read(record.body)?;
                let child = ProcessKey { tgid: fork.child_tgid, start_boot_ns: fork.child_start_boot_ns };
                emit(&record.event(Fact::Fork { child }), 1);
            }
            abi::KIND_EXEC => {
                let exec = abi::Exec::read(record.body)?;
                let exe_flags = paths::take(&exec.exe, &mut payload, &mut self.first)?;
                let cwd_flags = paths::take(&exec.cwd, &mut payload, &mut self.second)?;
                let (argv, rest) = payload.split_at_checked(exec.argv_bytes as usize)?;
                let argv: Vec<&[u8]> = strings(argv).collect();
                let masked = redactor.argv(&argv);
                let argv: Vec<&[u8]> = masked.iter().map(|argument| argument.as_ref()).collect();
                let env = environment::watched(strings(rest.get(..exec.env_bytes as usize)?));
                let flags = exec_flags(&exec);
                let (exe, exe_flags) = path!(redactor, &self.first, exe_flags);
                let (cwd, cwd_flags) = path!(redactor, &self.second, cwd_flags);
                let fact = Fact::Exec {
                    ppid: exec.parent_tgid,
                    exe: PathRef { bytes: &exe, flags: exe_flags },
                    cwd: PathRef { bytes: &cwd, flags: cwd_flags },
                    argv: &argv,
                    argv_truncated: exec.argv_total_bytes > u64::from(exec.argv_bytes),
                    uid: exec.uid,
                    gid: exec.gid,
                    env: &env,
                    env_truncated: exec.env_total_bytes > u64::from(exec.env_bytes),
                    flags,
                };
                emit(&record.event(fact), 1);
            }
            abi::KIND_EXIT => {
                let exit = abi::Exit::read(record.body)?;
                let signal = (exit.wait_status & 0x7f) as u8;
                let fact = Fact::Exit {
                    code: if signal == 0 { (exit.wait_status >> 8 & 0xff) as u8 } else { 0 },
                    signal,
                    core_dumped: exit.wait_status & 0x80 != 0,
                    usage: Usage {
                        user_ns: exit.user_ns,
                        system_ns: exit.system_ns,
                        max_rss_kib: exit.max_rss_pages.saturating_mul(page_kib()),
                        minor_faults: exit.minor_faults,
                        major_faults: exit.major_faults,
                    },
                };
                emit(&record.event(fact), 1);
            }
            abi::KIND_CREDENTIALS => {
                let of = abi::Credentials::read(record.body)?;
                let fact = Fact::Credentials {
                    uid: of.uid,
                    euid: of.euid,
                    gid: of.gid,
                    egid: of.egid,
                    capabilities: of.capabilities,
                    gained: of.gained != 0,
                };
                emit(&record.event(fact), 1);
            }
            abi::KIND_OPEN => {
                let open = abi::Open::read(record.body)?;
                let flags = paths::take(&open.path, &mut payload, &mut self.first)?;
                let (bytes, flags) = path!(redactor, &self.first, flags);
                let path = PathRef { bytes: &bytes, flags };
                let what = What::Opened {
                    flags: open.open_flags as u32,
                    created: open.flags & abi::OPEN_CREATED != 0,
                };
                let fact = opened(path, what, errno(open.result))?;
                emit(&record.event(fact), 1);
                keep(&mut self.tables, &mut self.spare, open.entry, what, path);
            }
            abi::KIND_FILE => {
                let file = abi::File::read(record.body)?;
                let flags = paths::take(&file.path, &mut payload, &mut self.first)?;
                let (bytes, flags) = path!(redactor, &self.first, flags);
                let path = PathRef { bytes: &bytes, flags };
                keep(&mut self.tables, &mut self.spare, file.entry, What::File, path);
            }
            abi::KIND_CHANGE => {
                let change = abi::Change::read(record.body)?;
                let flags = paths::take(&change.path, &mut payload, &mut self.first)?;
                let kind = FileChange::try_from(u8::try_from(change.change).ok()?).ok()?;
                let is_text = matches!(kind, FileChange::Symlink | FileChange::Mount);
                let other_flags = match is_text {
                    true => {
                        let text = payload.get(..usize::from(change.other.user_bytes))?;
                        self.second.clear();
                        self.second.extend_from_slice(text);
                        paths::flags(change.other.flags)
                    }
                    false => paths::take(&change.other, &mut payload, &mut self.second)?,
                };
                let (bytes, flags) = path!(redactor, &self.first, flags);
                let path = PathRef { bytes: &bytes, flags };
                let (other, other_flags) = path!(redactor, &self.second, other_flags);
                let has_other = matches!(
                    kind,
                    FileChange::Link
                        | FileChange::Symlink
                        | FileChange::Mount
                        | FileChange::MoveMount
                        | FileChange::PivotRoot
                );
                let fact = Fact::Change {
                    change: kind,
                    path,
                    other: has_other.then_some(PathRef { bytes: &other, flags: other_flags }),
                    value: change.value,
                    result: errno(change.result),
                };
                emit(&record.event(fact), 1);
                let what = What::Mapped { writable: change.value };
                keep(&mut self.tables, &mut self.spare, change.entry, what, path);
            }
            abi::KIND_TALLIES => return self.tallies(record, emit),
            abi::KIND_DELETE => {
                let delete = abi::Delete::read(record.body)?;
                let flags = paths::take(&delete.path, &mut payload, &mut self.first)?;
                let (bytes, flags) = path!(redactor, &self.first, flags);
                let fact = Fact::Delete {
                    path: PathRef { bytes: &bytes, flags },
                    directory: delete.directory != 0,
                    result: errno(delete.result),
                };
                emit(&record.event(fact), 1);
            }
            abi::KIND_RENAME => {
                let rename = abi::Rename::read(record.body)?;
                let from_flags = paths::take(&rename.from, &mut payload, &mut self.first)?;
                let to_flags = paths::take(&rename.to, &mut payload, &mut self.second)?;
                let (from, from_flags) = path!(redactor, &self.first, from_flags);
                let (to, to_flags) = path!(redactor, &self.second, to_flags);
                let fact = Fact::Rename {
                    from: PathRef { bytes: &from, flags: from_flags },
                    to: PathRef { bytes: &to, flags: to_flags },
                    exchange: rename.rename_flags & RENAME_EXCHANGE != 0,
                    result: errno(rename.result),
                };
                emit(&record.event(fact), 1);
            }
            abi::KIND_SOCKET => {
                let socket = abi::Socket::read(record.body)?;
                let operation = SocketOperation::try_from(u8::try_from(socket.operation).ok()?).ok()?;
                let result = errno(socket.result);
                let (address, protocol) = match socket.address.family {
                    AF_UNIX => (self.unix_path(&socket.path, payload)?, 0),
                    _ => (internet(&socket.address)?, socket.address.protocol as u8),
                };
                let path;
                let address = match address {
                    Address::Unix(name) => {
                        path = redactor.path(name);
                        Address::Unix(&path)
                    }
                    address => address,
                };
                emit(&record.event(Fact::Socket { operation, address, protocol, result }), 1);
            }
            abi::KIND_TRAFFIC => {
                let traffic = abi::Traffic::read(record.body)?;
                let fact = Fact::Traffic {
                    address: internet(&traffic.address)?,
                    protocol: traffic.address.protocol as u8,
                    sends: traffic.sends.into(),
                    receives: traffic.receives.into(),
                    sent_bytes: traffic.sent_bytes,
                    received_bytes: traffic.received_bytes,
                };
                emit(&record.event(fact), 1);
            }
            abi::KIND_DNS => {
                let of = abi::Dns::read(record.body)?;
                let server = internet(&of.server)?;
                let message = payload.get(..of.message_bytes as usize)?;
                // What is no DNS message went to its port all the same: it asks for nothing that could be told.
                let message = dns::parse(message).unwrap_or_default();
                let fact = Fact::Dns {
                    server,
                    name: &message.name,
                    query_type: message.query_type,
                    answers: &message.answers,
                    response_code: (of.is_answer != 0).then_some(message.response_code),
                };
                emit(&record.event(fact), 1);
            }
            abi::KIND_OPERATION => {
                let of = abi::Operation::read(record.body)?;
                let (operation, value) = operation(&of)?;
                let fact =
                    Fact::Operation { operation, value, target_tgid: of.target, result: errno(of.result) };
                emit(&record.event(fact), 1);
            }
            _ => return None,
        }
        Some(0)
    }

    /// The path of a unix socket, or its abstract name with the leading NUL.
    fn unix_path<'d>(&'d mut self, path: &abi::Path, mut payload: &'d [u8]) -> Option<Address<'d>> {
        if payload.first() == Some(&0) && path.walked_bytes == 0 {
            return Some(Address::Unix(payload.get(..usize::from(path.user_bytes))?));
        }
        self.first.clear();
        if path.user_bytes > 0 {
            paths::take(path, &mut payload, &mut self.first)?;
        }
        Some(Address::Unix(&self.first))
    }

    /// What the kernel counted about files that it had told of before.
    fn tallies(&mut self, record: &Record<'_>, mut emit: impl FnMut(&Event<'_>, u64)) -> Option<u64> {
        let of = abi::Tallies::read(record.body)?;
        if record.tallies().count() != of.tallies as usize {
            return None;
        }
        let table = self.tables.get(&of.task);
        let mut lost = 0;
        for tally in record.tallies() {
            // Counted from 1. One that names no entry costs its own facts: those before it were told already.
            let index = (tally.index as usize).checked_sub(1);
            let entry = index.and_then(|index| table?.0.get(index));
            let Some(entry) = entry.filter(|entry| !matches!(entry.what, What::Nothing)) else {
                lost += facts_of(&tally);
                continue;
            };
            let path = PathRef { bytes: &entry.path, flags: entry.flags };
            if tally.again > 0 {
                match opened(path, entry.what, 0) {
                    Some(fact) => emit(&record.event(fact), tally.again.into()),
                    None => lost += u64::from(tally.again),
                }
            }
            if tally.reads > 0 || tally.writes > 0 {
                let fact = Fact::Io {
                    path,
                    reads: tally.reads.into(),
                    writes: tally.writes.into(),
                    read_bytes: tally.read_bytes,
                    written_bytes: tally.written_bytes,
                };
                emit(&record.event(fact), 1);
            }
        }
        if of.is_last != 0
            && let Some(table) = self.tables.remove(&of.task)
            && self.spare.len() < 64
        {
            self.spare.push(table);
        }
        Some(lost)
    }
}

/// Fills the entry that tallies will name.
fn keep(
    tables: &mut HashMap<u32, Table, RandomState>,
    spare: &mut Vec<Table>,
    at: abi::Entry,
    what: What,
    path: PathRef<'_>,
) {
    let Some(index) = (at.index as usize).checked_sub(1) else { return };
    if tables.len() >= MAX_TASKS && !tables.contains_key(&at.task) {
        return;
    }
    let table = tables.entry(at.task).or_insert_with(|| {
        let mut table = spare.pop().unwrap_or_default();
        table.0.iter_mut().for_each(|entry| entry.what = What::Nothing);
        table
    });
    if let Some(entry) = table.0.get_mut(index) {
        entry.what = what;
        entry.path.clear();
        entry.path.extend_from_slice(path.bytes);
        entry.flags = path.flags;
    }
}

fn opened(path: PathRef<'_>, what: What, result: i32) -> Option<Fact<'_>> {
    match what {
        What::Opened { flags, created } => Some(Fact::Open { path, flags, result, created }),
        What::Mapped { writable } => Some(Fact::Change {
            change: FileChange::MapExecutable,
            path,
            other: None,
            value: writable,
            result,
        }),
        What::File | What::Nothing => None,
    }
}

fn exec_flags(exec: &abi::Exec) -> ExecFlags {
    let pseudo = exec.exe.flags & abi::PATH_PSEUDO != 0;
    let bits = [
        (pseudo, ExecFlags::ANONYMOUS),
        (exec.exe.flags & abi::PATH_UNLINKED != 0 && !pseudo, ExecFlags::DELETED),
        (exec.flags & abi::EXEC_PRIVILEGED != 0, ExecFlags::PRIVILEGED),
        (exec.flags & abi::EXEC_PID_NAMESPACE != 0, ExecFlags::PID),
        (exec.flags & abi::EXEC_MOUNT_NAMESPACE != 0, ExecFlags::MOUNT),
        (exec.flags & abi::EXEC_NET_NAMESPACE != 0, ExecFlags::NET),
        (exec.flags & abi::EXEC_USER_NAMESPACE != 0, ExecFlags::USER),
        (exec.flags & abi::EXEC_IPC_NAMESPACE != 0, ExecFlags::IPC),
        (exec.flags & abi::EXEC_UTS_NAMESPACE != 0, ExecFlags::UTS),
        (exec.flags & abi::EXEC_CGROUP_NAMESPACE != 0, ExecFlags::CGROUP),
    ];
    bits.into_iter()
        .filter(|(is_set, _)| *is_set)
        .fold(ExecFlags::default(), |flags, (_, flag)| flags.with(flag))
}

/// Operation and value, as a frame has them.
fn operation(of: &abi::Operation) -> Option<(Operation, u64)> {
    let operation = match of.operation {
        abi::OPERATION_PTRACE => Operation::Ptrace,
        abi::OPERATION_BPF => Operation::Bpf,
        abi::OPERATION_LOAD_MODULE => Operation::LoadModule,
        abi::OPERATION_UNLOAD_MODULE => Operation::UnloadModule,
        abi::OPERATION_SET_NAMESPACE => Operation::SetNamespace,
        abi::OPERATION_UNSHARE => Operation::Unshare,
        abi::OPERATION_IO_URING => Operation::IoUring,
        abi::OPERATION_SIGNAL => Operation::Signal,
        abi::OPERATION_MEMFD => Operation::MemoryFd,
        abi::OPERATION_KEYRING => Operation::Keyring,
        abi::OPERATION_PROCESS_READ => return Some((Operation::ProcessMemory, 0)),
        abi::OPERATION_PROCESS_WRITE => return Some((Operation::ProcessMemory, 1)),
        abi::OPERATION_PIDFD_GETFD => Operation::StealDescriptor,
        abi::OPERATION_PERF_EVENT => Operation::PerfEvent,
        abi::OPERATION_USERFAULT => Operation::UserFault,
        abi::OPERATION_KEXEC => Operation::Kexec,
        abi::OPERATION_REBOOT => Operation::Reboot,
        abi::OPERATION_CHROOT => Operation::Chroot,
        abi::OPERATION_OPEN_BY_HANDLE => Operation::OpenByHandle,
        _ => return None,
    };
    Some((operation, of.value))
}

fn internet<'a>(of: &abi::Address) -> Option<Address<'a>> {
    match of.family {
        AF_INET => {
            let [a, b, c, d, ..] = of.address;
            Some(Address::V4([a, b, c, d], of.port))
        }
        AF_INET6 => Some(Address::V6(of.address, of.port)),
        _ => None,
    }
}

/// Strings that each end with a NUL, the last perhaps without.
fn strings(area: &[u8]) -> impl Iterator<Item = &[u8]> {
    let area = area.strip_suffix(b"\0").unwrap_or(area);
    let is_empty = area.is_empty();
    area.split(|byte| *byte == 0).filter(move |_| !is_empty)
}

// Numbers of Linux, not of the system this is built on.
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const RENAME_EXCHANGE: u32 = 2;

#[cfg(target_os = "linux")]
fn page_kib() -> u64 {
    use std::sync::OnceLock;
    static KIB: OnceLock<u64> = OnceLock::new();
    *KIB.get_or_init(|| {
        let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096) / 1024
    })
}

#[cfg(not(target_os = "linux"))]
fn page_kib() -> u64 {
    4
}

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

    /// Every event with its count, and how many facts could not be told.
    fn decoded(decoder: &mut Decoder, bytes: &[u8]) -> Option<(Vec<(String, u64)>, u64)> {
        let record = Record::parse(bytes)?;
        let mut events = Vec::new();
        let untold = decoder.decode(&record, &mut redactor(), |event, count| {
            events.push((format!("{:?}", event.fact), count));
        })?;
        Some((events, untold))
    }

    fn debug(bytes: &[u8]) -> Option<String> {
        let (events, _) = decoded(&mut Decoder::default(), bytes)?;
        Some(format!("{events:?}"))
    }

    #[test]
    fn exit_status_is_split() {
        let status = |wait_status: u32| {
            let exit = abi::Exit {
                wait_status,
                reserved: 0,
                user_ns: 0,
                system_ns: 0,
                max_rss_pages: 0,
                minor_faults: 0,
                major_faults: 0,
            };
            debug(&record(abi::KIND_EXIT, exit.as_bytes(), b"")).unwrap()
        };
        assert!(status(0x0300).contains("Exit { code: 3, signal: 0, core_dumped: false, "));
        assert!(status(0x008b).contains("Exit { code: 0, signal: 11, core_dumped: true, "));
    }

    fn open(walked: &[u8], entry: abi::Entry) -> Vec<u8> {
        let path = abi::Path { walked_bytes: walked.len() as u16, user_bytes: 0, flags: 0, reserved: 0 };
        let open = abi::Open { result: 5, open_flags: 0, path, entry, flags: 0, syscall: 257 };
        record(abi::KIND_OPEN, open.as_bytes(), walked)
    }

    #[test]
    fn masked_prefixes_are_masked_and_marked() {
        let bytes = open(b"key\0secret\0", abi::Entry { task: 0, index: 0 });
        let parsed = Record::parse(&bytes).unwrap();
        let checked = Decoder::default().decode(&parsed, &mut redactor(), |event, _| match event.fact {
            Fact::Open { path, result, .. } => {
                assert!(path.bytes.starts_with(b"/secret/<masked:"));
                assert!(path.flags.contains(PathFlags::MASKED));
                assert_eq!(result, 0);
            }
            _ => panic!("{event:?}"),
        });
        assert_eq!(checked, Some(0));
    }

    fn tallies(task: u32, is_last: u32, tallies: &[abi::Tally]) -> Vec<u8> {
        let of = abi::Tallies { task, tallies: tallies.len() as u32, is_last, reserved: 0 };
        let payload: Vec<u8> = tallies.iter().flat_map(|tally| tally.as_bytes().to_vec()).collect();
        record(abi::KIND_TALLIES, of.as_bytes(), &payload)
    }

    fn tally(index: u32, again: u32, reads: u32) -> abi::Tally {
        let read_bytes = u64::from(reads) * 10;
        abi::Tally { read_bytes, written_bytes: 0, again, reads, writes: 0, index }
    }

    #[test]
    fn tallies_are_about_what_the_task_told_of_before() {
        let mut decoder = Decoder::default();
        decoded(&mut decoder, &open(b"a\0", abi::Entry { task: 1, index: 3 })).unwrap();
        let bytes = tallies(1, 0, &[tally(3, 7, 2)]);
        assert_eq!(Record::parse(&bytes).unwrap().facts(), 9);
        let (events, untold) = decoded(&mut decoder, &bytes).unwrap();
        assert_eq!(untold, 0);
        assert!(events[0].0.starts_with("Open") && events[0].1 == 7, "{events:?}");
        assert!(events[1].0.contains("reads: 2") && events[1].0.contains("read_bytes: 20"), "{events:?}");
        // Another task has told of nothing; neither has this one once it has ended.
        assert_eq!(decoded(&mut decoder, &tallies(2, 0, &[tally(3, 7, 2)])), Some((vec![], 9)));
        assert_eq!(decoded(&mut decoder, &tallies(1, 1, &[])), Some((vec![], 0)));
        assert_eq!(decoded(&mut decoder, &tallies(1, 0, &[tally(3, 0, 1)])), Some((vec![], 1)));
        // A table that is used again is empty.
        decoded(&mut decoder, &open(b"b\0", abi::Entry { task: 9, index: 1 })).unwrap();
        assert_eq!(decoded(&mut decoder, &tallies(9, 0, &[tally(3, 1, 0)])), Some((vec![], 1)));
        // An index beyond the table, or fewer tallies than it says.
        assert_eq!(decoded(&mut decoder, &tallies(9, 0, &[tally(99, 1, 0)])), Some((vec![], 1)));
        assert_eq!(decoded(&mut decoder, &tallies(9, 0, &[tally(0, 1, 0)])), Some((vec![], 1)));
        // What was told before it stays told, and nothing is both told and lost.
        let (events, untold) =
            decoded(&mut decoder, &tallies(9, 0, &[tally(1, 4, 0), tally(0, 2, 3)])).unwrap();
        assert_eq!((events.len(), events[0].1, untold), (1, 4, 5));
    }

    proptest! {
        #[test]
        fn hostile_records_are_refused_or_decoded(
            kind in 0u16..17,
            body: [u8; 56],
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = debug(&record(kind, &body, &payload));
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            prop_assert!(debug(&bytes).is_none());
        }
    }
}
