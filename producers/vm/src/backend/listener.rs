//! Where a machine's guest is waited for.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use glasshouse_guest_nats::HostEnd;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// What a guest's first word arrives on.
pub(super) enum Listener {
    Socket(UnixListener, PathBuf),
    Streams(UnixStream),
    Nats(Box<HostEnd>),
}

/// The link of a guest that is there.
pub(super) struct Opened {
    pub(super) socket: UnixStream,
    /// Why it broke, where the socket does not tell; what never tells leaves that to the VMM's end.
    pub(super) broken: Option<oneshot::Receiver<String>>,
}

impl Listener {
    pub(super) fn at(socket: PathBuf) -> io::Result<Self> {
        let listener = UnixListener::bind(&socket)?;
        // Whoever connects is taken for the guest.
        std::fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        Ok(Self::Socket(listener, socket))
    }

    pub(super) async fn accept(self) -> io::Result<Opened> {
        match self {
            Self::Socket(listener, path) => {
                let (socket, _) = listener.accept().await?;
                // Nobody else is to connect, and nothing is to be left.
                let _ = std::fs::remove_file(path);
                Ok(Opened { socket: socket.into_std()?, broken: None })
            }
            Self::Streams(socket) => Ok(Opened { socket, broken: Some(oneshot::channel().1) }),
            Self::Nats(end) => {
                let (socket, broken) = end.accept().await.map_err(io::Error::other)?;
                Ok(Opened { socket, broken: Some(broken) })
            }
        }
    }
}
