//! The link of `glasshouse-guest-link` carried by core NATS, for a guest that has a network.
//!
//! ```text
//!   guest                                server                               host
//!   packets ── pieces, numbered ─> glasshouse.v1.guest.<execution>.up   ─> packets, the session
//!   packets <───────────────────── glasshouse.v1.guest.<execution>.down <─ packets
//! ```
//!
//! - What the guest may do with the server is in its credential ([`Issuer`]): publish on the one subject and hear the other, of
//!   one execution, for a time. Nothing of a guest gets to the bus but by the host's session, which believes nothing.
//! - Core NATS may lose messages. They are numbered ([`Ledger`]), so one that is missing ends the link with that reason; nothing is
//!   sent again. So does a connection that breaks, at either end.
//! - No more than [`WINDOW`] pieces are under way in a direction: who sends waits until the other end has handed on what came before. So
//!   a host that is slow holds its guest up, as with every other transport.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod carry;
mod claims;
mod connection;
mod credential;
mod guest;
mod host;
mod issuer;
mod ledger;
pub mod operator;

pub use claims::ClaimsError;
pub use connection::ConnectError;
pub use credential::{CREDENTIALS, Credential, CredentialError, Subjects};
pub use guest::GuestEnd;
pub use host::{HostEnd, OpenError};
pub use issuer::{Issuer, IssuerError, Role};
pub use ledger::{Broken, HEADER_BYTES, Header, Kind, Ledger, MAX_MESSAGE_BYTES, MAX_PIECE_BYTES, WINDOW};
