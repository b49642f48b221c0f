//! What a command line and the node agent of its machine say to each other over the agent's Unix socket.
//!
//! ```text
//! command line                                   agent
//!   magic, length, request, three descriptors ───►  who is it? (SO_PEERCRED) ─► runs the command as that user
//!   a byte per signal ───────────────────────────►  gives it to the command
//!   end of file ─────────────────────────────────►  kills the command
//!   ◄─────────────────────── magic, length, answer  outcome, and the receipt if there is one
//! ```
//! The descriptors are the caller's standard streams; the command gets them as they are. Who the caller is the kernel says,
//! never the request.

#![allow(unsafe_code, reason = "takes ownership of the descriptors that the kernel has just received for us")]

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::{Outcome, PolicyRef, Profiled, ProfilingMode, RedactionRules, Unprofiled};
use glasshouse_schema::{Limits, SandboxRequest};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Where the agent listens unless somebody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/glasshouse/agent.sock";
/// Begins every message; its last byte is the version of all that is said here.
const MAGIC: [u8; 4] = *b"ghl\x01";
/// Magic and length.
const HEADER_BYTES: usize = 8;
/// Largest request. The kernel takes about 2 MiB of arguments and environment.
pub const MAX_REQUEST_BYTES: usize = 8 << 20;
/// Largest answer; a receipt is bounded far below.
pub const MAX_ANSWER_BYTES: usize = 1 << 30;
/// Room that is made before anything of a message is there.
const READ_AT_ONCE: usize = 64 << 10;
/// Standard streams.
const STREAMS: usize = 3;

/// One command to run now, as whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "each is the field of the same name of an execution's spec")]
pub struct LocalRequest {
    pub argv: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    /// Absolute.
    pub workdir: OsString,
    /// The caller's file mode creation mask.
    pub umask: u32,
    /// The first stream is the other side of a terminal that the caller has made for the command.
    pub is_terminal: bool,
    pub profile: ProfilingMode,
    pub profile_required: bool,
    pub lossless: bool,
    pub wait_for_descendants: bool,
    pub sandbox: SandboxRequest,
    pub limits: Limits,
    pub labels: Vec<(String, String)>,
    pub policies: Vec<PolicyRef>,
    pub redaction: RedactionRules,
    /// W3C `traceparent` of the caller.
    pub trace: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAnswer {
    /// The execution; `None` if it was refused.
    pub execution: Option<ExecutionId>,
    /// How the command ended, or why it did not run.
    pub outcome: Outcome,
    /// What was watched.
    pub profiled: Option<Profiled>,
    /// Why nothing was.
    pub unprofiled: Option<Unprofiled>,
    /// What went wrong beside it.
    pub problems: Vec<String>,
    /// The receipt's canonical bytes.
    #[serde(with = "serde_bytes")]
    pub receipt: Option<Vec<u8>>,
}

impl LocalAnswer {
    /// The answer to what is not run.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self {
            execution: None,
            outcome: Outcome { exit_code: 125, error: Some(reason.into()), ..Outcome::default() },
            profiled: None,
            unprofiled: None,
            problems: Vec::new(),
            receipt: None,
        }
    }
}

fn bad(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = rmp_serde::to_vec_named(message).map_err(bad)?;
    let length = u32::try_from(body.len()).map_err(bad)?;
    Ok([&MAGIC[..], &length.to_le_bytes(), &body].concat())
}

/// The length that a header tells.
fn length(header: [u8; HEADER_BYTES], most: usize) -> io::Result<usize> {
    let (magic, length) = header.split_at(MAGIC.len());
    if magic[..3] != MAGIC[..3] {
        return Err(bad("the other side does not speak as Glasshouse does"));
    }
    if magic != MAGIC {
        return Err(bad("the other side is of another version of Glasshouse: use the same for both"));
    }
    let length = length.try_into().map_or(u32::MAX, u32::from_le_bytes) as usize;
    if length > most { Err(bad(format!("a message of {length} bytes is too long"))) } else { Ok(length) }
}

async fn body<T: DeserializeOwned>(from: impl AsyncRead + Unpin, length: usize) -> io::Result<T> {
    let mut bytes = Vec::with_capacity(length.min(READ_AT_ONCE));
    from.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    rmp_serde::from_slice(&bytes).map_err(bad)
}

/// Asks the agent at `socket` to run a command with these standard streams. Blocks, until the agent has read it.
pub fn ask(socket: &Path, request: &LocalRequest, streams: &[OwnedFd; STREAMS]) -> io::Result<UnixStream> {
    let stream = StdUnixStream::connect(socket)?;
    let message = encode(request)?;
    let fds = [0, 1, 2].map(|stream: usize| streams[stream].as_raw_fd());
    let (first, rest) = message.split_at(HEADER_BYTES);
    let with = [ControlMessage::ScmRights(&fds)];
    let sent =
        sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(first)], &with, MsgFlags::MSG_NOSIGNAL, None);
    let sent = if sent == Err(Errno::EPIPE) { HEADER_BYTES } else { sent? };
    let written = io::Write::write_all(&mut &stream, &first[sent..])
        .and_then(|()| io::Write::write_all(&mut &stream, rest));
    // Who refuses before the end of the request says so in its answer.
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Reads what a caller asks for, and its standard streams.
pub async fn read_request(stream: &mut UnixStream) -> io::Result<(LocalRequest, [OwnedFd; STREAMS])> {
    let mut header = [0; HEADER_BYTES];
    let (read, fds) = stream.async_io(Interest::READABLE, || receive(stream, &mut header)).await?;
    stream.read_exact(&mut header[read..]).await?;
    let streams = fds.try_into().map_err(|_| bad("a request comes with three descriptors"))?;
    let length = length(header, MAX_REQUEST_BYTES)?;
    Ok((body(stream, length).await?, streams))
}

/// Reads the first bytes and the descriptors that came with them.
fn receive(stream: &UnixStream, header: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; STREAMS]);
    let mut into = [IoSliceMut::new(header)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut into, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for of in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = of {
            // SAFETY: the kernel has just made them for us, and nobody else knows of them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(bad("a request comes with three descriptors"));
    }
    match message.bytes {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => Ok((read, fds)),
    }
}

/// Sends the answer.
pub async fn write_answer(mut to: impl AsyncWrite + Unpin, answer: &LocalAnswer) -> io::Result<()> {
    to.write_all(&encode(answer)?).await?;
    to.flush().await
}

/// Waits for the answer.
pub async fn read_answer(mut from: impl AsyncRead + Unpin) -> io::Result<LocalAnswer> {
    let mut header = [0; HEADER_BYTES];
    from.read_exact(&mut header).await?;
    let length = length(header, MAX_ANSWER_BYTES)?;
    body(from, length).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::ffi::OsStringExt;

    fn request() -> LocalRequest {
        let mut limits = Limits::default();
        limits.set_text("memory=1MiB").unwrap();
        LocalRequest {
            argv: vec!["sh".into(), OsString::from_vec(vec![0xff, 1])],
            env: vec![("A".into(), OsString::from_vec(vec![0xfe]))],
            workdir: "/".into(),
            umask: 0o22,
            is_terminal: false,
            profile: ProfilingMode::Host,
            profile_required: false,
            lossless: false,
            wait_for_descendants: false,
            sandbox: SandboxRequest::default(),
            limits,
            labels: vec![("a".into(), "b".into())],
            policies: Vec::new(),
            redaction: RedactionRules { path_prefixes: Vec::new(), tokens: true },
            trace: None,
        }
    }

    fn pipes() -> ([OwnedFd; STREAMS], Vec<std::fs::File>) {
        let pipes = [0, 1, 2].map(|_| nix::unistd::pipe().unwrap());
        let mut kept = Vec::new();
        let given = pipes.map(|(read, write)| {
            kept.push(read.into());
            write
        });
        (given, kept)
    }

    #[tokio::test]
    async fn a_request_comes_with_its_streams_and_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let (streams, mut kept) = pipes();
        let mut client = ask(&path, &request(), &streams).unwrap();
        drop(streams);
        let (mut server, _) = listener.accept().await.unwrap();
        let (read, given) = read_request(&mut server).await.unwrap();
        assert_eq!(read, request());
        let [_, stdout, _] = given;
        std::fs::File::from(stdout).write_all(b"printed").unwrap();
        let mut printed = String::new();
        kept[1].read_to_string(&mut printed).unwrap();
        assert_eq!(printed, "printed");
        let mut answer = LocalAnswer::refused("no");
        answer.receipt = Some(vec![0, 255, 7]);
        write_answer(&mut server, &answer).await.unwrap();
        assert_eq!(read_answer(&mut client).await.unwrap(), answer);
        drop(server);
        assert_eq!(read_answer(&mut client).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let (streams, _kept) = pipes();
        let fds: Vec<RawFd> = streams.iter().map(AsRawFd::as_raw_fd).collect();
        let good = encode(&request()).unwrap();
        let too_long = [&MAGIC[..], &u32::MAX.to_le_bytes()].concat();
        let other_version = [b"ghl\x02", &good[4..]].concat();
        for (bytes, fds) in [
            (&good[..], &fds[..2]),
            (&good[..], &[fds[0]; 4][..]),
            (&good[..], &[]),
            (&good[..20], &fds[..]),
            (&too_long[..], &fds[..]),
            (&other_version[..], &fds[..]),
            (&b"GET / HTTP/1.1\r\n\r\n"[..], &fds[..]),
            (&[&MAGIC[..], &[3, 0, 0, 0], b"abc"].concat()[..], &fds[..]),
        ] {
            let (client, server) = StdUnixStream::pair().unwrap();
            let with = [ControlMessage::ScmRights(fds)];
            let with = if fds.is_empty() { &with[..0] } else { &with[..] };
            sendmsg::<UnixAddr>(client.as_raw_fd(), &[IoSlice::new(bytes)], with, MsgFlags::empty(), None)
                .unwrap();
            drop(client);
            server.set_nonblocking(true).unwrap();
            let mut server = UnixStream::from_std(server).unwrap();
            read_request(&mut server).await.unwrap_err();
        }
    }
}
