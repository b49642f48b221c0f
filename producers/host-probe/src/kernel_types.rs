//! Cuts the few types that the programs touch out of the kernel's BTF.
//!
//! CO-RE relocation searches all 150,000 types of the kernel once per type used, which is a third of the time that
//! loading takes. It finds the same fields at the same offsets in this extract. Should anything about the extract not
//! suit the loader, it is given the whole instead: this is about speed only.
//!
//! The format is Documentation/bpf/btf.rst.

use std::collections::HashMap;

/// The structs of `bpf/include/kernel.h`.
pub(crate) const USED: [&str; 38] = [
    "atomic_t",
    "cgroup",
    "cgroup_root",
    "cgroup_subsys_state",
    "cred",
    "css_set",
    "dentry",
    "fdtable",
    "file",
    "files_struct",
    "fs_struct",
    "hlist_bl_node",
    "hlist_head",
    "in6_addr",
    "inode",
    "kernel_siginfo",
    "kernfs_node",
    "list_head",
    "mm_struct",
    "mount",
    "nsproxy",
    "path",
    "pt_regs",
    "qstr",
    "seqcount",
    "seqcount_spinlock",
    "signal_struct",
    "sigpending",
    "sigset_t",
    "sock",
    "sock_common",
    "socket",
    "task_struct",
    "thread_info",
    "unix_address",
    "unix_sock",
    "vfsmount",
    "vm_area_struct",
];

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: u32 = 24;
/// Type, name and size or type, before what depends on the kind.
const FIXED_BYTES: usize = 12;

const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const FUNCTION: u32 = 12;

struct Source<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; ids count from 1.
    offsets: Vec<usize>,
}

struct Extract {
    types: Vec<u8>,
    strings: Vec<u8>,
    string_at: HashMap<usize, u32>,
    new_id: HashMap<u32, u32>,
    count: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

impl<'a> Source<'a> {
    fn parse(raw: &'a [u8]) -> Option<Self> {
        if raw.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let header = word(raw, 4)? as usize;
        let part = |offset_at, length_at| {
            let begin = header.checked_add(word(raw, offset_at)? as usize)?;
            raw.get(begin..begin.checked_add(word(raw, length_at)? as usize)?)
        };
        let (types, strings) = (part(8, 12)?, part(16, 20)?);
        let mut offsets = Vec::with_capacity(types.len() / 32);
        let mut at = 0;
        while at < types.len() {
            offsets.push(at);
            at = at.checked_add(FIXED_BYTES + tail_bytes(word(types, at + 4)?)?)?;
        }
        Some(Self { types, strings, offsets })
    }

    fn at(&self, id: u32) -> Option<usize> {
        self.offsets.get(usize::try_from(id).ok()?.checked_sub(1)?).copied()
    }

    fn name(&self, offset: u32) -> Option<&'a [u8]> {
        let text = self.strings.get(offset as usize..)?;
        text.split(|byte| *byte == 0).next()
    }
}

/// How many bytes follow the fixed part of a type.
fn tail_bytes(info: u32) -> Option<usize> {
    let count = (info & 0xffff) as usize;
    Some(match info >> 24 & 0x1f {
        1 | 14 | 17 => 4,
        ARRAY => 12,
        STRUCT | UNION | 15 | 19 => count * 12,
        6 | 13 => count * 8,
        PTR | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

impl Extract {
    fn string(&mut self, source: &Source<'_>, offset: u32) -> Option<u32> {
        if offset == 0 {
            return Some(0);
        }
        if let Some(known) = self.string_at.get(&(offset as usize)) {
            return Some(*known);
        }
        let at = u32::try_from(self.strings.len()).ok()?;
        self.strings.extend_from_slice(source.name(offset)?);
        self.strings.push(0);
        self.string_at.insert(offset as usize, at);
        Some(at)
    }

    /// Copies a type and what it holds by value; what it points to becomes `void`, which no field access follows.
    fn copy(&mut self, source: &Source<'_>, id: u32, depth: u32) -> Option<u32> {
        if id == 0 {
            return Some(0);
        }
        if let Some(known) = self.new_id.get(&id) {
            return Some(*known);
        }
        // By-value nesting can't be circular; a file that says otherwise is not followed.
        if depth > 64 {
            return None;
        }
        let at = source.at(id)?;
        let (name, info, size_or_type) =
            (word(source.types, at)?, word(source.types, at + 4)?, word(source.types, at + 8)?);
        let kind = info >> 24 & 0x1f;
        let tail_at = at + FIXED_BYTES;
        let mut tail = source.types.get(tail_at..tail_at + tail_bytes(info)?)?.to_vec();
        let mut size_or_type = size_or_type;
        match kind {
            PTR => size_or_type = 0,
            // typedef, volatile, const, restrict, type tag
            TYPEDEF..=11 | 18 => size_or_type = self.copy(source, size_or_type, depth + 1)?,
            ARRAY => {
                for field in [0, 4] {
                    let new = self.copy(source, word(&tail, field)?, depth + 1)?;
                    tail.get_mut(field..field + 4)?.copy_from_slice(&new.to_ne_bytes());
                }
            }
            STRUCT | UNION => {
                for member in (0..tail.len()).step_by(12) {
                    let name = self.string(source, word(&tail, member)?)?;
                    let new = self.copy(source, word(&tail, member + 4)?, depth + 1)?;
                    tail.get_mut(member..member + 4)?.copy_from_slice(&name.to_ne_bytes());
                    tail.get_mut(member + 4..member + 8)?.copy_from_slice(&new.to_ne_bytes());
                }
            }
            // enum, enum64
            6 | 19 => {
                let step = if kind == 6 { 8 } else { 12 };
                for value in (0..tail.len()).step_by(step) {
                    let name = self.string(source, word(&tail, value)?)?;
                    tail.get_mut(value..value + 4)?.copy_from_slice(&name.to_ne_bytes());
                }
            }
            // int, fwd, float
            1 | 7 | 16 => {}
            _ => return None,
        }
        let name = self.string(source, name)?;
        for word in [name, info, size_or_type] {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        self.types.extend_from_slice(&tail);
        self.count += 1;
        self.new_id.insert(id, self.count);
        Some(self.count)
    }
}

/// A BTF blob with the structs (and typedefs) of these names and what they hold. `None` when `raw` is no BTF that this
/// understands.
pub(crate) fn extract(raw: &[u8], wanted: &[&str]) -> Option<Vec<u8>> {
    let source = Source::parse(raw)?;
    let mut extract = Extract {
        types: Vec::new(),
        strings: vec![0],
        string_at: HashMap::new(),
        new_id: HashMap::new(),
        count: 0,
    };
    for (index, at) in source.offsets.iter().enumerate() {
        let kind = word(source.types, at + 4)? >> 24 & 0x1f;
        if !matches!(kind, STRUCT | TYPEDEF) {
            continue;
        }
        let name = source.name(word(source.types, *at)?)?;
        if wanted.iter().any(|wanted| wanted.as_bytes() == name) {
            extract.copy(&source, u32::try_from(index).ok()? + 1, 0)?;
        }
    }
    let (types, strings) =
        (u32::try_from(extract.types.len()).ok()?, u32::try_from(extract.strings.len()).ok()?);
    let mut blob = Vec::with_capacity(HEADER_BYTES as usize + extract.types.len() + extract.strings.len());
    blob.extend_from_slice(&MAGIC.to_ne_bytes());
    blob.extend_from_slice(&[1, 0]);
    for word in [HEADER_BYTES, 0, types, types, strings] {
        blob.extend_from_slice(&word.to_ne_bytes());
    }
    blob.extend_from_slice(&extract.types);
    blob.extend_from_slice(&extract.strings);
    Some(blob)
}

/// Numbers of types and of a function in the kernel's BTF.
pub(crate) struct Numbers {
    pub(crate) function: u32,
    /// In the order they were asked for.
    pub(crate) types: Vec<u32>,
}

/// The numbers of these structs and this function; `None` when the kernel lacks any.
pub(crate) fn numbers(raw: &[u8], structs: &[&str], function: &str) -> Option<Numbers> {
    let source = Source::parse(raw)?;
    let mut types = vec![0; structs.len()];
    let mut function_number = 0;
    for (index, at) in source.offsets.iter().enumerate() {
        let kind = word(source.types, at + 4)? >> 24 & 0x1f;
        if !matches!(kind, STRUCT | FUNCTION) {
            continue;
        }
        let name = source.name(word(source.types, *at)?)?;
        let number = u32::try_from(index).ok()? + 1;
        if kind == FUNCTION && name == function.as_bytes() {
            function_number = number;
        } else if kind == STRUCT
            && let Some(wanted) = structs.iter().position(|wanted| wanted.as_bytes() == name)
        {
            types[wanted] = number;
        }
    }
    (function_number != 0 && !types.contains(&0)).then_some(Numbers { function: function_number, types })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_extract_of_this_kernel_is_small_and_parses() {
        let Ok(raw) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("skipped: this kernel has no BTF at /sys/kernel/btf/vmlinux");
            return;
        };
        let blob = extract(&raw, &USED).unwrap();
        assert!(blob.len() < raw.len() / 20, "{} of {}", blob.len(), raw.len());
        let btf = aya::Btf::parse(&blob, aya::Endianness::default()).unwrap();
        let source = Source::parse(&blob).unwrap();
        let names: Vec<_> =
            source.offsets.iter().filter_map(|at| source.name(word(source.types, *at)?)).collect();
        for wanted in USED {
            assert!(names.contains(&wanted.as_bytes()), "{wanted}");
        }
        drop(btf);
    }

    proptest! {
        #[test]
        fn hostile_blobs_are_refused(mut blob in proptest::collection::vec(any::<u8>(), 24..400)) {
            blob[..8].copy_from_slice(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0]);
            let _ = extract(&blob, &["", "a"]);
        }
    }
}
