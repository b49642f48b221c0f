//! The VMM of a machine: its files and process, and its guest up to the first connection.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};

use glasshouse_execution::backend::{BackendError, ExitReport, ExitStatus, StartedProcess, StopSignal};
use glasshouse_execution::spec::{ExecutionSpec, OutputTap, StdStreams};
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::subject::OutputStream;

use super::listener::{Listener, Opened};
use super::{CONSOLE_BYTES, DOING, END_TOLD_WITHIN, Machine, failed, not_the_command};
use crate::session::Session;
use crate::vmm::GuestLink;
use crate::{dirs, nats};

impl Machine {
    /// Makes the VMM's files and the socket that its guest connects to.
    pub(super) async fn prepare_vmm(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        let dir = dirs::make(dirs::Kind::Machine).map_err(failed("making the machine's directory"))?;
        // From here on `cleanup` removes it.
        let dir = Arc::new(dir);
        self.state().dir = Some(Arc::clone(&dir));
        let over_nats = match self.vmm.nats() {
            Some(issuer) => Some(nats::open(issuer, spec, dir.path(), self.vmm.as_ref()).await?),
            None => None,
        };
        let launch = self.vmm.command(spec, dir.path()).await?;
        let link = self.vmm.link(dir.path());
        let listening = failed("listening for the guest");
        let (listener, theirs) = match (over_nats, link) {
            (Some(end), _) => (Listener::Nats(Box::new(end)), None),
            (None, GuestLink::Socket(path)) => (Listener::at(path).map_err(listening)?, None),
            (None, GuestLink::Streams) => {
                let (ours, theirs) = UnixStream::pair().map_err(listening)?;
                (Listener::Streams(ours), Some(theirs))
            }
        };
        let streams = match (&launch.shared, theirs) {
            (Some(shared), _) => {
                StdStreams::Connected { stdin: Arc::clone(shared.file()), output: self.console() }
            }
            (None, Some(theirs)) => self.as_link(theirs).map_err(failed("connecting the guest's streams"))?,
            (None, None) => StdStreams::Handed { stdin: Arc::from([]), output: self.console() },
        };
        let vmm = ExecutionSpec {
            argv: launch.argv,
            sandbox: launch.sandbox,
            // A VMM needs nothing of ours, and its guest may come to know what it has.
            env: Some(vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())]),
            workdir: Some(dir.path().to_owned()),
            streams,
            profile: ProfilingMode::Disabled,
            profile_required: false,
            lossless: false,
            wait_for_descendants: false,
            limits: launch.limits,
            ..spec.clone()
        };
        self.process.prepare(&vmm).await?;
        let mut state = self.state();
        (state.listener, state.vmm, state.shared) = (Some(listener), Some(vmm), launch.shared);
        state.image = launch.image;
        Ok(())
    }

    /// Takes what a VMM prints for its guest's console.
    fn console(&self) -> OutputTap {
        let console = Arc::clone(&self.console);
        OutputTap::new(move |_, bytes| {
            let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
            console.extend(bytes);
            let over = console.len().saturating_sub(CONSOLE_BYTES);
            console.drain(..over);
        })
    }

    /// Streams of which the first two are a link, and the third is the console.
    fn as_link(&self, link: UnixStream) -> std::io::Result<StdStreams> {
        let (stdin, console) = (Arc::new(link.try_clone()?.into()), self.console());
        let output = OutputTap::new(move |stream, bytes| match stream {
            // Nobody listens any more where it fails.
            OutputStream::Stdout => drop((&link).write_all(bytes)),
            OutputStream::Stderr => console.take(stream, bytes),
        });
        Ok(StdStreams::Connected { stdin, output })
    }

    /// Makes the VMM's process, held before its first instruction.
    pub(super) async fn start_vmm(&self) -> Result<StartedProcess, BackendError> {
        let vmm = self.state().vmm.take();
        let vmm = vmm.ok_or_else(|| BackendError::failed(DOING, "it was not prepared"))?;
        self.process.start(&vmm).await.map_err(not_the_command)
    }

    /// Lets the VMM go, boots its guest, and waits until that connects.
    pub(super) async fn boot_vmm(&self) -> Result<UnixStream, BackendError> {
        let (dir, listener) = {
            let mut state = self.state();
            (state.dir.clone(), state.listener.take())
        };
        let (Some(dir), Some(listener)) = (dir, listener) else {
            return Err(BackendError::failed(DOING, "it was not started"));
        };
        self.process.release().await.map_err(not_the_command)?;
        self.watch_vmm();
        tokio::select! {
            booted = self.vmm.boot(dir.path()) => match booted {
                Ok(()) => {}
                Err(BackendError::Failed { action, reason }) => {
                    return Err(self.explained(&format!("{action}: {reason}")).await);
                }
                Err(error) => return Err(error),
            },
            _ = self.vmm_ended() => return Err(self.explained("the VMM ended before its guest ran").await),
        }
        let within = self.vmm.speaks_within();
        let Opened { socket, broken } = tokio::select! {
            accepted = listener.accept() => accepted.map_err(failed("waiting for the guest"))?,
            _ = self.vmm_ended() => return Err(self.explained("the guest never spoke").await),
            () = tokio::time::sleep(within) => {
                return Err(self.explained(&format!("the guest did not speak within {within:?}")).await);
            }
        };
        self.state().broken = broken;
        Ok(socket)
    }

    /// Ends the session when what carries its link breaks, where its socket would not tell: with the reason, or when the VMM is gone
    /// and what it sent has had its time.
    pub(super) fn watch_link(&self, session: &Session) {
        let Some(broken) = self.state().broken.take() else { return };
        let (session, mut gone) = (session.clone(), self.gone.subscribe());
        tokio::spawn(async move {
            let ended = async {
                let _ = gone.wait_for(Option::is_some).await;
                tokio::time::sleep(END_TOLD_WITHIN / 2).await;
            };
            tokio::select! {
                // Without a reason it ended in order, and the socket has told, or nobody can tell before the VMM is gone.
                Ok(reason) = broken => session.end(&reason),
                () = ended => session.end("the guest is gone"),
            }
        });
    }

    /// A machine elsewhere ends, for us, with its guest's link.
    pub(super) fn end_with(&self, session: &Session) {
        if !self.vmm.is_elsewhere() {
            return;
        }
        let (process, session) = (Arc::clone(&self.process), session.clone());
        tokio::spawn(async move {
            let _ = session.until(|_| None::<()>).await;
            // There is nothing that could fail.
            let _ = process.kill(StopSignal::Kill).await;
        });
    }

    /// Waits for the VMM's end, once, so that everybody hears of it.
    fn watch_vmm(&self) {
        let (process, gone) = (Arc::clone(&self.process), self.gone.clone());
        tokio::spawn(async move {
            let how = match process.wait().await {
                Ok(ExitReport { status: ExitStatus::Code(code), .. }) => format!("exit code {code}"),
                Ok(ExitReport { status: ExitStatus::Signal(signal), .. }) => {
                    glasshouse_execution::outcome::signal_name(signal)
                }
                Err(error) => error.to_string(),
            };
            gone.send_replace(Some(how));
        });
    }
}
