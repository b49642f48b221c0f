//! What wakes the other end: a stream beside the rings, of which a byte says that there is something, and the end that the
//! other end is gone.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One end of that stream.
pub trait Bell {
    /// Wakes the other end.
    fn ring(&self) -> io::Result<()>;

    /// Waits until the other end has rung; `false` once it is gone.
    fn hear(&self) -> io::Result<bool>;

    /// Waits for so long, or until the other end is gone, which is `true`.
    fn is_gone_within(&self, pause: Duration) -> io::Result<bool>;

    /// How long to wait for something to read, and for room to write; `None`: for ever.
    fn patience(&self) -> io::Result<[Option<Duration>; 2]>;
}

/// As many rings as come at once.
const RINGS: usize = 256;

fn hang_up(stream: &impl AsFd, within: Duration) -> io::Result<bool> {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, within) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    Ok(polled[0].revents().is_some_and(|events| events.intersects(gone)))
}

/// The host's end, by the timeouts of the socket.
impl Bell for UnixStream {
    fn ring(&self) -> io::Result<()> {
        let mut stream = self;
        stream.write_all(&[0])
    }

    fn hear(&self) -> io::Result<bool> {
        let mut stream = self;
        Ok(stream.read(&mut [0; RINGS])? > 0)
    }

    fn is_gone_within(&self, pause: Duration) -> io::Result<bool> {
        hang_up(self, pause)
    }

    fn patience(&self) -> io::Result<[Option<Duration>; 2]> {
        Ok([self.read_timeout()?, self.write_timeout()?])
    }
}

/// The guest's end, a port of virtio-serial. A guest waits for its host as long as that is there.
impl Bell for File {
    fn ring(&self) -> io::Result<()> {
        let mut port = self;
        port.write_all(&[0])
    }

    fn hear(&self) -> io::Result<bool> {
        let mut port = self;
        Ok(port.read(&mut [0; RINGS])? > 0)
    }

    fn is_gone_within(&self, pause: Duration) -> io::Result<bool> {
        hang_up(self, pause)
    }

    fn patience(&self) -> io::Result<[Option<Duration>; 2]> {
        Ok([None, None])
    }
}
