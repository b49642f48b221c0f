//! The profiling controller `ebpf`: the probe behind the execution engine's contract.

use std::sync::Arc;

use async_trait::async_trait;
use glasshouse_execution::profiling::{
    Attachment, Capabilities, ProfilingController, ProfilingError, ProfilingSession, ProfilingTarget,
    SealedChain,
};
use glasshouse_execution::sink::EventSink;
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::lifecycle::Attached;
use glasshouse_schema::{FrameWriter, Vantage};
use tokio::sync::OnceCell;

use crate::{HostProbe, LoadOptions, ProbeError, Watch, WatchRequest, clock};

/// What the attached hooks cannot see, whatever the command does. What was seen to pass beside them is in the seal.
const BLIND_SPOTS: [&str; 9] = [
    "io_uring operations (calls counted, not decoded)",
    "32-bit system calls (counted, not decoded)",
    "stat, access, locks, times and extended attributes of files (calls counted, not decoded)",
    "bytes through shared mappings; bytes and datagrams of sockets other than IPv4 and IPv6",
    "names asked of DNS otherwise than by UDP to port 53",
    "names of deleted, renamed and otherwise changed files are the caller's, read when the call returns",
    "calls that a seccomp filter or a tracer answers itself are told as if they were made",
    "a thread that swaps descriptors, names or memory during a call of another",
    "work that other processes do on the command's behalf",
];

/// Loads one [`HostProbe`] when it is first needed and watches every execution with it.
#[derive(Debug)]
pub struct EbpfController {
    options: LoadOptions,
    vantage: Vantage,
    probe: OnceCell<Arc<HostProbe>>,
}

impl EbpfController {
    /// A controller for the host vantage point. Nothing is loaded yet.
    pub fn new(options: LoadOptions) -> Self {
        Self::with_vantage(options, Vantage::Host)
    }

    /// The same programs, speaking for another vantage point: that of a guest when this runs inside one.
    pub fn with_vantage(options: LoadOptions, vantage: Vantage) -> Self {
        Self { options, vantage, probe: OnceCell::new() }
    }

    /// The probe, loaded if it is not yet. A failure is not remembered: the next call tries again.
    pub async fn probe(&self) -> Result<Arc<HostProbe>, ProbeError> {
        let load = || async {
            let options = self.options.clone();
            let loaded = tokio::task::spawn_blocking(move || HostProbe::load(&options)).await;
            loaded.map_err(|_| ProbeError::Stopped)?.map(Arc::new)
        };
        self.probe.get_or_try_init(load).await.map(Arc::clone)
    }
}

fn refused(error: ProbeError) -> ProfilingError {
    ProfilingError::new(error.to_string())
}

#[async_trait]
impl ProfilingController for EbpfController {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { vantage: Some(self.vantage), concurrent: true }
    }

    async fn ready(&self) -> Result<(), ProfilingError> {
        self.probe().await.map(|_| ()).map_err(refused)
    }

    async fn attach(
        &self,
        target: ProfilingTarget,
        sink: Arc<dyn EventSink>,
    ) -> Result<Attachment, ProfilingError> {
        let probe = self.probe().await.map_err(refused)?;
        let Some(cgroup_id) = target.identity.cgroup_id else {
            return Err(ProfilingError::new(
                "the backend gave the execution no cgroup v2 to watch: mount one (mount -t cgroup2 none \
                 /sys/fs/cgroup/unified) and let Glasshouse write to it",
            ));
        };
        // The kernel knows tasks by their ids in the initial pid namespace. Inside another one the id known here means
        // nothing to it; the first exec in the cgroup is the root's as well, since only the root is in there.
        let root_tgid = match clock::is_initial_pid_namespace() {
            true => target.identity.root_pid.unwrap_or(0),
            false => 0,
        };
        let config = FrameWriterConfig::new(
            target.execution,
            target.node,
            self.vantage,
            target.epoch,
            clock::unix_minus_boot_ns(),
        );
        let watch = probe
            .watch(WatchRequest {
                cgroup_id,
                root_tgid,
                writer: FrameWriter::new(config),
                redactor: target.redactor,
                lossless: target.lossless,
                sink: Box::new(move |frame| sink.frame(frame)),
            })
            .map_err(refused)?;
        let attached = Attached {
            vantage: self.vantage,
            controller: self.name().to_owned(),
            hooks: probe.hooks().into_iter().map(str::to_owned).collect(),
            blind_spots: BLIND_SPOTS.map(str::to_owned).to_vec(),
        };
        Ok(Attachment { attached, session: Box::new(Session { watch, _probe: probe }) })
    }
}

struct Session {
    watch: Watch,
    // The drain thread must live until the seal.
    _probe: Arc<HostProbe>,
}

#[async_trait]
impl ProfilingSession for Session {
    async fn seal(self: Box<Self>) -> Result<SealedChain, ProfilingError> {
        let Self { watch, _probe } = *self;
        let report = watch.sealed().await.map_err(refused)?;
        if report.unexplained > 0 {
            tracing::warn!(
                facts = report.unexplained,
                "facts were observed and neither delivered nor known to be lost"
            );
        }
        if !report.recorded {
            tracing::warn!("the root's exec was not seen: nothing was recorded");
        }
        Ok(SealedChain { frames: report.frames, head: report.head })
    }
}
