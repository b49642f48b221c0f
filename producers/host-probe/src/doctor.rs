//! What this kernel really allows, found out by loading and attaching one minimal program of each type.

use crate::LoadOptions;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// What, in the kernel's terms: `tp_btf`, `fentry`, `ringbuf` …
    pub name: &'static str,
    /// Whether the host probe cannot do without it.
    pub required: bool,
    /// It works, or why it does not.
    pub result: Result<(), String>,
}

/// Tries every program type of interest and the ring buffer map. Takes about as long as loading the probe.
pub fn trials(options: &LoadOptions) -> Vec<Trial> {
    system::trials(options)
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::{LoadOptions, Trial};

    pub(super) fn trials(_: &LoadOptions) -> Vec<Trial> {
        let reason = crate::ProbeError::Unsupported { os: std::env::consts::OS }.to_string();
        vec![Trial { name: "tp_btf", required: true, result: Err(reason) }]
    }
}

#[cfg(target_os = "linux")]
mod system {
    use aya::maps::MapType;
    use aya::programs::links::CgroupAttachMode;
    use aya::programs::{Program, ProgramError};
    use aya::{Btf, Ebpf, EbpfLoader};

    use super::{LoadOptions, Trial};
    use crate::probe::{object_bytes, with_sources};

    /// Name, whether it is required, program.
    const TYPES: [(&str, bool, &str); 7] = [
        ("tp_btf", true, "doctor_tp_btf"),
        ("raw_tp", false, "doctor_raw_tp"),
        ("tracepoint", false, "doctor_tracepoint"),
        ("cgroup_sock_addr", false, "doctor_cgroup_connect4"),
        ("fentry", false, "doctor_fentry"),
        ("lsm", false, "doctor_lsm"),
        ("kprobe", false, "doctor_kprobe"),
    ];

    pub(super) fn trials(options: &LoadOptions) -> Vec<Trial> {
        let ring = match aya::sys::is_map_supported(MapType::RingBuf) {
            Ok(true) => Ok(()),
            Ok(false) => Err("the kernel has no such map: Linux 5.8 or newer is required".to_owned()),
            Err(error) => Err(with_sources(&error)),
        };
        let ring = Trial { name: "ringbuf", required: true, result: ring };
        let loaded = load(options);
        let trial = |(name, required, program): (&'static str, bool, &str)| {
            let result = match &loaded {
                // Every program gets an object of its own: what one leaves behind must not help the next.
                Ok((btf, bytes)) => attempt(btf, bytes, program),
                Err(reason) => Err(reason.clone()),
            };
            Trial { name, required, result }
        };
        std::iter::once(ring).chain(TYPES.into_iter().map(trial)).collect()
    }

    fn load(options: &LoadOptions) -> Result<(Btf, std::borrow::Cow<'static, [u8]>), String> {
        let (_, bytes) =
            object_bytes(options, glasshouse_bpf::DOCTOR).map_err(|error| with_sources(&error))?;
        let btf = Btf::from_sys_fs().map_err(|error| with_sources(&error))?;
        Ok((btf, bytes))
    }

    fn attempt(btf: &Btf, bytes: &[u8], name: &str) -> Result<(), String> {
        let mut ebpf: Ebpf =
            EbpfLoader::new().btf(Some(btf)).load(bytes).map_err(|error| with_sources(&error))?;
        let program = ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
        attach(program, btf).map_err(|error| with_sources(&error))
    }

    /// Loads and attaches; dropping the object detaches again.
    fn attach(program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
        match program {
            Program::BtfTracePoint(program) => {
                program.load("sched_process_exec", btf)?;
                program.attach().map(|_| ())
            }
            Program::RawTracePoint(program) => {
                program.load()?;
                program.attach("sched_process_exec").map(|_| ())
            }
            Program::TracePoint(program) => {
                program.load()?;
                program.attach("sched", "sched_process_exec").map(|_| ())
            }
            Program::FEntry(program) => {
                program.load("do_exit", btf)?;
                program.attach().map(|_| ())
            }
            Program::Lsm(program) => {
                program.load("file_open", btf)?;
                program.attach().map(|_| ())
            }
            Program::KProbe(program) => {
                program.load()?;
                program.attach("do_exit", 0).map(|_| ())
            }
            Program::CgroupSockAddr(program) => {
                program.load()?;
                let directory = crate::cgroup::mount_point()
                    .and_then(std::fs::File::open)
                    .map_err(ProgramError::IOError)?;
                program.attach(directory, CgroupAttachMode::Single).map(|_| ())
            }
            _ => Err(ProgramError::UnexpectedProgramType),
        }
    }
}
