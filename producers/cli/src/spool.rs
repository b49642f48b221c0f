//! Where `run` keeps what the bus does not take, and the options that say so.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use glasshouse_nats::{Spool, SpoolOptions, StreamPosition};
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::limits::parse_size;

use crate::args::BusArgs;

/// The directory with a directory per execution.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpoolDirArgs {
    /// Where events wait on disk that the NATS server did not take (default: /var/lib/glasshouse/spool for root, else
    /// $XDG_STATE_HOME/glasshouse/spool or ~/.local/state/glasshouse/spool)
    #[arg(long = "spool", env = "GLASSHOUSE_SPOOL", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// The spool of one run.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunSpoolArgs {
    #[command(flatten)]
    pub(crate) dir: SpoolDirArgs,
    /// How much of this run's events may wait there, at least 4MiB; 0 turns it off, and events that the server does not
    /// take are lost
    #[arg(long, env = "GLASSHOUSE_SPOOL_BYTES", value_name = "SIZE", default_value = "256MiB", value_parser = spool_bytes)]
    pub(crate) spool_bytes: u64,
}

#[derive(Debug, Args)]
pub(crate) struct SpoolCommand {
    #[command(subcommand)]
    pub(crate) action: SpoolAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SpoolAction {
    /// List what earlier runs could not publish, oldest first
    #[command(
        after_help = "Examples:\n  glasshouse spool list\n  glasshouse spool list --json | jq .messages"
    )]
    List(SpoolListArgs),
    /// Publish what earlier runs could not, oldest first, and remove it once the server has it
    #[command(after_help = SEND_HELP)]
    Send(SpoolSendArgs),
}

const SEND_HELP: &str = "\
Sending twice does no harm: the server and the aggregator know each event by its id. An execution of which the server has heard
nothing for longer than the aggregator's --heartbeat-grace has its receipt already; what is sent of it then is set aside as
dead letters.

Exit codes: 0 nothing is left, 1 something is, 125 it could not be tried

Examples:
  glasshouse spool send
  sudo glasshouse spool send --nats nats://127.0.0.1:4222
  glasshouse spool send --spool /srv/ci/spool --nats nats://bus:4222 --creds ci.creds";

#[derive(Debug, Args)]
pub(crate) struct SpoolListArgs {
    #[command(flatten)]
    pub(crate) dir: SpoolDirArgs,
    /// One JSON document per execution
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SpoolSendArgs {
    #[command(flatten)]
    pub(crate) dir: SpoolDirArgs,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
}

impl SpoolDirArgs {
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        self.dir.clone().or_else(default_dir).context(
            "neither HOME nor XDG_STATE_HOME says where to keep events: give a directory with --spool",
        )
    }

    /// The command that sends what is in `dir`, which may be another than where `send` would look.
    pub(crate) fn send_command(&self) -> String {
        match &self.dir {
            Some(dir) => format!("glasshouse spool send --spool {}", dir.display()),
            None => "glasshouse spool send".into(),
        }
    }
}

impl RunSpoolArgs {
    /// The spool of `execution` for the stream `events`; `None` if it is turned off.
    pub(crate) fn open(
        &self,
        execution: ExecutionId,
        events: &StreamPosition,
    ) -> anyhow::Result<Option<Spool>> {
        if self.spool_bytes == 0 {
            return Ok(None);
        }
        let options = SpoolOptions { max_bytes: self.spool_bytes, ..SpoolOptions::default() };
        let spool = Spool::open(self.dir.path()?.join(execution.to_string()), options)?;
        spool.set_destination(events.created_unix_ns)?;
        Ok(Some(spool))
    }
}

fn default_dir() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some("/var/lib/glasshouse/spool".into());
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Some(state?.join("glasshouse/spool"))
}

fn spool_bytes(text: &str) -> Result<u64, String> {
    match parse_size(text).map_err(|error| error.to_string())? {
        bytes if bytes == 0 || bytes >= SpoolOptions::MIN_BYTES => Ok(bytes),
        _ => Err(format!("`{text}` is too little: give at least 4MiB, or 0 for no spool")),
    }
}

/// A size for a person.
pub(crate) fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(spool_bytes("0").unwrap(), 0);
        assert_eq!(spool_bytes("256MiB").unwrap(), 256 << 20);
        assert_eq!(spool_bytes("4194304").unwrap(), 4 << 20);
        for bad in ["", "MiB", "-1", "12B", "1XB", "99999999999GiB", "1MiB"] {
            assert!(spool_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (human(0), human(1536), human(3 << 20)),
            ("0 B".into(), "1.5 KiB".into(), "3.0 MiB".into())
        );
    }
}
