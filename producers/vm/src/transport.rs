//! By what the guest of a machine speaks to its host.

/// What carries the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum GuestTransport {
    /// A port of virtio-serial
    #[default]
    VirtioSerial,
    /// A NATS server, with a credential of this one execution
    Nats,
}
