//! One module per subcommand.

pub(crate) mod artifact;
pub(crate) mod batch;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod executions;
pub(crate) mod image;
#[cfg(target_os = "linux")]
pub(crate) mod local;
#[cfg(not(target_os = "linux"))]
#[path = "local_stub.rs"]
pub(crate) mod local;
pub(crate) mod nats;
pub(crate) mod policy;
pub(crate) mod receipt;
pub(crate) mod run;
pub(crate) mod shell;
pub(crate) mod spool;
pub(crate) mod submit;
pub(crate) mod up;
pub(crate) mod verdict;
pub(crate) mod verify;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::Context;
use glasshouse_eval::Policy;
use glasshouse_nats::{Document, ErrorKind, StreamStart, Tail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;

use crate::args::LogArgs;
use crate::say;

/// Sets up logs on stderr, and OpenTelemetry when the standard `OTEL_*` variables ask for it.
pub(crate) fn telemetry(service: &'static str, log: &LogArgs) -> anyhow::Result<glasshouse_telemetry::Guard> {
    let level = match log.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    glasshouse_telemetry::init(service, level, log.json_logs).context("cannot set up logs and traces")
}

/// Reads a file whose size is bounded, or standard input for `-`.
pub(crate) fn read_bounded(path: &Path, limit: usize, what: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let at_most = limit as u64 + 1;
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().lock().take(at_most).read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|file| file.take(at_most).read_to_end(&mut bytes)),
    };
    read.with_context(|| format!("cannot read the {what} {}", path.display()))?;
    anyhow::ensure!(bytes.len() <= limit, "the {what} {} is larger than {limit} bytes", path.display());
    Ok(bytes)
}

/// Reads policies; every error names the file, the line and the column.
pub(crate) fn read_policies(paths: &[std::path::PathBuf]) -> anyhow::Result<Vec<Policy>> {
    paths
        .iter()
        .map(|path| {
            let bytes = read_bounded(path, 1024 * 1024, "policy")?;
            let text =
                String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
            Policy::parse(&text, &path.display().to_string()).map_err(|error| anyhow::anyhow!("{error}"))
        })
        .collect()
}

/// Writes to standard output; a reader that went away (`| head`) is no error, and ends what follows a stream.
pub(crate) fn print(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            if let Some(stop) = STOP.get() {
                stop.send_replace(true);
            }
            Ok(())
        }
        result => result.context("cannot write to standard output"),
    }
}

/// One JSON document per line.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    print(line)
}

/// Where a tail begins.
pub(crate) fn start(all: bool) -> StreamStart {
    if all { StreamStart::Oldest } else { StreamStart::New }
}

/// Whether to stop following a stream: somebody asked us to, or nobody reads what we print.
static STOP: OnceLock<watch::Sender<bool>> = OnceLock::new();

/// Listens from the first call on, so that no signal falls between two documents.
pub(crate) fn stopping() -> watch::Receiver<bool> {
    let stop = STOP.get_or_init(|| {
        let stop = watch::Sender::new(false);
        let tell = stop.clone();
        tokio::spawn(async move {
            glasshouse_telemetry::stop_signal().await;
            tell.send_replace(true);
        });
        let tell = stop.clone();
        // It ends with the process; without it only the next document finds out.
        let watcher = std::thread::Builder::new().name("glasshouse-reader".into()).stack_size(128 * 1024);
        let watcher = watcher.spawn(move || {
            if reader_left() {
                tell.send_replace(true);
            }
        });
        if let Err(error) = watcher {
            tracing::warn!(%error, "standard output's reader is not watched");
        }
        stop
    });
    stop.subscribe()
}

/// Returns once standard output is a pipe or a terminal that nobody is behind any more: never for a file.
fn reader_left() -> bool {
    let stdout = std::io::stdout();
    loop {
        let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) => {
                let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
                return watched[0].revents().is_some_and(|events| events.intersects(gone));
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// The next document, or `None` once Ctrl-C, SIGTERM or a reader that went away asks to stop. A document that cannot be
/// read is named and passed by.
pub(crate) async fn next_unless_stopped(tail: &mut Tail) -> anyhow::Result<Option<Document>> {
    let mut stopping = stopping();
    loop {
        tokio::select! {
            biased;
            // The sender is never dropped.
            _ = stopping.wait_for(|stop| *stop) => return Ok(None),
            next = tail.next() => match next {
                Ok(document) => return Ok(Some(document)),
                Err(error) if error.kind() == ErrorKind::Poison => say(format_args!("glasshouse: {error}")),
                Err(error) => return Err(error.into()),
            },
        }
    }
}
