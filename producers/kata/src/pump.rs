//! The named pipes that a shim takes a command's standard streams from, and the threads that copy between them and the
//! streams' own ends.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;
use tempfile::TempDir;
use tokio::sync::oneshot;

const CHUNK_BYTES: usize = 64 * 1024;
/// What their directories are called, with the execution's id.
const PREFIX: &str = "glasshouse-kata-";

/// Ends when a stream was copied to its end; tells how many bytes of it.
pub(crate) type Copied = oneshot::Receiver<u64>;

/// Where the pipes of an execution are.
pub(crate) fn dir_of(id: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{id}"))
}

/// The pipes of one command. Dropping it ends the copies, save what waits for a reader.
#[derive(Debug)]
pub(crate) struct Pipes {
    dir: TempDir,
    /// The other ends, so that nobody takes a shim that is not there yet for one that is gone.
    others: Vec<File>,
    stdin: Option<(OwnedFd, File)>,
    quit: Arc<EventFd>,
}

impl Pipes {
    /// Makes them and starts to copy the output, which ends when each of `copied` does.
    pub(crate) fn new(
        id: &str,
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> io::Result<(Self, [Copied; 2])> {
        // One of that name is no directory of ours: then there are no pipes.
        let dir = tempfile::Builder::new().prefix(&format!("{PREFIX}{id}")).rand_bytes(0).tempdir()?;
        let quit = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let [path, out, err] = paths(dir.path());
        let (read, write) = make(&path)?;
        let (read_out, write_out) = make(&out)?;
        let (read_err, write_err) = make(&err)?;
        let copied = [copy(read_out, stdout.into())?, copy(read_err, stderr.into())?];
        let others = vec![read, write_out, write_err];
        Ok((Self { dir, others, stdin: Some((stdin, write)), quit }, copied))
    }

    /// Where they are: standard input, output and error.
    pub(crate) fn paths(&self) -> [PathBuf; 3] {
        paths(self.dir.path())
    }

    /// To be called once the shim has opened its ends: what it closes is seen from now on, and standard input is fed.
    pub(crate) fn begin(&mut self) -> io::Result<Option<Copied>> {
        self.others.clear();
        let Some((from, to)) = self.stdin.take() else { return Ok(None) };
        let quit = Arc::clone(&self.quit);
        spawn("glasshouse-stdin", move || feed(&from, to, &quit)).map(Some)
    }

    /// Removes them.
    pub(crate) fn close(self) -> io::Result<()> {
        let Self { dir, quit, .. } = self;
        quit.write(1)?;
        dir.close()
    }
}

fn paths(dir: &Path) -> [PathBuf; 3] {
    ["stdin", "stdout", "stderr"].map(|name| dir.join(name))
}

/// Makes a named pipe; gives both of its ends.
fn make(path: &Path) -> io::Result<(File, File)> {
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // Neither end can be opened first without waiting for the other, but in this way.
    let read = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let write = File::options().write(true).open(path)?;
    let flags = OFlag::from_bits_truncate(fcntl(&read, FcntlArg::F_GETFL)?);
    fcntl(&read, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
    Ok((read, write))
}

fn spawn(name: &str, run: impl FnOnce() -> u64 + Send + 'static) -> io::Result<Copied> {
    let (ended, copied) = oneshot::channel();
    std::thread::Builder::new().name(name.into()).stack_size(256 * 1024).spawn(move || {
        let copied = run();
        // Nobody waits for the streams of an execution that was dropped.
        let _ = ended.send(copied);
    })?;
    Ok(copied)
}

/// Copies output until nobody is left to write, or to read.
fn copy(mut from: File, mut to: File) -> io::Result<Copied> {
    spawn("glasshouse-output", move || {
        io::copy(&mut from, &mut to).unwrap_or_else(|error| {
            tracing::debug!(%error, "the command's output is not taken any more");
            0
        })
    })
}

/// Copies standard input until its end, until nobody reads, or until it is not wanted any more.
fn feed(from: &OwnedFd, mut to: File, quit: &EventFd) -> u64 {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut fed = 0;
    loop {
        let mut fds =
            [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(quit.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return fed,
            Ok(_) if fds[1].any().unwrap_or(true) => return fed,
            Ok(_) => {}
        }
        match nix::unistd::read(from, &mut buffer) {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Ok(0) | Err(_) => return fed,
            Ok(read) => {
                if to.write_all(&buffer[..read]).is_err() {
                    return fed;
                }
                fed += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_was_fed_is_counted() {
        let quit = EventFd::new().unwrap();
        for input in [&b""[..], b"abc"] {
            let (from, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
            let (read, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
            File::from(write).write_all(input).unwrap();
            assert_eq!(feed(&from, to.into(), &quit), input.len() as u64);
            let mut got = Vec::new();
            File::from(read).read_to_end(&mut got).unwrap();
            assert_eq!(got, input);
        }
    }
}
