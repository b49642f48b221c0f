//! The maps that both sides write: which cgroups are watched, the state and the counters of each execution.

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use glasshouse_bpf::abi::{self, Abi};

use crate::ProbeError;

// Map values travel as arrays of integers, which are plain data to aya; `abi` turns them into structs.
const EXECUTION_BYTES: usize = size_of::<abi::Execution>();
const COUNTERS_WORDS: usize = size_of::<abi::Counters>() / 8;
const SYSCALLS_WORDS: usize = size_of::<abi::Syscalls>() / 8;
/// Of `bpf/probe/common.h`.
const HINTS: u32 = 65_536;
const STOPPED_WORDS: usize = size_of::<abi::Stopped>() / 8;

/// Where an execution lives in the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl Slot {
    fn value(self) -> [u32; 2] {
        [self.index, self.generation]
    }
}

/// Typed access to the maps. One owner at a time: see [`crate::probe`].
pub(crate) struct Maps {
    watched: HashMap<MapData, u64, [u32; 2]>,
    hints: Array<MapData, u64>,
    members: HashMap<MapData, u32, [u32; 2]>,
    executions: Array<MapData, [u8; EXECUTION_BYTES]>,
    counters: Array<MapData, [u64; COUNTERS_WORDS]>,
    syscalls: Array<MapData, [u64; SYSCALLS_WORDS]>,
    stopped: HashMap<MapData, u32, [u64; STOPPED_WORDS]>,
    /// Slots nobody uses, the longest unused first: a program that was under way when a slot was freed is long gone
    /// by the time that slot is used again.
    free: std::collections::VecDeque<u32>,
    max: u32,
    generation: u32,
}

fn failed(map: &'static str, action: &'static str) -> impl Fn(MapError) -> ProbeError {
    move |error| {
        let source =
            std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        ProbeError::Map { map, action, reason: format!("{error}{source}") }
    }
}

pub(crate) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, ProbeError> {
    ebpf.take_map(name).ok_or_else(|| ProbeError::ObjectBroken {
        object: glasshouse_bpf::PROBE.to_owned(),
        reason: format!("it has no map {name}"),
    })
}

impl Maps {
    pub(crate) fn new(ebpf: &mut Ebpf, max_executions: u32) -> Result<Self, ProbeError> {
        Ok(Self {
            watched: take(ebpf, "watched")?.try_into().map_err(failed("watched", "opening it"))?,
            hints: take(ebpf, "hints")?.try_into().map_err(failed("hints", "opening it"))?,
            members: take(ebpf, "members")?.try_into().map_err(failed("members", "opening it"))?,
            executions: take(ebpf, "executions")?.try_into().map_err(failed("executions", "opening it"))?,
            counters: take(ebpf, "counters")?.try_into().map_err(failed("counters", "opening it"))?,
            syscalls: take(ebpf, "syscalls")?.try_into().map_err(failed("syscalls", "opening it"))?,
            stopped: take(ebpf, "stopped")?.try_into().map_err(failed("stopped", "opening it"))?,
            free: (0..max_executions).collect(),
            max: max_executions,
            generation: 0,
        })
    }

    /// Takes a slot for an execution, its counters at zero. The cgroup is not watched yet: see [`Self::arm`].
    pub(crate) fn reserve(&mut self, cgroup_id: u64) -> Result<Slot, ProbeError> {
        if self.watched.get(&cgroup_id, 0).is_ok() {
            return Err(ProbeError::AlreadyWatched { cgroup_id });
        }
        let index = self.free.pop_front().ok_or(ProbeError::TooManyExecutions { max: self.max })?;
        self.generation = self.generation.wrapping_add(1);
        Ok(Slot { index, generation: self.generation })
    }

    /// Gives a slot back that was reserved and is not armed.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.free.push_back(slot.index);
    }

    /// From here on the kernel looks for the root's exec.
    pub(crate) fn arm(
        &mut self,
        slot: Slot,
        cgroup_id: u64,
        root_tgid: u32,
        lossless: bool,
    ) -> Result<(), ProbeError> {
        self.counters
            .set(slot.index, [0; COUNTERS_WORDS], 0)
            .map_err(failed("counters", "clearing a slot"))?;
        self.syscalls
            .set(slot.index, [0; SYSCALLS_WORDS], 0)
            .map_err(failed("syscalls", "clearing a slot"))?;
        let execution = abi::Execution {
            root_cgroup_id: cgroup_id,
            root_tgid,
            generation: slot.generation,
            state: abi::STATE_ARMED,
            lossless: lossless.into(),
            root_dentry: 0,
            root_mnt: 0,
            namespaces: [0; 7],
        };
        self.set_execution(slot, &execution)?;
        // So that a root that is moved away before its exec is missed.
        if root_tgid != 0 {
            self.members.insert(root_tgid, slot.value(), 0).map_err(failed("members", "adding the root"))?;
        }
        // Without it the programs do not look for the cgroup.
        let hint = (cgroup_id % u64::from(HINTS)) as u32;
        self.hints.set(hint, 1, 0).map_err(failed("hints", "setting one"))?;
        self.watched.insert(cgroup_id, slot.value(), 0).map_err(failed("watched", "adding a cgroup"))
    }

    /// Stops recording. Gives whether it had begun.
    pub(crate) fn stop(&mut self, slot: Slot) -> Result<bool, ProbeError> {
        let execution = self.execution(slot)?;
        // The rest stays: a program that is under way still looks at it.
        self.set_execution(slot, &abi::Execution { state: abi::STATE_SEALED, ..execution })?;
        Ok(execution.state == abi::STATE_RECORDING)
    }

    fn execution(&self, slot: Slot) -> Result<abi::Execution, ProbeError> {
        let bytes = self.executions.get(&slot.index, 0).map_err(failed("executions", "reading a slot"))?;
        abi::Execution::read(&bytes).filter(|of| of.generation == slot.generation).ok_or(ProbeError::Stopped)
    }

    fn set_execution(&mut self, slot: Slot, execution: &abi::Execution) -> Result<(), ProbeError> {
        let mut value = [0; EXECUTION_BYTES];
        value.copy_from_slice(execution.as_bytes());
        self.executions.set(slot.index, value, 0).map_err(failed("executions", "writing a slot"))
    }

    pub(crate) fn counters(&self, slot: Slot) -> Result<abi::Counters, ProbeError> {
        let words = self.counters.get(&slot.index, 0).map_err(failed("counters", "reading a slot"))?;
        abi::Counters::read(&bytes_of(&words)).ok_or(ProbeError::Stopped)
    }

    /// Calls and refused calls, by number.
    pub(crate) fn syscalls(&self, slot: Slot) -> Result<Box<[u64; SYSCALLS_WORDS]>, ProbeError> {
        self.syscalls.get(&slot.index, 0).map(Box::new).map_err(failed("syscalls", "reading a slot"))
    }

    /// Takes the thread groups out of the map that the kernel stopped for want of room; of one execution, or of all.
    pub(crate) fn take_stopped(&mut self, of: Option<Slot>) -> Vec<u32> {
        let is_stopped = |words: &[u64; STOPPED_WORDS]| {
            abi::Stopped::read(&bytes_of(words)).is_some_and(|entry| {
                let slot = Slot { index: entry.slot, generation: entry.generation };
                entry.start_boot_ns != 0 && of.is_none_or(|of| of == slot)
            })
        };
        let stopped: Vec<u32> = self
            .stopped
            .iter()
            .flatten()
            .filter(|(_, words)| is_stopped(words))
            .map(|(tgid, _)| tgid)
            .collect();
        // Before they go on: whoever is stopped again afterwards is in the map again.
        for tgid in &stopped {
            let _ = self.stopped.remove(tgid);
        }
        stopped
    }

    /// Forgets an execution: its cgroup, those below it, and processes that were moved elsewhere or still live.
    pub(crate) fn remove(&mut self, slot: Slot, cgroup_id: u64, processes_left: bool) {
        // Absent when the cgroup was never armed; a nested one may be removed by the kernel at the same time.
        let _ = self.watched.remove(&cgroup_id);
        let nested: Vec<u64> = self
            .watched
            .iter()
            .flatten()
            .filter(|(_, value)| *value == slot.value())
            .map(|(id, _)| id)
            .collect();
        for id in nested {
            let _ = self.watched.remove(&id);
        }
        // Its exec or exit may never have been seen.
        if let Ok(execution) = self.execution(slot)
            && self.members.get(&execution.root_tgid, 0).is_ok_and(|of| of == slot.value())
        {
            let _ = self.members.remove(&execution.root_tgid);
        }
        if processes_left {
            let left: Vec<u32> = self
                .members
                .iter()
                .flatten()
                .filter(|(_, value)| *value == slot.value())
                .map(|(tgid, _)| tgid)
                .collect();
            for tgid in left {
                let _ = self.members.remove(&tgid);
            }
        }
        // Zero is FREE: a nested cgroup made at this very moment finds no execution.
        let _ = self.executions.set(slot.index, [0; EXECUTION_BYTES], 0);
        self.free.push_back(slot.index);
    }
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
