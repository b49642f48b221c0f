//! Where the host is: from the kernel's command line, or from our own.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use glasshouse_guest_link::loopback::Loopback;
use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::{Address, Attach, Spec, Transport};
use glasshouse_guest_nats::{CREDENTIALS, Credential, GuestEnd};
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::lifecycle::RedactionRules;
use glasshouse_schema::limits::Limits;

use crate::container::Rights;
use crate::network::Network;

/// What PID 1 is told by the kernel's command line.
const TRANSPORT: &str = "glasshouse.transport=";
const ROOT: &str = "glasshouse.root=";
const NETWORK: &str = "glasshouse.network=";
const TEMPLATE: &str = "glasshouse.template";
const WATCH: &str = "glasshouse.watch";
/// Begins the transport over a server, which is not one of [`Address`]: it takes a credential.
const NATS: &str = "nats:";

/// How the probe runs.
pub(crate) struct Settings {
    pub(crate) transport: Box<dyn Transport>,
    /// Where the command's root filesystem is; without it the command has ours.
    pub(crate) root: Option<Root>,
    /// Where it is on the network that its VMM gave it.
    pub(crate) network: Option<Network>,
    /// Machines are cloned from this one: until it has its command, a host that is gone is followed by another.
    pub(crate) is_template: bool,
    /// What watches commands is loaded before the host is greeted, so that it is there wherever this machine is restored.
    pub(crate) watches: bool,
    /// What a command gets of our own rights, in a container that others made.
    pub(crate) rights: Option<Rights>,
}

/// The disk with a root filesystem. Written `DEVICE` or `DEVICE,DRIVER`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) device: PathBuf,
    /// Its driver, if it is to look at the disk when the command comes, and not before: a machine that waits may be kept, and restored
    /// with another disk.
    pub(crate) driver: Option<String>,
}

impl Root {
    fn parse(text: &str) -> Self {
        let (device, driver) =
            text.split_once(',').map_or((text, None), |(device, driver)| (device, Some(driver)));
        Self { device: device.into(), driver: driver.map(str::to_owned) }
    }
}

/// Whether this is the first process of a machine of its own. In a container we can be the first one too, and are told where the host is.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1 && !std::env::args_os().any(|argument| argument == "--transport")
}

pub(crate) fn read(is_init: bool) -> anyhow::Result<Settings> {
    match is_init {
        true => of_kernel(&std::fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?),
        false => of_arguments(std::env::args_os().skip(1)),
    }
}

fn of_kernel(line: &str) -> anyhow::Result<Settings> {
    let word = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let transport =
        word(TRANSPORT).with_context(|| format!("the kernel's command line has no {TRANSPORT}"))?;
    let transport: Box<dyn Transport> = match transport.strip_prefix(NATS) {
        Some(server) => Box::new(over_nats(server, Path::new(CREDENTIALS))?),
        None => Box::new(transport.parse::<Address>()?),
    };
    let has = |wanted: &str| line.split_whitespace().any(|word| word == wanted);
    Ok(Settings {
        transport,
        root: word(ROOT).map(Root::parse),
        network: word(NETWORK).map(str::parse).transpose()?,
        is_template: has(TEMPLATE),
        watches: has(WATCH),
        rights: None,
    })
}

/// Takes the credential, which is nowhere to be found then: neither by the command nor by another probe.
fn over_nats(server: &str, credentials: &Path) -> anyhow::Result<GuestEnd> {
    Ok(GuestEnd::new(server, Credential::take(credentials)?))
}

fn of_arguments(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Settings> {
    let (mut transport, mut credentials, mut watch, mut command) = (None, None, false, Vec::new());
    let (mut user, mut capabilities) = (None, None);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--transport") => transport = arguments.next(),
            Some("--credentials") => credentials = arguments.next().map(PathBuf::from),
            Some("--user") => user = arguments.next().and_then(|user| user.into_string().ok()),
            Some("--capabilities") => {
                capabilities = arguments.next().and_then(|names| names.into_string().ok())
            }
            Some("--watch") => watch = true,
            Some("--") => command.extend(arguments.by_ref()),
            _ => anyhow::bail!("unknown argument {argument:?}"),
        }
    }
    let transport = transport.and_then(|text| text.into_string().ok()).context("--transport is missing")?;
    let rights = match (user, capabilities) {
        (Some(user), Some(capabilities)) => Some(Rights::parse(&user, &capabilities)?),
        (None, None) => None,
        _ => anyhow::bail!("--user UID:GID and --capabilities NAMES go together"),
    };
    let server = transport.strip_prefix(NATS);
    anyhow::ensure!(
        server.is_some() || credentials.is_none(),
        "--credentials are those of --transport nats:SERVER"
    );
    let transport: Box<dyn Transport> = match (server, transport.strip_prefix("jsonl")) {
        (Some(server), _) => {
            anyhow::ensure!(command.is_empty(), "the command is the host's to say");
            let credentials = credentials.context("--transport nats:SERVER needs --credentials FILE")?;
            Box::new(over_nats(server, &credentials)?)
        }
        (None, Some(file)) => {
            anyhow::ensure!(!command.is_empty(), "without a host there must be a command: -- COMMAND…");
            let file = file.strip_prefix(':').map(PathBuf::from);
            Box::new(alone(file, watch, command)?)
        }
        (None, None) => {
            anyhow::ensure!(command.is_empty(), "the command is the host's to say");
            Box::new(transport.parse::<Address>()?)
        }
    };
    Ok(Settings { transport, root: None, network: None, is_template: false, watches: false, rights })
}

/// A command that no host asked for.
fn alone(file: Option<PathBuf>, watch: bool, command: Vec<OsString>) -> anyhow::Result<Loopback> {
    let bytes = |text: OsString| Bytes(text.into_vec());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut random = [0; 10];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    Ok(Loopback {
        file,
        spec: Spec {
            execution: ExecutionId::from_parts(u64::try_from(since.as_millis())?, random),
            argv: command.into_iter().map(bytes).collect(),
            env: std::env::vars_os().map(|(name, value)| (bytes(name), bytes(value))).collect(),
            workdir: bytes(std::env::current_dir()?.into_os_string()),
            watch,
            limits: Limits::default(),
            redaction: RedactionRules { path_prefixes: Vec::new(), tokens: true },
            redaction_key: Bytes(vec![0; 32]),
            unix_ns: i64::try_from(since.as_nanos())?,
            entropy: Bytes::default(),
        },
        attach: Attach { node: NodeId::new("loopback")?, epoch: 1, lossless: false },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn settings_are_read_from_either_command_line() {
        let found =
            of_kernel("quiet glasshouse.transport=vsock:7 glasshouse.root=/dev/vda panic=-1\n").unwrap();
        let at_once = Root { device: "/dev/vda".into(), driver: None };
        assert_eq!((found.root, found.is_template), (Some(at_once), false));
        let late = Root { device: "/dev/vda".into(), driver: Some("virtio_blk".into()) };
        let line = "glasshouse.transport=vsock:7 glasshouse.root=/dev/vda,virtio_blk";
        assert_eq!(of_kernel(line).unwrap().root, Some(late));
        let template =
            of_kernel("glasshouse.transport=vsock:7 glasshouse.template glasshouse.watch").unwrap();
        assert_eq!([template.is_template, template.watches, found.watches], [true, true, false]);
        assert_eq!(found.network, None);
        let networked = "glasshouse.transport=vsock:7 glasshouse.network=10.0.2.15/24,10.0.2.2";
        assert!(of_kernel(networked).unwrap().network.is_some());
        assert!(of_kernel("glasshouse.transport=vsock:7 glasshouse.network=here").is_err());
        assert!(of_kernel("quiet").is_err());
        assert!(of_kernel("glasshouse.transport=smoke:signals").is_err());
        let of = |line: &str| of_arguments(line.split(' ').map(OsString::from));
        assert!(of("--transport unix:/run/host").is_ok());
        assert!(of("--transport unix:/run/host -- true").is_err());
        assert!(of("--transport jsonl:/tmp/x --watch -- true").is_ok());
        assert!(of("--transport jsonl").is_err());
        assert!(of("--loud").is_err());
        let contained = of("--transport stdio --user 0:0 --capabilities CAP_CHOWN").unwrap();
        assert!(contained.rights.is_some() && !of("--transport stdio").unwrap().is_template);
        assert!(of("--transport stdio --user 0:0").is_err());
        assert!(of("--transport stdio:x").is_err());
        assert!(of("--transport unix:/run/host --credentials /x").is_err());
        let error = |line: &str| of(line).err().unwrap().to_string();
        assert!(error("--transport nats:bus:4222").contains("needs --credentials"));
        assert!(error("--transport nats:bus:4222 --credentials /nowhere").contains("/nowhere"));
    }
}
