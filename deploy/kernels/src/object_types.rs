//! The types and relocations that clang left in a BPF object, as far as they are needed to name what a relocation is about
//! (Documentation/bpf/btf.rst, Documentation/bpf/llvm_reloc.rst).

/// `bpf_core_relo_kind`: the questions that a program may ask of any kernel, which are always answered.
const FIELD_EXISTS: u32 = 2;
const TYPE_EXISTS: u32 = 8;
const TYPE_MATCHES: u32 = 12;
const ENUM_VALUE_EXISTS: u32 = 10;

const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// One CO-RE relocation of an object.
#[derive(Debug)]
pub(crate) struct Relocation {
    /// Name of the section, in the object's strings.
    pub(crate) section: u32,
    pub(crate) instruction_bytes: usize,
    root: u32,
    access: u32,
    kind: u32,
}

impl Relocation {
    /// It asks whether something exists.
    pub(crate) fn is_question(&self) -> bool {
        matches!(self.kind, FIELD_EXISTS | TYPE_EXISTS | TYPE_MATCHES | ENUM_VALUE_EXISTS)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32_at(bytes, at)?).ok()
}

/// The relocations in a `.BTF.ext` section.
pub(crate) fn relocations(section: &[u8]) -> Option<Vec<Relocation>> {
    let header = usize_at(section, 4)?;
    let (start, length) = (usize_at(section, 24)?, usize_at(section, 28)?);
    let mut found = Vec::new();
    if length == 0 {
        return Some(found);
    }
    let all = section.get(header.checked_add(start)?..)?.get(..length)?;
    let record_bytes = usize_at(all, 0)?.max(16);
    let mut at = 4;
    while at < all.len() {
        let (name, count) = (u32_at(all, at)?, usize_at(all, at + 4)?);
        at += 8;
        for _ in 0..count {
            found.push(Relocation {
                section: name,
                instruction_bytes: usize_at(all, at)?,
                root: u32_at(all, at + 4)?,
                access: u32_at(all, at + 8)?,
                kind: u32_at(all, at + 12)?,
            });
            at += record_bytes;
        }
    }
    Some(found)
}

struct Type<'a> {
    kind: u32,
    name: &'a str,
    /// The type that this one is about, where there is one.
    inner: u32,
    /// Name and type, of a struct or union.
    members: Vec<(&'a str, u32)>,
}

/// The types of an object.
pub(crate) struct Types<'a> {
    strings: &'a [u8],
    types: Vec<Type<'a>>,
}

impl<'a> Types<'a> {
    pub(crate) fn parse(section: &'a [u8]) -> Option<Self> {
        let header = usize_at(section, 4)?;
        let part = |offset: usize, length: usize| {
            section.get(header.checked_add(usize_at(section, offset)?)?..)?.get(..usize_at(section, length)?)
        };
        let (all, strings) = (part(8, 12)?, part(16, 20)?);
        let void = Type { kind: 0, name: "void", inner: 0, members: Vec::new() };
        let mut parsed = Self { strings, types: vec![void] };
        let mut at = 0;
        while at < all.len() {
            let info = u32_at(all, at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
            let mut one = Type {
                kind,
                name: parsed.string(u32_at(all, at)?)?,
                inner: u32_at(all, at + 8)?,
                members: vec![],
            };
            at += 12;
            // What follows the common part: by kind, see the "Kind" sections of btf.rst.
            at += match kind {
                1 | 14 | 17 => 4,
                KIND_ARRAY => {
                    one.inner = u32_at(all, at)?;
                    12
                }
                KIND_STRUCT | KIND_UNION => {
                    for member in 0..count {
                        let at = at + member * 12;
                        one.members.push((parsed.string(u32_at(all, at)?)?, u32_at(all, at + 4)?));
                    }
                    count * 12
                }
                6 | 13 => count * 8,
                15 | 19 => count * 12,
                _ => 0,
            };
            parsed.types.push(one);
        }
        Some(parsed)
    }

    pub(crate) fn string(&self, offset: u32) -> Option<&'a str> {
        let rest = self.strings.get(usize::try_from(offset).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(rest.get(..end)?).ok()
    }

    fn get(&self, id: u32) -> Option<&Type<'a>> {
        self.types.get(usize::try_from(id).ok()?)
    }

    /// Through typedefs and qualifiers.
    fn resolved(&self, mut id: u32) -> Option<&Type<'a>> {
        for _ in 0..self.types.len() {
            let found = self.get(id)?;
            match found.kind {
                8..=11 | 18 => id = found.inner,
                _ => return Some(found),
            }
        }
        None
    }

    /// The name of the type that the relocation starts from.
    pub(crate) fn root(&self, relocation: &Relocation) -> &'a str {
        self.get(relocation.root).map_or("?", |found| found.name)
    }

    /// `task_struct.signal`, as in the source.
    pub(crate) fn name(&self, relocation: &Relocation) -> String {
        let mut name = self.root(relocation).to_owned();
        let mut at = self.resolved(relocation.root);
        let access = self.string(relocation.access).unwrap_or_default();
        for index in access.split(':').skip(1) {
            let (Some(found), Ok(index)) = (at, index.parse::<usize>()) else { return name + ".?" };
            if matches!(found.kind, KIND_ARRAY | KIND_PTR) {
                name.push_str("[]");
                at = self.resolved(found.inner);
                continue;
            }
            let Some((member, inner)) = found.members.get(index) else { return name + ".?" };
            if !member.is_empty() {
                name.push('.');
                name.push_str(member);
            }
            at = self.resolved(*inner);
        }
        name
    }
}
