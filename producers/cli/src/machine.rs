//! The options of commands in virtual machines, and the backends they make.

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use anyhow::Context as _;
use clap::Args;
use glasshouse_backends::ProcessBackend;
use glasshouse_execution::{ExecutionBackend, ExecutionSpec, ProfilingController};
#[cfg(target_os = "linux")]
use glasshouse_vm::{
    Parts, VmBackend,
    firecracker::{self, Firecracker},
    qemu::{self, Qemu},
};

use crate::args::Backend;

/// What a virtual machine is made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// The root filesystem of a virtual machine: an image of ext4, erofs or squashfs, which the command sees writable and
    /// which stays as it is
    ///
    /// Without it a machine holds nothing but the guest probe. What kernel is booted, GLASSHOUSE_GUEST_KERNEL says: an image,
    /// or a folder with an unpacked kernel package; without it, the newest one installed.
    #[arg(long, value_name = "FILE", env = "GLASSHOUSE_IMAGE")]
    pub(crate) image: Option<PathBuf>,
    /// Virtual processors of a virtual machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) vcpus: u32,
}

/// What runs the command, and what watches it from inside.
pub(crate) struct Chosen {
    pub(crate) backend: Arc<dyn ExecutionBackend>,
    pub(crate) inside: Option<Arc<dyn ProfilingController>>,
}

#[cfg(target_os = "linux")]
impl Chosen {
    fn machine(backend: VmBackend) -> Self {
        let inside: Arc<dyn ProfilingController> = Arc::new(backend.controller());
        Self { backend: Arc::new(backend), inside: Some(inside) }
    }
}

impl MachineArgs {
    #[cfg_attr(not(target_os = "linux"), allow(unused_variables, reason = "machines are made on Linux"))]
    pub(crate) fn choose(&self, backend: Backend, spec: &ExecutionSpec) -> anyhow::Result<Chosen> {
        match backend {
            Backend::Process => {
                anyhow::ensure!(
                    self.image.is_none(),
                    "--image is of a virtual machine: choose --backend qemu or firecracker, or leave it out"
                );
                Ok(Chosen { backend: Arc::new(ProcessBackend::new()), inside: None })
            }
            #[cfg(target_os = "linux")]
            Backend::Qemu => {
                let config = qemu::Config {
                    parts: Parts::find()?,
                    qemu: qemu::program().map_err(anyhow::Error::msg)?,
                    image: self.image()?,
                    vcpus: self.vcpus,
                    nested: false,
                };
                Ok(Chosen::machine(VmBackend::new(Qemu::new(config, spec.limits))))
            }
            #[cfg(target_os = "linux")]
            Backend::Firecracker => {
                let config = firecracker::Config {
                    parts: Parts::find()?,
                    firecracker: firecracker::program().map_err(anyhow::Error::msg)?,
                    jailer: firecracker::jailer().map_err(anyhow::Error::msg)?,
                    image: self.image()?,
                    vcpus: u8::try_from(self.vcpus)?,
                };
                Ok(Chosen::machine(VmBackend::new(Firecracker::new(config, spec.limits))))
            }
        }
    }

    /// By its path from the root: a VMM has a working directory of its own.
    #[cfg(target_os = "linux")]
    fn image(&self) -> anyhow::Result<Option<PathBuf>> {
        let image = self.image.as_ref().map(|image| {
            image.canonicalize().with_context(|| format!("cannot read the image {}", image.display()))
        });
        image.transpose()
    }
}
