//! By what the guest of a machine speaks to its host.

use std::path::Path;

use glasshouse_guest_nats::{Issuer, IssuerError};

/// What carries the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum GuestTransport {
    /// A port of virtio-serial
    #[default]
    VirtioSerial,
    /// Memory that host and guest share, with that port as its bell; needs PCI in the guest's kernel
    SharedMemory,
    /// A NATS server, with a credential of this one execution
    Nats,
}

/// The same, with what it needs.
#[derive(Debug, Clone, Default)]
pub enum Link {
    /// A port of virtio-serial.
    #[default]
    VirtioSerial,
    /// Memory that host and guest share.
    SharedMemory,
    /// A NATS server, for whose account this mints.
    Nats(Issuer),
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The server or the key is missing.
    #[error(
        "the guest transport nats needs --guest-nats URL and --guest-nats-key FILE (docs/guest-nats.md says how to make the key)"
    )]
    NoServer,
    /// The key cannot be used.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
}

impl Link {
    /// The link by a transport, with the server and the file of a key that the one by NATS needs.
    ///
    /// # Errors
    /// One of the two that is missing or cannot be used.
    pub fn new(by: GuestTransport, server: Option<&str>, key: Option<&Path>) -> Result<Self, LinkError> {
        Ok(match by {
            GuestTransport::VirtioSerial => Self::VirtioSerial,
            GuestTransport::SharedMemory => Self::SharedMemory,
            GuestTransport::Nats => {
                let (server, key) = server.zip(key).ok_or(LinkError::NoServer)?;
                Self::Nats(Issuer::read(server, key)?)
            }
        })
    }

    /// What mints for it, if it is by a server.
    pub(crate) fn issuer(&self) -> Option<&Issuer> {
        match self {
            Self::Nats(issuer) => Some(issuer),
            Self::VirtioSerial | Self::SharedMemory => None,
        }
    }
}
