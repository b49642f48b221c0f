//! Whether a compiled object fits a kernel's types, without that kernel running.
//!
//! The relocating is done by aya, the library that does it when the probe is loaded. Where a field or type is not in the
//! kernel aya leaves a poisoned instruction behind for the verifier to refuse, unless the program never gets there; so every
//! relocated instruction is looked at afterwards, and [`crate::object_types`] names what it was to hold.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, anyhow};
use aya_obj::Object;
use aya_obj::btf::{Btf, BtfKind};
use object::{Endianness, Object as _, ObjectSection as _};

use crate::object_types::{Relocation, Types, relocations};

/// What aya puts in place of an instruction that cannot be relocated (libbpf's value too).
const POISON: i32 = 0x0bad_2310;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// A program of these must find its tracepoint's type, or cannot be attached.
const NEEDS_TRACEPOINT: &str = "tp_btf/";

/// How an object fits a kernel's types.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fit {
    /// How many relocations there are, tracepoints not counted.
    pub(crate) relocations: usize,
    /// What is required and not there.
    pub(crate) missing: BTreeSet<String>,
    /// Tracepoints of `tp_btf` programs that are not there: required or not, as [`Fit::settle`] is told.
    pub(crate) hooks: BTreeSet<String>,
    /// What is not there, and the program asks first whether it is, or has another form of it.
    pub(crate) optional: BTreeSet<String>,
}

impl Fit {
    /// This and another object's, as one.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.relocations += other.relocations;
        self.missing.extend(other.missing);
        self.hooks.extend(other.hooks);
        self.optional.extend(other.optional);
        self
    }

    /// Hooks that a kernel was seen to do without are optional, others are missing. The loader decides that, so only a
    /// kernel that ran can tell.
    pub(crate) fn settle(&mut self, done_without: &BTreeSet<String>) {
        for hook in std::mem::take(&mut self.hooks) {
            let known = done_without.contains(&hook);
            if known {
                self.optional.insert(hook)
            } else {
                self.missing.insert(hook)
            };
        }
    }
}

/// Relocates the object against the raw BTF of a kernel.
pub(crate) fn check(object: &[u8], kernel_types: &[u8]) -> Result<Fit> {
    let target = Btf::parse(kernel_types, Endianness::Little)
        .map_err(|error| anyhow!(error))
        .context("aya cannot parse the kernel's types")?;
    let elf = object::File::parse(object)?;
    let section = |name: &str| -> Result<&[u8]> {
        let section = elf.section_by_name(name).with_context(|| format!("the object has no {name}"))?;
        Ok(section.data()?)
    };
    let types = Types::parse(section(".BTF")?).context("the object's .BTF is broken")?;
    let all = relocations(section(".BTF.ext")?).context("the object's .BTF.ext is broken")?;
    let asked: BTreeSet<String> =
        all.iter().filter(|one| one.is_question()).map(|one| types.name(one)).collect();

    let mut parsed = Object::parse(object)?;
    parsed.relocate_btf(&target)?;
    let mut fit = Fit { relocations: all.len(), ..Fit::default() };
    for one in &all {
        let name = types.name(one);
        if !is_poisoned(&parsed, &elf, &types, one).with_context(|| format!("no instruction for {name}"))? {
            continue;
        }
        let guarded = asked.contains(&name) || asked.contains(types.root(one)) || name.contains("___");
        if guarded {
            fit.optional.insert(name)
        } else {
            fit.missing.insert(name)
        };
    }
    for section in elf.sections() {
        if let Some(tracepoint) = section.name()?.strip_prefix(NEEDS_TRACEPOINT)
            && target.id_by_type_name_kind(&format!("btf_trace_{tracepoint}"), BtfKind::Typedef).is_err()
        {
            fit.hooks.insert(format!("tracepoint {tracepoint}"));
        }
    }
    Ok(fit)
}

fn is_poisoned(
    parsed: &Object,
    elf: &object::File<'_>,
    types: &Types<'_>,
    relocation: &Relocation,
) -> Option<bool> {
    let section = elf.section_by_name(types.string(relocation.section)?)?.index();
    let size = size_of::<aya_obj::generated::bpf_insn>();
    let instruction = relocation.instruction_bytes / size;
    parsed.functions.values().find_map(|function| {
        let index = instruction.checked_sub(function.section_offset / size)?;
        let found = function.instructions.get(index)?;
        (function.section_index == section).then_some(found.code == CALL && found.imm == POISON)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use object::{Object as _, ObjectSection as _};

    use super::check;

    fn types(object: &[u8]) -> Vec<u8> {
        let elf = object::File::parse(object).unwrap();
        elf.section_by_name(".BTF").unwrap().data().unwrap().to_vec()
    }

    #[test]
    fn an_object_fits_types_that_hold_its_fields_and_the_hooks_they_lack_are_named() {
        let probe = glasshouse_bpf::object(glasshouse_bpf::PROBE).unwrap().bytes;
        // Its own types: every field, and no kernel's tracepoints.
        let mut fit = check(probe, &types(probe)).unwrap();
        assert!(fit.relocations > 50, "{fit:?}");
        assert!(fit.missing.is_empty(), "{fit:?}");
        assert!(fit.hooks.contains("tracepoint sched_process_exec"), "{fit:?}");
        let hooks = fit.hooks.len();
        fit.settle(&["tracepoint sched_process_exec".to_owned()].into());
        assert_eq!((fit.missing.len(), fit.optional.len()), (hooks - 1, 1));
    }

    #[test]
    fn fields_that_are_not_there_are_named() {
        let probe = glasshouse_bpf::object(glasshouse_bpf::PROBE).unwrap().bytes;
        let doctor = glasshouse_bpf::object(glasshouse_bpf::DOCTOR).unwrap().bytes;
        let fit = check(probe, &types(doctor)).unwrap();
        assert!(fit.missing.contains("task_struct.tgid"), "{fit:?}");
    }
}
