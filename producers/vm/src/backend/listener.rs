//! Where a machine's guest is waited for.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use glasshouse_guest_nats::HostEnd;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// What a guest's first word arrives on.
pub(super) enum Listener {
    Socket(UnixListener),
    Nats(Box<HostEnd>),
}

/// The link of a guest that is there.
pub(super) struct Opened {
    pub(super) socket: UnixStream,
    /// Why it broke, where the socket does not tell.
    pub(super) broken: Option<oneshot::Receiver<String>>,
}

impl Listener {
    pub(super) fn at(socket: &Path) -> io::Result<Self> {
        UnixListener::bind(socket).map(Self::Socket)
    }

    pub(super) async fn accept(self) -> io::Result<Opened> {
        match self {
            Self::Socket(listener) => {
                let (socket, _) = listener.accept().await?;
                Ok(Opened { socket: socket.into_std()?, broken: None })
            }
            Self::Nats(end) => {
                let (socket, broken) = end.accept().await.map_err(io::Error::other)?;
                Ok(Opened { socket, broken: Some(broken) })
            }
        }
    }
}
