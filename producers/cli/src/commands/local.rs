//! `run` by way of this machine's node agent: the command runs as the caller, on the caller's own streams, and is watched by
//! the probe that the agent has loaded.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use glasshouse_backends::LentStreams;
use glasshouse_execution::{EngineReport, ExecutionSpec};
use glasshouse_runner::gate::PolicyGate;
use glasshouse_runner::local::{LocalAnswer, LocalRequest, ask, read_answer};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::args::{RunArgs, UseAgent};

/// What is handed on to the command.
const SIGNALS: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Whether the agent is to run the command; an error if it has to and cannot.
pub(crate) fn is_wanted(args: &RunArgs) -> anyhow::Result<bool> {
    // What only a run of its own can do.
    let own = [
        ("--nats", args.bus.nats.is_some()),
        ("--guest", args.guest),
        ("--id", args.id.is_some()),
        ("--bpf-dir", args.bpf_dir.is_some()),
    ];
    let own = own.into_iter().find_map(|(name, is_set)| is_set.then_some(name));
    let socket = args.socket.display();
    match args.agent {
        UseAgent::Never => Ok(false),
        UseAgent::Always => {
            if let Some(name) = own {
                bail!("{name} is not for a command that the node agent runs (--agent always)");
            }
            let there = std::fs::metadata(&args.socket);
            let there = there.with_context(|| {
                format!("there is no node agent at {socket}: start glasshouse-node-agent as root, or say where with --socket")
            })?;
            ensure!(there.file_type().is_socket(), "{socket} is no socket");
            Ok(true)
        }
        UseAgent::Auto => {
            let needs = super::run::watches(args)
                || !args.sandbox.limit.is_empty()
                || args.sandbox.sandbox != crate::sandbox::Sandbox::None;
            let is_there =
                || std::fs::metadata(&args.socket).is_ok_and(|there| there.file_type().is_socket());
            Ok(needs && own.is_none() && !nix::unistd::geteuid().is_root() && is_there())
        }
    }
}

/// Has the agent run it; gives what the engine would have, and the receipt's bytes.
pub(crate) async fn run(
    args: &RunArgs,
    spec: &ExecutionSpec,
    gate: &PolicyGate,
) -> anyhow::Result<(EngineReport, Option<Vec<u8>>)> {
    // The agent has its own; these are the caller's.
    if let Err(reason) = gate.judge(spec) {
        return Ok((
            report(spec, LocalAnswer::refused(format!("enforcement `policy` refused it: {reason}"))),
            None,
        ));
    }
    // Before anything is started: what comes from here on is the command's.
    let (send, mut signals) = mpsc::channel(16);
    for handed in SIGNALS {
        forward(handed, send.clone())?;
    }
    let (lent, streams, is_terminal) = LentStreams::new().context("cannot hand the standard streams on")?;
    let request = request(spec, is_terminal)?;
    let asked = ask(&args.socket, &request, &streams).map_err(|error| explain(args, error))?;
    // The command's alone: who reads them sees its end.
    drop(streams);
    let (mut answers, mut to) = asked.into_split();
    let (abort, aborted) = watch::channel(false);
    let answer = {
        let mut answer = std::pin::pin!(read_answer(&mut answers));
        loop {
            tokio::select! {
                answer = &mut answer => break answer,
                Some(signal) = signals.recv() => hand_on(&mut to, signal).await,
            }
        }
    };
    let shown = {
        let mut shown = std::pin::pin!(lent.finish(aborted));
        loop {
            tokio::select! {
                shown = &mut shown => break shown,
                Some(_) = signals.recv() => drop(abort.send(true)),
            }
        }
    };
    let mut answer = answer.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            anyhow::anyhow!("the node agent is gone: how the command ended is not known")
        }
        _ => anyhow::Error::from(error).context("the node agent's answer"),
    })?;
    answer.problems.extend(shown.err().map(|error| error.to_string()));
    let receipt = answer.receipt.take();
    Ok((report(spec, answer), receipt))
}

/// Passes a signal on from now on, unless the caller has it ignored (nohup).
fn forward(handed: Signal, to: mpsc::Sender<u8>) -> anyhow::Result<()> {
    if is_ignored(handed) {
        return Ok(());
    }
    let mut came = signal(SignalKind::from_raw(handed as i32)).context("cannot listen for signals")?;
    tokio::spawn(async move { while came.recv().await.is_some() && to.send(handed as u8).await.is_ok() {} });
    Ok(())
}

#[allow(unsafe_code, reason = "reading what a signal does has no safe API")]
fn is_ignored(handed: Signal) -> bool {
    // SAFETY: nothing is set; the kernel fills plain data.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(handed as i32, std::ptr::null(), &raw mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

async fn hand_on(to: &mut OwnedWriteHalf, signal: u8) {
    if let Err(error) = to.write_all(&[signal]).await {
        tracing::debug!(%error, "a signal was not handed on");
    }
}

fn request(spec: &ExecutionSpec, is_terminal: bool) -> anyhow::Result<LocalRequest> {
    let here = std::env::current_dir().context("cannot read the working directory")?;
    let workdir: PathBuf = spec.workdir.as_ref().map_or_else(|| here.clone(), |dir| here.join(dir));
    // There is no call that only reads it.
    let mask = umask(Mode::empty());
    umask(mask);
    Ok(LocalRequest {
        argv: spec.argv.clone(),
        env: std::env::vars_os().collect::<Vec<(OsString, OsString)>>(),
        workdir: workdir.into(),
        umask: mask.bits(),
        is_terminal,
        profile: spec.profile,
        profile_required: spec.profile_required,
        lossless: spec.lossless,
        wait_for_descendants: spec.wait_for_descendants,
        sandbox: spec.sandbox.clone(),
        limits: spec.limits,
        labels: spec.labels.clone().into_iter().collect(),
        policies: spec.policies.clone(),
        redaction: spec.redaction.clone(),
        trace: glasshouse_telemetry::current_traceparent(),
    })
}

fn explain(args: &RunArgs, error: io::Error) -> anyhow::Error {
    let socket = args.socket.display();
    let what = match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{socket} is not for this user: the agent's --socket-group and --socket-mode say for whom it is"
        ),
        io::ErrorKind::ConnectionRefused => format!("no node agent listens at {socket}"),
        _ => format!("cannot ask the node agent at {socket}"),
    };
    anyhow::Error::from(error).context(format!("{what} (--agent never runs the command without it)"))
}

fn report(spec: &ExecutionSpec, answer: LocalAnswer) -> EngineReport {
    EngineReport {
        id: answer.execution.unwrap_or(spec.id),
        outcome: answer.outcome,
        profiled: answer.profiled,
        unprofiled: answer.unprofiled,
        sealed: None,
        failed: None,
        output: Default::default(),
        sink_errors: Vec::new(),
        cleanup_errors: answer.problems,
        start_unix_ns: None,
        end_unix_ns: None,
    }
}
