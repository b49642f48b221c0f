//! A machine as a whole: checked before anything runs, and told to Firecracker in an order that it takes.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::api::{
    Action, BootSource, Drive, Logger, MachineConfiguration, Metrics, NetworkInterface, SerialDevice, Vsock,
};
use crate::client::{Client, ClientError};

const MAX_VCPUS: u8 = 32;
/// The first CID that is a guest's (vsock(7)).
const FIRST_GUEST_CID: u32 = 3;
/// `COMMAND_LINE_SIZE` of x86 and arm64, with its end.
const MAX_BOOT_ARGS_BYTES: usize = 2047;
/// `sun_path` (unix(7)), without its end and with room for `_4294967295`.
const MAX_UDS_BYTES: usize = 107 - 11;

/// All that a microVM has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Processors and memory.
    pub config: MachineConfiguration,
    /// Kernel, initramfs and command line.
    pub boot: BootSource,
    /// Disks, in the order in which the guest names them.
    pub drives: Vec<Drive>,
    /// Networks.
    pub networks: Vec<NetworkInterface>,
    /// The channel to the host.
    pub vsock: Option<Vsock>,
    /// Where the console goes; standard output without it.
    pub serial: Option<SerialDevice>,
    /// Where Firecracker's own log goes.
    pub logger: Option<Logger>,
    /// Where its metrics go.
    pub metrics: Option<Metrics>,
}

/// Everything that is wrong with a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the machine cannot be: {}", self.0.join("; "))
    }
}

/// Where a guest's connection to a port of the host arrives: the host listens there before the guest boots.
pub fn guest_link(uds_path: &Path, port: u32) -> PathBuf {
    let mut path = uds_path.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

impl Machine {
    /// Finds what Firecracker would refuse, and what it would take and not do.
    ///
    /// # Errors
    /// All of it at once.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        let mut wrong = Vec::new();
        let vcpus = self.config.vcpu_count;
        if vcpus == 0 || vcpus > MAX_VCPUS || (vcpus > 1 && vcpus % 2 == 1) {
            wrong.push(format!("{vcpus} virtual processors: it takes 1 or an even number up to {MAX_VCPUS}"));
        }
        if self.config.mem_size_mib == 0 {
            wrong.push("no memory".to_owned());
        }
        let mut paths: Vec<(&str, &Path)> = vec![("the kernel", &self.boot.kernel_image_path)];
        paths.extend(self.boot.initrd_path.as_deref().map(|path| ("the initramfs", path)));
        paths.extend(self.drives.iter().map(|drive| ("a drive", drive.path_on_host.as_path())));
        paths.extend(self.logger.iter().map(|logger| ("the log", logger.log_path.as_path())));
        paths.extend(self.metrics.iter().map(|metrics| ("the metrics", metrics.metrics_path.as_path())));
        for (what, path) in paths {
            if path.to_str().is_none_or(str::is_empty) {
                wrong.push(format!("{what}: {path:?} is no path that JSON can hold"));
            }
        }
        if self.boot.boot_args.as_ref().is_some_and(|line| line.len() > MAX_BOOT_ARGS_BYTES) {
            wrong.push(format!("the kernel's command line is longer than {MAX_BOOT_ARGS_BYTES} bytes"));
        }
        names(&mut wrong, "drive", self.drives.iter().map(|drive| drive.drive_id.as_str()));
        names(&mut wrong, "network", self.networks.iter().map(|network| network.iface_id.as_str()));
        if self.drives.iter().filter(|drive| drive.is_root_device).count() > 1 {
            wrong.push("more than one drive is the root".to_owned());
        }
        if let Some(vsock) = &self.vsock {
            if vsock.guest_cid < FIRST_GUEST_CID {
                wrong.push(format!(
                    "CID {} is not a guest's: they begin at {FIRST_GUEST_CID}",
                    vsock.guest_cid
                ));
            }
            match vsock.uds_path.to_str() {
                Some(path) if !path.is_empty() && path.len() <= MAX_UDS_BYTES => {}
                _ => {
                    wrong.push(format!("{:?} is no path for a socket with a port behind it", vsock.uds_path))
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(ConfigErrors(wrong)) }
    }

    /// Tells a Firecracker that has not started what it is to be; [`Machine::start`] boots it.
    ///
    /// # Errors
    /// The first request that has no success.
    pub async fn configure(&self, client: &Client) -> Result<(), ClientError> {
        // First, so that they tell of what follows.
        if let Some(logger) = &self.logger {
            client.logger(logger).await?;
        }
        if let Some(metrics) = &self.metrics {
            client.metrics(metrics).await?;
        }
        client.machine_config(&self.config).await?;
        client.boot_source(&self.boot).await?;
        for drive in &self.drives {
            client.drive(drive).await?;
        }
        for network in &self.networks {
            client.network_interface(network).await?;
        }
        if let Some(vsock) = &self.vsock {
            client.vsock(vsock).await?;
        }
        client.entropy().await?;
        if let Some(serial) = &self.serial {
            client.serial(serial).await?;
        }
        Ok(())
    }

    /// Boots the guest.
    ///
    /// # Errors
    /// What Firecracker refuses.
    pub async fn start(client: &Client) -> Result<(), ClientError> {
        client.action(Action::InstanceStart).await
    }
}

/// Names become part of a path of the API, and each may be there once.
fn names<'a>(wrong: &mut Vec<String>, what: &str, names: impl Iterator<Item = &'a str>) {
    let mut seen = BTreeSet::new();
    for name in names {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            wrong.push(format!("{name:?} is no name for a {what}: letters, digits and _ only"));
        }
        if !seen.insert(name) {
            wrong.push(format!("two {what}s are called {name}"));
        }
    }
}
