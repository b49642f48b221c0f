//! The options that keep a command within bounds.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use glasshouse_schema::{ConnectTarget, Limits, NetworkAccess, SandboxLevel, SandboxRequest};

/// Sandbox and limits of one command.
#[derive(Debug, Clone, Args)]
pub(crate) struct SandboxArgs {
    /// How far the command is kept from this node
    #[arg(long, value_enum, default_value_t = Sandbox::None, value_name = "LEVEL", env = "GLASSHOUSE_SANDBOX")]
    pub(crate) sandbox: Sandbox,
    /// What the command may use, as NAME=VALUE; may be given several times
    ///
    /// wall=10s and cpu=2s (time), memory=512MiB, pids=64, files=256 (descriptors of one process), output=1MiB,
    /// disk=100MiB (growth of the working directory). What exceeds a limit is ended, and the outcome names the limit.
    #[arg(long, value_name = "NAME=VALUE", value_parser = limit)]
    pub(crate) limit: Vec<String>,
    /// Let a sandboxed command read and execute below this path; may be given several times
    #[arg(long, value_name = "PATH", requires = "sandbox")]
    pub(crate) allow_read: Vec<PathBuf>,
    /// Let a sandboxed command write below this path too; may be given several times
    #[arg(long, value_name = "PATH", requires = "sandbox")]
    pub(crate) allow_write: Vec<PathBuf>,
    /// Let a sandboxed command, or one in a machine of QEMU, connect there, by TCP and UDP, and nowhere else; may be given several
    /// times
    ///
    /// HOST:PORT, or an address or a network with a port or without one: 10.0.0.0/8, 192.0.2.1:443, [2001:db8::/32]:443. A
    /// name stands for the addresses that the node finds before the command starts. The command can ask no DNS server that is
    /// not allowed too.
    #[arg(long, value_name = "TARGET", conflicts_with = "network")]
    pub(crate) allow_connect: Vec<ConnectTarget>,
    /// The sandbox's network (default: the node's at standard, none at strict and in a virtual machine)
    #[arg(long, value_enum, value_name = "WHICH")]
    pub(crate) network: Option<Network>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sandbox {
    /// Not at all
    None,
    /// Namespaces, no capabilities, a read-only system but for the working directory, fewer system calls (needs root)
    Standard,
    /// Beside that a user namespace, no network, and only the paths that are allowed (needs root)
    Strict,
}

impl From<Sandbox> for SandboxLevel {
    fn from(sandbox: Sandbox) -> Self {
        match sandbox {
            Sandbox::None => Self::None,
            Sandbox::Standard => Self::Standard,
            Sandbox::Strict => Self::Strict,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// A loopback interface of its own
    None,
    /// The node's
    Host,
}

impl From<Network> for NetworkAccess {
    fn from(network: Network) -> Self {
        match network {
            Network::None => Self::None,
            Network::Host => Self::Host,
        }
    }
}

impl SandboxArgs {
    /// The sandbox of a command of this machine: paths may be relative and follow symbolic links.
    pub(crate) fn here(&self) -> anyhow::Result<SandboxRequest> {
        self.request(|path| path.canonicalize().with_context(|| format!("cannot allow {}", path.display())))
    }

    /// The sandbox of a command of another machine, which alone can say what a path is there.
    pub(crate) fn elsewhere(&self) -> anyhow::Result<SandboxRequest> {
        self.request(|path| {
            anyhow::ensure!(
                path.is_absolute(),
                "{} is not an absolute path: it is the node's",
                path.display()
            );
            Ok(path.to_owned())
        })
    }

    fn request(&self, absolute: impl Fn(&Path) -> anyhow::Result<PathBuf>) -> anyhow::Result<SandboxRequest> {
        let all = |paths: &[PathBuf]| paths.iter().map(|path| absolute(path)).collect::<anyhow::Result<_>>();
        Ok(SandboxRequest {
            level: self.sandbox.into(),
            network: self.network.map(Into::into),
            read: all(&self.allow_read)?,
            write: all(&self.allow_write)?,
            connect: self.allow_connect.clone(),
        })
    }

    pub(crate) fn limits(&self) -> anyhow::Result<Limits> {
        let mut limits = Limits::default();
        self.limit.iter().try_for_each(|text| limits.set_text(text))?;
        Ok(limits)
    }
}

fn limit(text: &str) -> Result<String, String> {
    Limits::default().set_text(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}
