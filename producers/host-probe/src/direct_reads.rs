//! Kernel fields read by one instruction each: finishes the object `probe.direct.bpf.o` for the running kernel.
//!
//! Its programs call `bpf_rdonly_cast` (a function of the kernel since 6.2, a35b9af4ec2c; kernel/bpf/helpers.c) with a
//! type, both by their numbers in the kernel's BTF. The compiler knows neither and aya relocates no calls of the kernel's
//! functions, so `CAST` in `bpf/include/helpers.h` leaves two instructions with placeholders: `r2 = index of the type` and
//! `call 0x67686361`. Where the kernel has no such function the object `probe.bpf.o` does the same by helper calls.

use crate::kernel_types::Numbers;

/// By `enum gh_cast_type`.
pub(crate) const TYPES: [&str; 18] = [
    "dentry",
    "vfsmount",
    "mount",
    "path",
    "file",
    "inode",
    "fs_struct",
    "cred",
    "nsproxy",
    "socket",
    "sock",
    "unix_sock",
    "unix_address",
    "task_struct",
    "mm_struct",
    "kernel_siginfo",
    "hlist_head",
    "vm_area_struct",
];
/// The function.
pub(crate) const CAST: &str = "bpf_rdonly_cast";

/// `call 0x67686361`, with BPF_PSEUDO_KFUNC_CALL as its source register.
const CALL: [u8; 8] = [0x85, 0x20, 0, 0, 0x61, 0x63, 0x68, 0x67];
/// `r2 = …`.
const TYPE: [u8; 4] = [0xb7, 0x02, 0, 0];

/// Puts the numbers in. `None` when a placeholder is not what it should be.
pub(crate) fn finish(object: &[u8], numbers: &Numbers) -> Option<Vec<u8>> {
    let mut finished = object.to_vec();
    let mut before: Option<&mut [u8; 8]> = None;
    // Instructions are eight bytes, and sections of them begin at a multiple of that.
    let (words, _) = finished.as_chunks_mut::<8>();
    for word in words {
        if *word == CALL {
            let of_type = before.take().filter(|of_type| of_type.starts_with(&TYPE))?;
            let index = u32::from_le_bytes([of_type[4], of_type[5], of_type[6], of_type[7]]);
            let number = numbers.types.get(index as usize)?;
            of_type[4..].copy_from_slice(&number.to_le_bytes());
            word[4..].copy_from_slice(&numbers.function.to_le_bytes());
        }
        before = Some(word);
    }
    Some(finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled() {
        let numbers = Numbers { function: 0x0102_0304, types: (100..118).collect() };
        let object = glasshouse_bpf::object(glasshouse_bpf::PROBE_DIRECT).unwrap();
        let finished = finish(object.bytes, &numbers).unwrap();
        assert_eq!(finished.len(), object.bytes.len());
        let count = |bytes: &[u8], wanted: [u8; 8]| {
            bytes.as_chunks::<8>().0.iter().filter(|word| **word == wanted).count()
        };
        let calls = count(object.bytes, CALL);
        assert!(calls > 50, "{calls}");
        assert_eq!(count(&finished, CALL), 0);
        assert_eq!(count(&finished, [0x85, 0x20, 0, 0, 4, 3, 2, 1]), calls);
        assert!(count(&finished, [0xb7, 2, 0, 0, 100, 0, 0, 0]) > 0);
    }

    #[test]
    fn what_is_no_placeholder_is_refused() {
        let numbers = Numbers { function: 1, types: vec![7] };
        let of_type = |index| [0xb7, 2, 0, 0, index, 0, 0, 0];
        assert_eq!(finish(&[CALL, CALL].concat(), &numbers), None);
        assert_eq!(finish(&[of_type(1), CALL].concat(), &numbers), None);
        assert_eq!(
            finish(&[of_type(0), CALL].concat(), &numbers).unwrap(),
            [of_type(7), [0x85, 0x20, 0, 0, 1, 0, 0, 0]].concat()
        );
    }

    #[test]
    fn types_are_those_of_the_header() {
        let header = include_str!("../../../bpf/include/helpers.h");
        for (index, name) in TYPES.iter().enumerate() {
            let line = format!("GH_CAST_{} = {index},", name.to_uppercase());
            assert!(header.contains(&line), "{line}");
        }
        assert!(!header.contains(&format!(" = {},\n}};\n\n#define CAST_TYPE", TYPES.len())));
    }
}
