//! The guest's end: a transport of `glasshouse-guest-link`.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use glasshouse_guest_link::{Guest, StreamReceiver, StreamSender, Transport};

use crate::carry::carry;
use crate::connection::connect;
use crate::credential::Credential;

/// The way to the host over a server.
#[derive(Debug)]
pub struct GuestEnd {
    server: String,
    credential: Credential,
    /// The thread that carries the opened link, and the socket at whose end it ends.
    carried: Mutex<Option<(JoinHandle<()>, UnixStream)>>,
}

impl GuestEnd {
    /// By a server, as HOST:PORT or as an address like `tls://HOST:PORT`, and what lets us in there.
    pub fn new(server: &str, credential: Credential) -> Self {
        let server = if server.contains("://") { server.to_owned() } else { format!("nats://{server}") };
        Self { server, credential, carried: Mutex::default() }
    }
}

impl GuestEnd {
    /// Opens it; the packets of the link are the bytes of this socket.
    ///
    /// # Errors
    /// What the server says, if it does not let us in.
    pub fn socket(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let (server, credential) = (self.server.clone(), self.credential.clone());
        let (opened, opens) = mpsc::channel();
        let thread = std::thread::Builder::new().name("nats".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(opened.send(Err(error))),
            };
            runtime.block_on(async {
                let name = "glasshouse-guest-probe";
                let connection = connect(&server, name, &credential, |on| (on.up.clone(), on.down.clone()));
                let connection = match connection.await {
                    Ok(connection) => connection,
                    Err(error) => return drop(opened.send(Err(io::Error::other(error)))),
                };
                let mut socket = match tokio::net::UnixStream::from_std(theirs) {
                    Ok(socket) => socket,
                    Err(error) => return drop(opened.send(Err(error))),
                };
                // Whoever opened may be gone by now; then so is its end of the socket.
                let _ = opened.send(Ok(()));
                if let Err(error) = carry(connection, None, &mut socket).await {
                    eprintln!("glasshouse-guest-probe: the link is over: {error}");
                }
            });
        })?;
        opens.recv().map_err(io::Error::other)??;
        *self.carried() = Some((thread, ours.try_clone()?));
        Ok(ours)
    }

    fn carried(&self) -> std::sync::MutexGuard<'_, Option<(JoinHandle<()>, UnixStream)>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for GuestEnd {
    fn open(&self) -> io::Result<Guest> {
        let ours = self.socket()?;
        Ok(Guest {
            receiver: Box::new(StreamReceiver::new(ours.try_clone()?)),
            sender: Box::new(StreamSender::new(ours)),
        })
    }

    /// Waits until the other end was told, as far as the server takes it.
    fn close(&self) {
        let Some((thread, socket)) = self.carried().take() else { return };
        // One that is over is as good.
        let _ = socket.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}
