//! Our end of the link: who speaks, who listens, and standard input on its way to the command.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context as _;
use glasshouse_execution::spec::OutputTap;
use glasshouse_guest_link::credit::{Gate, Meter};
use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::{Clock, Guest, LinkError, Receiver, Sender, Stream, ToGuest, ToHost};
use glasshouse_schema::subject::OutputStream;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::UnboundedReceiver;

/// How often the host is told that we live.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Speaks to the host, from any thread.
#[derive(Clone)]
pub(crate) struct Out(Arc<Speaker>);

struct Speaker {
    sender: Mutex<Box<dyn Sender<ToHost>>>,
    stdout: Gate,
    stderr: Gate,
}

impl Out {
    /// Says it. A host that is gone is noticed by whoever listens to it.
    pub(crate) fn say(&self, message: &ToHost) {
        if let Err(error) = self.send(message) {
            eprintln!("glasshouse-guest-probe: the host cannot be told: {error}");
        }
    }

    fn send(&self, message: &ToHost) -> Result<(), LinkError> {
        self.0.sender.lock().unwrap_or_else(PoisonError::into_inner).send(message)
    }

    /// Sends what the command prints, as fast as the host gives credit for it.
    pub(crate) fn tap(&self) -> OutputTap {
        let out = self.clone();
        OutputTap::new(move |stream, mut bytes| {
            let gate = match stream {
                OutputStream::Stdout => &out.0.stdout,
                OutputStream::Stderr => &out.0.stderr,
            };
            while !bytes.is_empty() {
                let Some(length) = gate.take(bytes.len()) else { return };
                let (now, rest) = bytes.split_at(length);
                let now = Bytes(now.to_vec());
                out.say(&match stream {
                    OutputStream::Stdout => ToHost::Stdout(now),
                    OutputStream::Stderr => ToHost::Stderr(now),
                });
                bytes = rest;
            }
        })
    }

    fn credit(&self, stream: Stream, bytes: u32) {
        let gate = match stream {
            Stream::Stdout => &self.0.stdout,
            Stream::Stderr => &self.0.stderr,
        };
        if let Err(error) = gate.give(bytes) {
            eprintln!("glasshouse-guest-probe: the host breaks the protocol: {error}");
        }
    }

    fn close(&self) {
        self.0.stdout.close();
        self.0.stderr.close();
    }
}

/// The link with its threads, which end with it.
pub(crate) struct Link {
    pub(crate) out: Out,
    /// What the host wants, standard input and credit left out; ends with the host.
    pub(crate) host: UnboundedReceiver<ToGuest>,
    /// The command's standard input, until the command has it.
    pub(crate) stdin: Option<OwnedFd>,
}

impl Link {
    pub(crate) fn begin(guest: Guest) -> anyhow::Result<Self> {
        let Guest { receiver, sender } = guest;
        let out = Out(Arc::new(Speaker {
            sender: Mutex::new(sender),
            stdout: Gate::default(),
            stderr: Gate::default(),
        }));
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("making a pipe")?;
        let (input, inputs) = mpsc::channel();
        let meter = Arc::new(Meter::default());
        spawn("stdin", {
            let (out, meter) = (out.clone(), Arc::clone(&meter));
            move || feed(write, &inputs, &meter, &out)
        })?;
        let (wanted, host) = tokio::sync::mpsc::unbounded_channel();
        spawn("listen", {
            let out = out.clone();
            move || listen(receiver, &out, input, &meter, &wanted)
        })?;
        Ok(Self { out, host, stdin: Some(read) })
    }

    /// Tells the host that we live, from now on and as long as it can be told.
    pub(crate) fn beat(&self) -> anyhow::Result<()> {
        let out = self.out.clone();
        spawn("heartbeat", move || {
            while out.send(&ToHost::Heartbeat(clock())).is_ok() {
                std::thread::sleep(HEARTBEAT);
            }
        })
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).context("starting a thread")?;
    Ok(())
}

fn clock() -> Clock {
    let ns = |clock| {
        clock_gettime(clock).map_or(0, |time| i64::try_from(Duration::from(time).as_nanos()).unwrap_or(0))
    };
    Clock {
        boot_ns: u64::try_from(ns(ClockId::CLOCK_BOOTTIME)).unwrap_or(0),
        unix_ns: ns(ClockId::CLOCK_REALTIME),
    }
}

fn listen(
    mut receiver: Box<dyn Receiver<ToGuest>>,
    out: &Out,
    input: mpsc::Sender<Vec<u8>>,
    meter: &Meter,
    wanted: &tokio::sync::mpsc::UnboundedSender<ToGuest>,
) {
    let mut input = Some(input);
    loop {
        match receiver.receive() {
            Ok(Some(ToGuest::Stdin(bytes))) => {
                let fits = meter.receive(bytes.0.len());
                let sent = fits.is_ok() && input.as_ref().is_some_and(|input| input.send(bytes.0).is_ok());
                if !sent {
                    eprintln!("glasshouse-guest-probe: standard input that was not to come");
                }
            }
            Ok(Some(ToGuest::StdinEnd)) => input = None,
            Ok(Some(ToGuest::Credit((stream, bytes)))) => out.credit(stream, bytes),
            Ok(Some(message)) => {
                if wanted.send(message).is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                eprintln!("glasshouse-guest-probe: the host cannot be heard: {error}");
                break;
            }
        }
    }
    out.close();
}

/// Writes standard input to its pipe. What nobody reads any more is thrown away, as a pipe's writer would be told.
fn feed(pipe: OwnedFd, inputs: &mpsc::Receiver<Vec<u8>>, meter: &Meter, out: &Out) {
    let mut pipe = Some(std::fs::File::from(pipe));
    for bytes in inputs {
        if let Some(file) = &mut pipe
            && std::io::Write::write_all(file, &bytes).is_err()
        {
            pipe = None;
        }
        if let Some(credit) = meter.take(bytes.len()) {
            out.say(&ToHost::Credit(credit));
        }
    }
}
