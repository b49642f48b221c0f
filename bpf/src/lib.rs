//! The host probe's BPF programs, the ABI they share with user space, and the programs of a sandbox's network.
//!
//! The programs (C, CO-RE) are in `probe/`, those of a sandbox in `sandbox/`; `build.sh` compiles them at build and by hand. Where the target is Linux
//! their objects are embedded in [`OBJECTS`]; elsewhere there are none and [`object`] returns `None`, so that client
//! crates build anywhere. [`abi`] mirrors `include/abi.h`; `tests/alignment.rs` holds the two equal through the BTF of
//! the compiled object.

pub mod abi;

/// One compiled BPF object.
#[derive(Clone, Copy)]
pub struct Object {
    /// File name, also in a directory that overrides the embedded objects.
    pub name: &'static str,
    /// The ELF file, aligned for an ELF parser.
    pub bytes: &'static [u8],
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("name", &self.name).field("bytes", &self.bytes.len()).finish()
    }
}

/// File name of the host probe's object.
pub const PROBE: &str = "probe.bpf.o";
/// File name of the same programs, with kernel fields read by one instruction each. To be finished by its loader: see
/// `CAST` in `include/helpers.h`.
pub const PROBE_DIRECT: &str = "probe.direct.bpf.o";
/// File name of the object with one minimal program per type, for `doctor`.
pub const DOCTOR: &str = "doctor.bpf.o";
/// File name of the allow-list of a sandbox's network.
pub const CONNECT: &str = "connect.bpf.o";
/// File name of the object with an empty program per hook, for the bench of what watching costs; embedded with feature
/// `empty` only. The program on hook
/// `sys_exit` is `empty_sys_exit`.
pub const EMPTY: &str = "empty.bpf.o";

#[cfg(glasshouse_bpf_objects)]
mod embedded {
    use super::Object;

    /// ELF parsers read words in place.
    #[repr(C, align(8))]
    struct Aligned<T: ?Sized>(T);

    static PROBE_BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/probe.bpf.o")));
    static DIRECT_BYTES: &Aligned<[u8]> =
        &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/probe.direct.bpf.o")));
    static DOCTOR_BYTES: &Aligned<[u8]> =
        &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/doctor.bpf.o")));
    static CONNECT_BYTES: &Aligned<[u8]> =
        &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/connect.bpf.o")));
    #[cfg(feature = "empty")]
    static EMPTY_BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/empty.bpf.o")));

    pub(super) static OBJECTS: &[Object] = &[
        Object { name: super::PROBE, bytes: &PROBE_BYTES.0 },
        Object { name: super::PROBE_DIRECT, bytes: &DIRECT_BYTES.0 },
        Object { name: super::DOCTOR, bytes: &DOCTOR_BYTES.0 },
        Object { name: super::CONNECT, bytes: &CONNECT_BYTES.0 },
        #[cfg(feature = "empty")]
        Object { name: super::EMPTY, bytes: &EMPTY_BYTES.0 },
    ];
}

/// The embedded objects: empty where the target is not Linux.
#[cfg(glasshouse_bpf_objects)]
pub static OBJECTS: &[Object] = embedded::OBJECTS;
/// The embedded objects: none, because the target is not Linux.
#[cfg(not(glasshouse_bpf_objects))]
pub static OBJECTS: &[Object] = &[];

/// The embedded object of that file name, if this build has it.
pub fn object(name: &str) -> Option<&'static Object> {
    OBJECTS.iter().find(|object| object.name == name)
}
