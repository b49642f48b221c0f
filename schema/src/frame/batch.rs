//! The events of the frame being built. Adding one allocates nothing of its own: byte strings lie one behind the other
//! in an arena, tables hold indexes, and all buffers are kept from frame to frame.

use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Range;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use serde_bytes::Bytes;

use super::{
    Body, Change, Credentials, Delete, Dns, Entry, Exec, Exit, Fork, Io, MAX_DNS_ANSWERS, MAX_DNS_NAME_BYTES,
    Open, Operation, Paths, Rename, Socket, Traffic,
};
use crate::event::{Address, Event, Fact, PathRef};
use crate::ids::ProcessKey;

/// About how many bytes an event takes before it is packed, its names and process set aside. Packed it takes a third of that;
/// at worst (an exit with every number as wide as it gets) it is 68.
const EVENT_BYTES: usize = 24;

/// The events of the frame being built, `after_ns` holding their whole time.
#[derive(Debug, Default)]
pub(super) struct Batch {
    first_boot_ns: u64,
    bytes: usize,
    processes: Table<ProcessKey>,
    paths: Strings,
    /// Addresses, arguments, names of variables and of DNS.
    names: Strings,
    /// Lists of names.
    lists: Vec<u32>,
    /// DNS answers as one name, while it is put together.
    answers: Vec<u8>,
    forks: Vec<Fork>,
    /// With the lists of arguments and of variables.
    execs: Vec<(Exec<'static>, Range<usize>, Range<usize>)>,
    exits: Vec<Exit>,
    credentials: Vec<Credentials>,
    opens: Table<Open>,
    deletes: Table<Delete>,
    renames: Table<Rename>,
    changes: Table<Change>,
    ios: Table<Io>,
    sockets: Table<Naming<Socket<'static>, 1>>,
    traffic: Table<Naming<Traffic<'static>, 1>>,
    dns: Table<Naming<Dns<'static>, 3>>,
    operations: Table<Operation>,
}

/// How the facts of an event are accounted for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Added {
    pub(super) delivered: u64,
    pub(super) collapsed: u64,
}

/// What may come again within a frame and then is the same entry.
trait Repeats {
    /// All of it but its time and its counts.
    type Key: Hash + Eq;

    fn key(&self) -> Self::Key;

    /// Takes the counts of another one with the same key.
    fn absorb(&mut self, _other: &Self) {}

    fn facts(&self) -> u64 {
        1
    }

    /// Whether another one may be absorbed: its counts then say so.
    fn can_absorb(&self) -> bool {
        true
    }
}

impl Repeats for ProcessKey {
    type Key = Self;

    fn key(&self) -> Self {
        *self
    }
}

/// [`Repeats`] of an entry: its key, the counts of its facts, and what else adds up.
macro_rules! repeats {
    ($($entry:ty: $key:ty = |$of:ident| $value:expr, + $($count:ident)+ $(, $bytes:ident)*;)+) => {$(
        impl Repeats for $entry {
            type Key = $key;

            fn key(&self) -> Self::Key {
                let $of = self;
                $value
            }

            fn absorb(&mut self, other: &Self) {
                $(self.$count = self.$count.saturating_add(other.$count);)+
                $(self.$bytes = self.$bytes.saturating_add(other.$bytes);)*
            }

            fn facts(&self) -> u64 {
                Entry::facts(self)
            }

            fn can_absorb(&self) -> bool {
                $(self.$count > 0)||+
            }
        }
    )+};
}

repeats! {
    Open: (u32, u32, u32, i32, bool) = |of| (of.process, of.path, of.flags, of.result, of.created), + count;
    Delete: (u32, u32, bool, i32) = |of| (of.process, of.path, of.directory, of.result), + count;
    Rename: (u32, u32, u32, bool, i32) = |of| (of.process, of.from, of.to, of.exchange, of.result), + count;
    Change: (u32, u8, u32, Option<u32>, u64, i32) =
        |of| (of.process, of.change.into(), of.path, of.other, of.value, of.result), + count;
    Io: (u32, u32) = |of| (of.process, of.path), + reads writes, read_bytes, written_bytes;
    Socket<'static>: (u32, u8, Option<u16>, u8, i32) =
        |of| (of.process, of.operation.into(), of.port, of.protocol, of.result), + count;
    Traffic<'static>: (u32, Option<u16>, u8) =
        |of| (of.process, of.port, of.protocol), + sends receives, sent_bytes, received_bytes;
    Dns<'static>: (u32, Option<u16>, u16, Option<u8>, bool) =
        |of| (of.process, of.port, of.query_type, of.response_code, of.truncated), + count;
    Operation: (u32, u8, u64, u32, i32) =
        |of| (of.process, of.operation.into(), of.value, of.target_tgid, of.result), + count;
}

/// An entry whose byte strings stand in [`Batch::names`].
#[derive(Debug)]
struct Naming<T, const N: usize> {
    entry: T,
    names: [u32; N],
}

impl<T: Repeats, const N: usize> Repeats for Naming<T, N> {
    type Key = (T::Key, [u32; N]);

    fn key(&self) -> Self::Key {
        (self.entry.key(), self.names)
    }

    fn absorb(&mut self, other: &Self) {
        self.entry.absorb(&other.entry);
    }

    fn facts(&self) -> u64 {
        self.entry.facts()
    }

    fn can_absorb(&self) -> bool {
        self.entry.can_absorb()
    }
}

/// Entries in the order in which they came, each once.
#[derive(Debug)]
struct Table<T> {
    entries: Vec<T>,
    index: HashTable<u32>,
    hasher: RandomState,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), index: HashTable::new(), hasher: RandomState::default() }
    }
}

impl<T: Repeats> Table<T> {
    /// Where the entry stands, and what of its facts is delivered.
    fn add(&mut self, entry: T) -> (u32, Added) {
        let Self { entries, index, hasher } = self;
        let next = entries.len() as u32;
        let facts = entry.facts();
        let delivered = Added { delivered: 1, collapsed: facts.saturating_sub(1) };
        // Two that count nothing would be one in a reader's account.
        if !entry.can_absorb() {
            entries.push(entry);
            return (next, delivered);
        }
        let key = entry.key();
        let slot = index.entry(
            hasher.hash_one(&key),
            |at| entries[*at as usize].key() == key,
            |at| hasher.hash_one(entries[*at as usize].key()),
        );
        match slot {
            Slot::Occupied(at) => {
                let known = &mut entries[*at.get() as usize];
                let before = known.facts();
                known.absorb(&entry);
                (*at.get(), Added { delivered: 0, collapsed: known.facts() - before })
            }
            Slot::Vacant(slot) => {
                slot.insert(next);
                entries.push(entry);
                (next, delivered)
            }
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.index.clear();
    }
}

/// Byte strings with flags, each once.
#[derive(Debug, Default)]
struct Strings {
    strings: Paths,
    index: HashTable<u32>,
    hasher: RandomState,
}

impl Strings {
    /// Where the string stands, and whether it is new.
    fn add(&mut self, string: PathRef<'_>) -> (u32, bool) {
        let Self { strings, index, hasher } = self;
        let hash = |string: PathRef<'_>| {
            let mut hasher = hasher.build_hasher();
            hasher.write(string.bytes);
            hasher.write_u8(string.flags.0);
            hasher.finish()
        };
        let slot =
            index.entry(hash(string), |known| strings.at(*known) == string, |known| hash(strings.at(*known)));
        match slot {
            Slot::Occupied(known) => (*known.get(), false),
            Slot::Vacant(slot) => {
                let next = strings.len() as u32;
                slot.insert(next);
                strings.push(string);
                (next, true)
            }
        }
    }

    fn get(&self, at: u32) -> &[u8] {
        self.strings.at(at).bytes
    }

    fn clear(&mut self) {
        self.strings.clear();
        self.index.clear();
    }
}

impl Batch {
    /// About how many bytes the events take before they are packed.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Time of the event that came first.
    pub(super) fn first_boot_ns(&self) -> u64 {
        self.first_boot_ns
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds an event that stands for `count` facts, where the event does not say itself for how many.
    pub(super) fn push(&mut self, event: &Event<'_>, count: u64) -> Added {
        if self.is_empty() {
            self.first_boot_ns = event.boot_ns;
        }
        let bytes_before = self.bytes;
        let after_ns = event.boot_ns;
        let process = self.process(event.process);
        let mut added = Added { delivered: 1, collapsed: 0 };
        match event.fact {
            Fact::Fork { child } => {
                let child = self.process(child);
                self.forks.push(Fork { after_ns, process, child });
            }
            Fact::Exec { ppid, exe, cwd, argv, argv_truncated, uid, gid, env, env_truncated, flags } => {
                let (exe, cwd) = (self.path(exe), self.path(cwd));
                let (arguments, variables) = (self.list(argv), self.list(env));
                let (argv, env) = (Vec::new(), Vec::new());
                let exec = Exec {
                    after_ns,
                    process,
                    ppid,
                    exe,
                    cwd,
                    argv,
                    argv_truncated,
                    uid,
                    gid,
                    env,
                    env_truncated,
                    flags,
                };
                self.execs.push((exec, arguments, variables));
            }
            Fact::Exit { code, signal, core_dumped, usage } => {
                self.exits.push(Exit { after_ns, process, code, signal, core_dumped, usage });
            }
            Fact::Credentials { uid, euid, gid, egid, capabilities, gained } => {
                let credentials =
                    Credentials { after_ns, process, uid, euid, gid, egid, capabilities, gained };
                self.credentials.push(credentials);
            }
            Fact::Open { path, flags, result, created } => {
                let path = self.path(path);
                let open = Open { after_ns, process, path, flags, result, count, created };
                (_, added) = self.opens.add(open);
            }
            Fact::Delete { path, directory, result } => {
                let path = self.path(path);
                (_, added) = self.deletes.add(Delete { after_ns, process, path, directory, result, count });
            }
            Fact::Rename { from, to, exchange, result } => {
                let (from, to) = (self.path(from), self.path(to));
                (_, added) =
                    self.renames.add(Rename { after_ns, process, from, to, result, exchange, count });
            }
            Fact::Change { change, path, other, value, result } => {
                let (path, other) = (self.path(path), other.map(|other| self.path(other)));
                let change = Change { after_ns, process, change, path, other, value, result, count };
                (_, added) = self.changes.add(change);
            }
            Fact::Io { path, reads, writes, read_bytes, written_bytes } => {
                let path = self.path(path);
                let io = Io { after_ns, process, path, reads, writes, read_bytes, written_bytes };
                (_, added) = self.ios.add(io);
            }
            Fact::Socket { operation, address, protocol, result } => {
                let (name, port) = self.address(&address);
                let socket =
                    Socket { after_ns, process, address: &[], port, protocol, result, operation, count };
                (_, added) = self.sockets.add(Naming { entry: socket, names: [name] });
            }
            Fact::Traffic { address, protocol, sends, receives, sent_bytes, received_bytes } => {
                let (name, port) = self.address(&address);
                let traffic = Traffic {
                    after_ns,
                    process,
                    address: &[],
                    port,
                    protocol,
                    sends,
                    receives,
                    sent_bytes,
                    received_bytes,
                };
                (_, added) = self.traffic.add(Naming { entry: traffic, names: [name] });
            }
            Fact::Dns { server, name, query_type, answers, response_code } => {
                let (server, port) = self.address(&server);
                let truncated = name.len() > MAX_DNS_NAME_BYTES || answers.len() > MAX_DNS_ANSWERS;
                let name = self.name(&name[..name.len().min(MAX_DNS_NAME_BYTES)]);
                let answers = self.answers(answers);
                let dns = Dns {
                    after_ns,
                    process,
                    server: &[],
                    port,
                    name: &[],
                    query_type,
                    answers: Vec::new(),
                    response_code,
                    truncated,
                    count,
                };
                (_, added) = self.dns.add(Naming { entry: dns, names: [server, name, answers] });
            }
            Fact::Operation { operation, value, target_tgid, result } => {
                let operation = Operation { after_ns, process, operation, value, target_tgid, result, count };
                (_, added) = self.operations.add(operation);
            }
        }
        // What is collapsed takes no more room than it did.
        self.bytes = if added.delivered == 0 { bytes_before } else { self.bytes + EVENT_BYTES };
        added
    }

    fn process(&mut self, key: ProcessKey) -> u32 {
        let (at, added) = self.processes.add(key);
        self.bytes += 16 * added.delivered as usize;
        at
    }

    fn path(&mut self, path: PathRef<'_>) -> u32 {
        let (at, is_new) = self.paths.add(path);
        if is_new {
            self.bytes += path.bytes.len() + 6;
        }
        at
    }

    /// Names are written where they are used, so each counts every time.
    fn name(&mut self, name: &[u8]) -> u32 {
        self.bytes += name.len() + 5;
        self.names.add(PathRef::resolved(name)).0
    }

    fn list(&mut self, names: &[&[u8]]) -> Range<usize> {
        let begin = self.lists.len();
        for name in names {
            let name = self.name(name);
            self.lists.push(name);
        }
        begin..self.lists.len()
    }

    fn address(&mut self, address: &Address<'_>) -> (u32, Option<u16>) {
        let (bytes, port) = address.parts();
        (self.name(bytes), port)
    }

    /// Addresses as one name: each its length, then its bytes.
    fn answers(&mut self, answers: &[std::net::IpAddr]) -> u32 {
        let mut name = std::mem::take(&mut self.answers);
        name.clear();
        for answer in answers.iter().take(MAX_DNS_ANSWERS) {
            match answer {
                std::net::IpAddr::V4(address) => {
                    name.push(4);
                    name.extend_from_slice(&address.octets());
                }
                std::net::IpAddr::V6(address) => {
                    name.push(16);
                    name.extend_from_slice(&address.octets());
                }
            }
        }
        let at = self.name(&name);
        self.answers = name;
        at
    }

    fn listed(&self, list: &Range<usize>) -> Vec<&Bytes> {
        self.lists[list.clone()].iter().map(|name| Bytes::new(self.names.get(*name))).collect()
    }

    /// The body of the frame.
    pub(super) fn body(&self) -> Body<'_> {
        let name = |at: u32| self.names.get(at);
        let exec = |(exec, argv, env): &(Exec<'static>, Range<usize>, Range<usize>)| Exec {
            argv: self.listed(argv),
            env: self.listed(env),
            ..exec.clone()
        };
        let sockets = self.sockets.entries.iter();
        let traffic = self.traffic.entries.iter();
        let dns = self.dns.entries.iter();
        let mut body = Body {
            base_boot_ns: 0,
            processes: self.processes.entries.clone(),
            paths: self.paths.strings.clone(),
            forks: self.forks.clone(),
            execs: self.execs.iter().map(exec).collect(),
            exits: self.exits.clone(),
            opens: self.opens.entries.clone(),
            deletes: self.deletes.entries.clone(),
            renames: self.renames.entries.clone(),
            sockets: sockets
                .map(|Naming { entry, names: [address] }| Socket { address: name(*address), ..*entry })
                .collect(),
            credentials: self.credentials.clone(),
            changes: self.changes.entries.clone(),
            ios: self.ios.entries.clone(),
            traffic: traffic
                .map(|Naming { entry, names: [address] }| Traffic { address: name(*address), ..*entry })
                .collect(),
            dns: dns
                .map(|Naming { entry, names: [server, asked, answers] }| Dns {
                    server: name(*server),
                    name: name(*asked),
                    answers: split_answers(name(*answers)),
                    ..entry.clone()
                })
                .collect(),
            operations: self.operations.entries.clone(),
        };
        body.rebase();
        body
    }

    pub(super) fn clear(&mut self) {
        self.bytes = 0;
        self.processes.clear();
        self.paths.clear();
        self.names.clear();
        self.lists.clear();
        self.forks.clear();
        self.execs.clear();
        self.exits.clear();
        self.credentials.clear();
        self.opens.clear();
        self.deletes.clear();
        self.renames.clear();
        self.changes.clear();
        self.ios.clear();
        self.sockets.clear();
        self.traffic.clear();
        self.dns.clear();
        self.operations.clear();
    }
}

/// The addresses that [`Batch::answers`] put together.
fn split_answers(mut name: &[u8]) -> Vec<&Bytes> {
    let mut answers = Vec::new();
    while let Some((length, rest)) = name.split_first()
        && let Some((answer, rest)) = rest.split_at_checked(usize::from(*length))
    {
        answers.push(Bytes::new(answer));
        name = rest;
    }
    answers
}
