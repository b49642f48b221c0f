//! What is known of a file.

use glasshouse_schema::event::{FileChange, PathFlags};
use glasshouse_schema::frame::{Change, Delete, Io, Open, Rename};

use crate::facts::{LAST_ERRNO, Named, Path, add};
use crate::few::Few;

/// `O_*` bits that are the same on x86-64 and arm64 (`include/uapi/asm-generic/fcntl.h`).
const O_ACCMODE: u32 = 0o3;
const O_WRONLY: u32 = 0o1;
const O_RDWR: u32 = 0o2;
const O_CREAT: u32 = 0o100;
const O_TRUNC: u32 = 0o1000;
const O_PATH: u32 = 0o10_000_000;
/// `O_TMPFILE` without its `O_DIRECTORY` bit, which differs between architectures.
const O_TMPFILE: u32 = 0o20_000_000;

/// What a process did with a file, as bits.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(crate) enum Deed {
    Read = 1,
    Write = 1 << 1,
    Path = 1 << 2,
    Create = 1 << 3,
    Delete = 1 << 4,
    Rename = 1 << 5,
    Failed = 1 << 6,
    Change = 1 << 7,
    Execute = 1 << 8,
}

impl Deed {
    pub(crate) const NAMES: [(Self, &'static str); 9] = [
        (Self::Read, "read"),
        (Self::Write, "write"),
        (Self::Path, "path"),
        (Self::Create, "create"),
        (Self::Delete, "delete"),
        (Self::Rename, "rename"),
        (Self::Change, "change"),
        (Self::Execute, "execute"),
        (Self::Failed, "failed"),
    ];

    pub(crate) const fn or_failed(self, result: i32) -> u16 {
        if result < 0 { Self::Failed as u16 } else { self as u16 }
    }

    pub(crate) const fn of_change(change: &Change) -> u16 {
        match change.change {
            FileChange::MapExecutable => Self::Execute.or_failed(change.result),
            _ => Self::Change.or_failed(change.result),
        }
    }

    pub(crate) const fn of_io(io: &Io) -> u16 {
        (if io.reads > 0 { Self::Read as u16 } else { 0 })
            | (if io.writes > 0 { Self::Write as u16 } else { 0 })
    }

    /// What an open did. 3 as access mode asks for ioctl access only; it can neither read nor write, and reading is
    /// the nearest.
    pub(crate) const fn of_open(open: &Open) -> u16 {
        if open.result < 0 {
            return Self::Failed as u16;
        }
        if open.flags & O_PATH != 0 {
            return Self::Path as u16;
        }
        let access = match open.flags & O_ACCMODE {
            O_WRONLY => Self::Write as u16,
            O_RDWR => Self::Read as u16 | Self::Write as u16,
            // Emptying a file is writing to it, whatever it is opened for.
            _ if open.flags & O_TRUNC != 0 => Self::Read as u16 | Self::Write as u16,
            _ => Self::Read as u16,
        };
        if open.flags & (O_CREAT | O_TMPFILE) != 0 { access | Self::Create as u16 } else { access }
    }
}

/// There is one for every file, and most are only opened and read: what else there is lies in boxes.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileFacts {
    pub(crate) reads: u64,
    pub(crate) read_calls: u64,
    pub(crate) bytes_read: u64,
    pub(crate) written: Option<Box<WrittenFacts>>,
    pub(crate) changed: Option<Box<ChangeFacts>>,
    /// Failures per what was tried and negated errno.
    pub(crate) errors: Few<(Tried, i32), u64>,
    /// What each process did, as bits of [`Deed`].
    pub(crate) deeds: Named<u32, u16>,
    pub(crate) flags: u8,
}

/// What a file was opened for besides reading, and what was written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WrittenFacts {
    pub(crate) writes: u64,
    pub(crate) path_only: u64,
    pub(crate) creates: u64,
    pub(crate) created: u64,
    pub(crate) write_calls: u64,
    pub(crate) bytes_written: u64,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tried {
    Open,
    Delete,
    RemoveDirectory,
    Rename,
    Change(FileChange),
}

impl Tried {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Delete => "delete",
            Self::RemoveDirectory => "rmdir",
            Self::Rename => "rename",
            Self::Change(change) => change.as_str(),
        }
    }
}

/// What was changed of a file but its content.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChangeFacts {
    pub(crate) deletes: u64,
    pub(crate) renames: u64,
    pub(crate) exchanges: u64,
    pub(crate) renamed_to: Named<Path, (), 1>,
    pub(crate) renamed_from: Named<Path, (), 1>,
    pub(crate) changes: Few<FileChange, u64>,
    pub(crate) modes: Named<u16, (), 1>,
    pub(crate) linked_to: Named<Path, (), 1>,
    pub(crate) linked_from: Named<Path, (), 1>,
    pub(crate) symlink_targets: Named<Path, (), 1>,
    pub(crate) mounted_from: Named<Path, (), 1>,
}

impl FileFacts {
    /// Notes what a process did; of the processes those that sort first are kept.
    pub(crate) fn did(&mut self, pid: u32, deeds: u16, flags: PathFlags) {
        self.deeds.change(pid, |known| *known |= deeds);
        self.flags |= flags.0;
    }

    fn changes(&mut self) -> &mut ChangeFacts {
        self.changed.get_or_insert_default()
    }

    fn written(&mut self) -> &mut WrittenFacts {
        self.written.get_or_insert_default()
    }

    fn failed(&mut self, what: Tried, result: i32, count: u64) {
        add(self.errors.entry((what, result.max(LAST_ERRNO))), count);
    }

    pub(crate) fn opened(&mut self, open: &Open) {
        if open.result < 0 {
            self.failed(Tried::Open, open.result, open.count);
            return;
        }
        let deeds = Deed::of_open(open);
        if deeds & Deed::Read as u16 != 0 {
            add(&mut self.reads, open.count);
        }
        if deeds == Deed::Read as u16 && !open.created {
            return;
        }
        let written = self.written();
        for (deed, sum) in [
            (Deed::Write, &mut written.writes),
            (Deed::Path, &mut written.path_only),
            (Deed::Create, &mut written.creates),
        ] {
            if deeds & deed as u16 != 0 {
                add(sum, open.count);
            }
        }
        if open.created {
            add(&mut written.created, open.count);
        }
    }

    pub(crate) fn deleted(&mut self, delete: &Delete) {
        match delete.result {
            0.. => add(&mut self.changes().deletes, delete.count),
            error => {
                let tried = if delete.directory { Tried::RemoveDirectory } else { Tried::Delete };
                self.failed(tried, error, delete.count);
            }
        }
    }

    /// What a rename makes of its old name.
    pub(crate) fn renamed_away(&mut self, rename: &Rename, to: Path) {
        match (rename.result, rename.exchange) {
            (0.., false) => {
                let changes = self.changes();
                add(&mut changes.renames, rename.count);
                changes.renamed_to.insert(to);
            }
            (0.., true) => self.exchanged(rename, to),
            (error, _) => self.failed(Tried::Rename, error, rename.count),
        }
    }

    /// What a rename that succeeded makes of its new name.
    pub(crate) fn renamed_here(&mut self, rename: &Rename, from: Path) {
        match rename.exchange {
            false => self.changes().renamed_from.insert(from),
            true => self.exchanged(rename, from),
        }
    }

    fn exchanged(&mut self, rename: &Rename, with: Path) {
        let changes = self.changes();
        add(&mut changes.exchanges, rename.count);
        changes.renamed_to.insert(Path::clone(&with));
        changes.renamed_from.insert(with);
    }

    pub(crate) fn changed(&mut self, change: &Change, other: Option<Path>) {
        if change.result < 0 {
            self.failed(Tried::Change(change.change), change.result, change.count);
            return;
        }
        let facts = self.changes();
        add(facts.changes.entry(change.change), change.count);
        match (change.change, other) {
            // The type bits of the mode are not chmod's to set.
            (FileChange::Mode, _) => facts.modes.insert((change.value & 0o7777) as u16),
            (FileChange::Link, Some(existing)) => facts.linked_from.insert(existing),
            (FileChange::Symlink, Some(target)) => facts.symlink_targets.insert(target),
            (FileChange::Mount | FileChange::MoveMount, Some(source)) => facts.mounted_from.insert(source),
            _ => {}
        }
    }

    pub(crate) fn linked(&mut self, to: Path) {
        self.changes().linked_to.insert(to);
    }

    pub(crate) fn transferred(&mut self, io: &Io) {
        add(&mut self.read_calls, io.reads);
        add(&mut self.bytes_read, io.read_bytes);
        if (io.writes, io.written_bytes) != (0, 0) {
            let written = self.written();
            add(&mut written.write_calls, io.writes);
            add(&mut written.bytes_written, io.written_bytes);
        }
    }
}
