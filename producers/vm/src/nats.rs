//! The link over a NATS server: opened before the machine is made, with a credential that is put into it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use glasshouse_execution::backend::BackendError;
use glasshouse_execution::spec::ExecutionSpec;
pub use glasshouse_guest_nats::Issuer;
use glasshouse_guest_nats::{Credential, HostEnd};

use crate::vmm::Vmm;

/// The file in a machine's directory with its guest's credential.
pub const CREDENTIALS: &str = "credentials";
/// How long a credential holds beyond what its execution may take: for the boot, and for its end.
const BEYOND: Duration = Duration::from_secs(10 * 60);
/// How long it holds where the execution may take for ever. Then the server ends the link.
const WITHOUT_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
const DOING: &str = "opening the link over NATS";

/// Opens the link of an execution, and writes its guest's credential into the machine's directory.
pub(crate) async fn open(
    issuer: &Issuer,
    spec: &ExecutionSpec,
    dir: &Path,
    vmm: &dyn Vmm,
) -> Result<HostEnd, BackendError> {
    let wall = spec.limits.wall_ms.map(Duration::from_millis);
    let lifetime = wall.map_or(WITHOUT_LIMIT, |wall| wall.saturating_add(vmm.speaks_within() + BEYOND));
    let opened = HostEnd::open(issuer, spec.id, lifetime).await;
    let (end, credential) = opened.map_err(|error| BackendError::failed(DOING, error))?;
    if end.wants_tls() && !vmm.has_certificates() {
        let server = issuer.server();
        return Err(BackendError::failed(
            DOING,
            format!(
                "{server} wants TLS, and a machine has no certificates by which its guest could trust a server"
            ),
        ));
    }
    write(&dir.join(CREDENTIALS), &credential).map_err(|error| BackendError::failed(DOING, error))?;
    Ok(end)
}

fn write(to: &Path, credential: &Credential) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    file.write_all(credential.text().as_bytes())
}

/// The address of an issuer's server, as this node reaches it by IPv4.
pub(crate) async fn address(issuer: &Issuer) -> Result<SocketAddrV4, BackendError> {
    let refused = |reason: String| Err(BackendError::failed(DOING, reason));
    let rest = issuer.server().split_once("://").map_or(issuer.server(), |(_, rest)| rest);
    let host = rest.trim_end_matches('/');
    let with_port = if host.rsplit_once(':').is_some() { host.to_owned() } else { format!("{host}:4222") };
    let found = tokio::net::lookup_host(&with_port).await;
    let mut found = found.map_err(|error| BackendError::failed(DOING, format!("{with_port}: {error}")))?;
    let of_v4 = found.find_map(|address| match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    });
    match of_v4 {
        Some(address) => Ok(address),
        None => {
            refused(format!("{with_port} has no IPv4 address, and the network of a machine is of IPv4 only"))
        }
    }
}
