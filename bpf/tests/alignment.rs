//! Compares every struct of `include/abi.h`, as the compiled object's BTF describes it, with its Rust mirror.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;

use glasshouse_bpf::abi::{self, Abi};

/// Just enough of ELF and BTF (Documentation/bpf/btf.rst) to list the members of structs.
struct Btf {
    types: Vec<Type>,
    by_name: HashMap<String, usize>,
}

#[derive(Default)]
struct Type {
    kind: u32,
    name: String,
    size_or_type: u32,
    members: Vec<(String, usize, usize)>,
    array: Option<(usize, usize)>,
    values: Vec<(String, i64)>,
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn text(strings: &[u8], at: usize) -> String {
    let end = strings[at..].iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(strings[at..at + end].to_vec()).unwrap()
}

fn section<'a>(elf: &'a [u8], wanted: &str) -> &'a [u8] {
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01", "a little-endian ELF64 file");
    let (table, entry, count, names) = (u64_at(elf, 40), u16_at(elf, 58), u16_at(elf, 60), u16_at(elf, 62));
    let header = |index: usize| &elf[table + index * entry..table + (index + 1) * entry];
    let body = |header: &[u8]| u64_at(header, 24)..u64_at(header, 24) + u64_at(header, 32);
    let strings = &elf[body(header(names))];
    (0..count)
        .map(header)
        .find(|header| text(strings, u32_at(header, 0) as usize) == wanted)
        .map(|header| &elf[body(header)])
        .unwrap_or_else(|| panic!("the object has no section {wanted}"))
}

impl Btf {
    fn parse(bytes: &[u8]) -> Self {
        assert_eq!(u16_at(bytes, 0), 0xeb9f, "BTF magic");
        let header = u32_at(bytes, 4) as usize;
        let types_at = header + u32_at(bytes, 8) as usize;
        let types_end = types_at + u32_at(bytes, 12) as usize;
        let strings_at = header + u32_at(bytes, 16) as usize;
        let strings = &bytes[strings_at..strings_at + u32_at(bytes, 20) as usize];
        let mut types = vec![Type::default()];
        let mut at = types_at;
        while at < types_end {
            let info = u32_at(bytes, at + 4);
            let (kind, count, bitfields) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
            let mut of = Type {
                kind,
                name: text(strings, u32_at(bytes, at) as usize),
                size_or_type: u32_at(bytes, at + 8),
                ..Type::default()
            };
            at += 12;
            match kind {
                3 => of.array = Some((u32_at(bytes, at) as usize, u32_at(bytes, at + 8) as usize)),
                4 | 5 => {
                    for member in 0..count {
                        let at = at + member * 12;
                        let offset = u32_at(bytes, at + 8);
                        let bits = if bitfields { offset & 0xff_ffff } else { offset };
                        assert_eq!(bits % 8, 0);
                        let name = text(strings, u32_at(bytes, at) as usize);
                        of.members.push((name, (bits / 8) as usize, u32_at(bytes, at + 4) as usize));
                    }
                }
                6 => {
                    for value in 0..count {
                        let at = at + value * 8;
                        let name = text(strings, u32_at(bytes, at) as usize);
                        of.values.push((name, i64::from(u32_at(bytes, at + 4) as i32)));
                    }
                }
                _ => {}
            }
            at += match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => count * 12,
                6 | 13 => count * 8,
                _ => 0,
            };
            types.push(of);
        }
        let by_name = types
            .iter()
            .enumerate()
            .filter(|(_, of)| matches!(of.kind, 4 | 6) && !of.name.is_empty())
            .map(|(id, of)| (of.name.clone(), id))
            .collect();
        Self { types, by_name }
    }

    fn size(&self, id: usize) -> usize {
        let of = &self.types[id];
        match of.kind {
            2 => 8,
            3 => of.array.map(|(element, count)| self.size(element) * count).unwrap(),
            // typedef, volatile, const, restrict
            8..=11 => self.size(of.size_or_type as usize),
            _ => of.size_or_type as usize,
        }
    }

    fn of_struct(&self, name: &str) -> &Type {
        let id = self.by_name.get(name).unwrap_or_else(|| panic!("{name} is not in the object's BTF"));
        &self.types[*id]
    }

    fn check<T: Abi>(&self) {
        let c = self.of_struct(T::C_NAME);
        let rust: Vec<_> =
            T::FIELDS.iter().map(|field| (field.name.to_owned(), field.offset, field.size)).collect();
        let c_fields: Vec<_> =
            c.members.iter().map(|(name, offset, id)| (name.clone(), *offset, self.size(*id))).collect();
        assert_eq!(c_fields, rust, "fields of {} (C left, Rust right)", T::C_NAME);
        assert_eq!(c.size_or_type as usize, size_of::<T>(), "size of {}", T::C_NAME);
    }
}

fn probe() -> Btf {
    Btf::parse(section(glasshouse_bpf::object(glasshouse_bpf::PROBE).unwrap().bytes, ".BTF"))
}

#[test]
fn structs_agree() {
    let btf = probe();
    btf.check::<abi::Path>();
    btf.check::<abi::Header>();
    btf.check::<abi::Fork>();
    btf.check::<abi::Exec>();
    btf.check::<abi::Exit>();
    btf.check::<abi::Credentials>();
    btf.check::<abi::Entry>();
    btf.check::<abi::Open>();
    btf.check::<abi::Delete>();
    btf.check::<abi::Rename>();
    btf.check::<abi::Change>();
    btf.check::<abi::File>();
    btf.check::<abi::Tally>();
    btf.check::<abi::Tallies>();
    btf.check::<abi::Address>();
    btf.check::<abi::Socket>();
    btf.check::<abi::Traffic>();
    btf.check::<abi::Dns>();
    btf.check::<abi::Operation>();
    btf.check::<abi::Watch>();
    btf.check::<abi::Execution>();
    btf.check::<abi::Stopped>();
    btf.check::<abi::Counters>();
    btf.check::<abi::Syscalls>();
}

#[test]
fn payload_begins_where_the_record_ends() {
    let btf = probe();
    let record = btf.of_struct("gh_record");
    assert_eq!(record.size_or_type as usize, abi::PAYLOAD_OFFSET);
    let scratch = btf.of_struct("scratch");
    let at = |name: &str| scratch.members.iter().find(|member| member.0 == name).unwrap();
    assert_eq!(at("payload").1 - at("record").1, abi::PAYLOAD_OFFSET);
    assert_eq!(btf.size(at("payload").2), abi::MAX_RECORD_BYTES - abi::PAYLOAD_OFFSET);
}

/// Constants are macros and enums in C; the sources themselves are compared, since unused ones never reach the BTF.
#[test]
fn constants_agree() {
    let value = |text: &str| -> Option<u64> {
        match text.trim().split_once(" << ") {
            Some((one, shift)) => Some(one.parse::<u64>().ok()? << shift.parse::<u64>().ok()?),
            None => text.trim().parse().ok(),
        }
    };
    let in_c: HashMap<&str, u64> = include_str!("../include/abi.h")
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let (name, text) = match line.strip_prefix("#define ") {
                Some(define) => define.split_once(' ')?,
                None => line.strip_suffix(',')?.split_once(" = ")?,
            };
            Some((name.strip_prefix("GH_")?, value(text)?))
        })
        .collect();
    let in_rust: HashMap<&str, u64> = include_str!("../src/abi.rs")
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("pub const ")?.split_once(": u")?;
            Some((name, value(rest.split_once(" = ")?.1.strip_suffix(';')?)?))
        })
        .collect();
    assert!(in_rust.len() > 60, "{} constants were found", in_rust.len());
    for (name, rust) in &in_rust {
        assert_eq!(in_c.get(name).or_else(|| in_c.get(format!("ABI_{name}").as_str())), Some(rust), "{name}");
    }
    for kind in in_c.keys().filter(|name| name.starts_with("KIND_")) {
        assert!(in_rust.contains_key(kind), "abi.rs has no {kind}");
    }
    assert_eq!(abi::ABI_SYMBOL, format!("gh_abi_{}", abi::ABI_VERSION));
}
