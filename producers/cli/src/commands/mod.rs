//! One module per subcommand.

pub(crate) mod doctor;
pub(crate) mod nats;
pub(crate) mod policy;
pub(crate) mod receipt;
pub(crate) mod run;
pub(crate) mod shell;
pub(crate) mod up;
pub(crate) mod verdict;

use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context;
use glasshouse_eval::Policy;
use glasshouse_nats::{Document, ErrorKind, StreamStart, Tail};

use crate::args::LogArgs;

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

/// Writes to standard output; a reader that went away (`| head`) is no error.
pub(crate) fn print(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
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

/// The next document, or `None` once Ctrl-C or SIGTERM asks to stop. A document that cannot be read is named and passed
/// by.
pub(crate) async fn next_unless_stopped(tail: &mut Tail) -> anyhow::Result<Option<Document>> {
    loop {
        tokio::select! {
            () = glasshouse_telemetry::stop_signal() => return Ok(None),
            next = tail.next() => match next {
                Ok(document) => return Ok(Some(document)),
                Err(error) if error.kind() == ErrorKind::Poison => eprintln!("glasshouse: {error}"),
                Err(error) => return Err(error.into()),
            },
        }
    }
}
