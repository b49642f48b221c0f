//! By what the guest of a machine speaks to its host.

use glasshouse_guest_nats::Issuer;

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

impl Link {
    /// What mints for it, if it is by a server.
    pub(crate) fn issuer(&self) -> Option<&Issuer> {
        match self {
            Self::Nats(issuer) => Some(issuer),
            Self::VirtioSerial | Self::SharedMemory => None,
        }
    }
}
