//! What carries the messages.
//!
//! Everything but the loopback is a stream of bytes: a port of virtio-serial, a socket of vsock, a Unix socket, a ring in
//! shared memory. Both ends read and write with blocking calls in threads of their own, so a slow reader holds up its own
//! direction only.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::codec::{Decoder, LinkError, encode};
use crate::message::{Message, ToGuest, ToHost};

/// Gives messages as they come. `None`: the other end is gone, between two messages.
pub trait Receiver<M>: std::marker::Send {
    /// The next message.
    fn receive(&mut self) -> Result<Option<M>, LinkError>;
}

/// Sends messages, each whole before it returns.
pub trait Sender<M>: std::marker::Send {
    /// Sends one.
    fn send(&mut self, message: &M) -> Result<(), LinkError>;
}

/// The guest's end of an open link.
pub struct Guest {
    /// What the host says.
    pub receiver: Box<dyn Receiver<ToGuest>>,
    /// What it is told.
    pub sender: Box<dyn Sender<ToHost>>,
}

/// A way to the host.
pub trait Transport {
    /// Opens it. Once.
    fn open(&self) -> io::Result<Guest>;

    /// Says that nothing more comes, where the end of this process does not say it, and waits until that and all before it is on its way.
    fn close(&self) {}
}

/// Reads packets.
#[derive(Debug)]
pub struct StreamReceiver<R, M> {
    stream: R,
    decoder: Decoder<M>,
    buffer: Box<[u8]>,
    unread: std::ops::Range<usize>,
}

impl<R: Read, M: Message> StreamReceiver<R, M> {
    /// Reads packets from `stream`.
    pub fn new(stream: R) -> Self {
        let buffer = vec![0; 64 * 1024].into_boxed_slice();
        Self { stream, decoder: Decoder::default(), buffer, unread: 0..0 }
    }
}

impl<R: Read + std::marker::Send, M: Message> Receiver<M> for StreamReceiver<R, M> {
    fn receive(&mut self) -> Result<Option<M>, LinkError> {
        loop {
            let mut unread = &self.buffer[self.unread.clone()];
            let message = self.decoder.take(&mut unread)?;
            self.unread.start = self.unread.end - unread.len();
            if message.is_some() {
                return Ok(message);
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) if self.decoder.is_at_boundary() => return Ok(None),
                Ok(0) => return Err(LinkError::Cut),
                Ok(read) => self.unread = 0..read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Writes packets.
#[derive(Debug)]
pub struct StreamSender<W> {
    stream: W,
    packet: Vec<u8>,
}

impl<W: Write> StreamSender<W> {
    /// Writes packets to `stream`.
    pub fn new(stream: W) -> Self {
        Self { stream, packet: Vec::new() }
    }
}

impl<W: Write + std::marker::Send, M: Message> Sender<M> for StreamSender<W> {
    fn send(&mut self, message: &M) -> Result<(), LinkError> {
        self.packet.clear();
        encode(message, &mut self.packet)?;
        self.stream.write_all(&self.packet)?;
        Ok(())
    }
}

/// Where a guest finds its host. Written `virtio-serial:NAME`, `shared-memory:NAME`, `vsock:PORT`, `unix:PATH` or
/// `stdio`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A port of virtio-serial, by its name.
    VirtioSerial(String),
    /// The memory of the machine's ivshmem device, with a port of virtio-serial for its bell, by its name.
    SharedMemory(String),
    /// A port of the host (CID 2) over vsock.
    Vsock(u32),
    /// A Unix socket.
    Unix(PathBuf),
    /// Our own standard input and output, which nobody else has from then on.
    Stdio,
}

/// A text that is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a transport: expected virtio-serial:NAME, shared-memory:NAME, vsock:PORT, unix:PATH or stdio"
)]
pub struct BadAddress(String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match (kind, rest) {
            ("stdio", "") if text == kind => Ok(Self::Stdio),
            (_, "") => Err(bad()),
            ("virtio-serial", name) if !name.contains('/') => Ok(Self::VirtioSerial(name.to_owned())),
            ("shared-memory", name) if !name.contains('/') => Ok(Self::SharedMemory(name.to_owned())),
            ("vsock", port) => port.parse().map(Self::Vsock).map_err(|_| bad()),
            ("unix", path) => Ok(Self::Unix(path.into())),
            _ => Err(bad()),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::VirtioSerial(name) => write!(out, "virtio-serial:{name}"),
            Self::SharedMemory(name) => write!(out, "shared-memory:{name}"),
            Self::Vsock(port) => write!(out, "vsock:{port}"),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
            Self::Stdio => out.write_str("stdio"),
        }
    }
}

/// Packets over two streams, which may be both halves of one.
fn over(
    reads: impl Read + std::marker::Send + 'static,
    writes: impl Write + std::marker::Send + 'static,
) -> Guest {
    Guest { receiver: Box::new(StreamReceiver::new(reads)), sender: Box::new(StreamSender::new(writes)) }
}

impl Transport for Address {
    fn open(&self) -> io::Result<Guest> {
        match self {
            Self::VirtioSerial(name) => {
                let port = open_port(name)?;
                Ok(over(port.try_clone()?, port))
            }
            Self::SharedMemory(name) => shared_memory(name),
            Self::Vsock(port) => {
                let socket = vsock(*port)?;
                Ok(over(socket.try_clone()?, socket))
            }
            Self::Unix(path) => {
                let socket = std::os::unix::net::UnixStream::connect(path)?;
                Ok(over(socket.try_clone()?, socket))
            }
            Self::Stdio => stdio(),
        }
    }
}

/// Takes both streams away from whatever else would read or print, a command that we start among them.
#[cfg(target_os = "linux")]
fn stdio() -> io::Result<Guest> {
    use std::os::fd::AsFd as _;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let (input, output) = (io::stdin(), io::stdout());
    let reads = File::from(input.as_fd().try_clone_to_owned()?);
    let writes = File::from(output.as_fd().try_clone_to_owned()?);
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(over(reads, writes))
}

#[cfg(not(target_os = "linux"))]
fn stdio() -> io::Result<Guest> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "a link over standard streams needs Linux"))
}

fn open_port(name: &str) -> io::Result<File> {
    File::options().read(true).write(true).open(virtio_port(name)?)
}

#[cfg(target_os = "linux")]
fn shared_memory(bell: &str) -> io::Result<Guest> {
    let port = open_port(bell)?;
    let (reader, writer) = crate::shared::SharedMemory::of_this_machine()?.guest(port.try_clone()?, port);
    Ok(over(reader, writer))
}

#[cfg(not(target_os = "linux"))]
fn shared_memory(_: &str) -> io::Result<Guest> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "shared memory needs Linux"))
}

/// The device of a port, whose name only sysfs tells where there is no udev.
fn virtio_port(name: &str) -> io::Result<PathBuf> {
    const PORTS: &str = "/sys/class/virtio-ports";
    for entry in std::fs::read_dir(PORTS)? {
        let entry = entry?;
        let found = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim_end() == name {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no virtio-serial port is named `{name}` in {PORTS}"),
    ))
}

#[cfg(target_os = "linux")]
fn vsock(port: u32) -> io::Result<File> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
    use std::os::fd::AsRawFd;
    /// VMADDR_CID_HOST of include/uapi/linux/vm_sockets.h.
    const HOST: u32 = 2;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    Ok(socket.into())
}

#[cfg(not(target_os = "linux"))]
fn vsock(_: u32) -> io::Result<File> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "vsock needs Linux"))
}
