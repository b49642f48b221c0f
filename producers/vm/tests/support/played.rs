//! A guest that is played over a real link, without a machine.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::shared::SharedMemory;
use glasshouse_guest_link::{
    Drained, Exit, Hello, Receiver as _, Sender as _, Status, StreamReceiver, StreamSender, ToGuest, ToHost,
};
use glasshouse_schema::frame::{FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::ids::{ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::Attached;
use glasshouse_schema::{EncodedFrame, FrameWriter};

/// The host, as a played guest sees it.
pub(crate) struct Host {
    pub(crate) socket: UnixStream,
    /// The memory that it shares, if it does.
    memory: Option<File>,
    hears: StreamReceiver<Box<dyn Read + Send>, ToGuest>,
    says: StreamSender<Box<dyn Write + Send>>,
    pub(crate) spec: Option<glasshouse_guest_link::Spec>,
    pub(crate) chain: Option<FrameWriter>,
}

impl Host {
    pub(crate) fn at(link: &Path) -> Self {
        Self::over(UnixStream::connect(link).unwrap(), None)
    }

    /// By memory that it shares, with the socket as the bell, or by the socket alone.
    pub(crate) fn over(socket: UnixStream, shared: Option<SharedMemory>) -> Self {
        let (hears, says) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
        let memory = shared.as_ref().map(|shared| File::from(shared.file().try_clone().unwrap()));
        let (hears, says): (Box<dyn Read + Send>, Box<dyn Write + Send>) = match shared {
            None => (Box::new(hears), Box::new(says)),
            Some(shared) => {
                let (reader, writer) = shared.guest(hears, says);
                (Box::new(reader), Box::new(writer))
            }
        };
        let (hears, says) = (StreamReceiver::new(hears), StreamSender::new(says));
        Self { socket, memory, hears, says, spec: None, chain: None }
    }

    /// Changes a counter in the memory, and rings, so that it is looked at.
    pub(crate) fn forge(&mut self, at: u64, forged: impl FnOnce(u64) -> u64) {
        let memory = self.memory.as_ref().unwrap();
        let mut counter = [0; 8];
        memory.read_exact_at(&mut counter, at).unwrap();
        let counter = forged(u64::from_le_bytes(counter));
        memory.write_all_at(&counter.to_le_bytes(), at).unwrap();
        // The host may have had enough.
        let _ = self.socket.write_all(&[0]);
    }

    /// Hears nothing until the host has had enough.
    pub(crate) fn is_deaf(&mut self) {
        while self.socket.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
    }

    pub(crate) fn say(&mut self, message: ToHost) {
        // The host may have had enough.
        let _ = self.says.send(&message);
    }

    pub(crate) fn hear(&mut self) -> Option<ToGuest> {
        self.hears.receive().ok().flatten()
    }

    /// Honest until the command runs.
    pub(crate) fn up_to_running(&mut self) {
        self.say(ToHost::Hello(Hello {
            probe: "0".into(),
            kernel: "0".into(),
            arch: "x86_64".into(),
            btf: true,
            is_init: true,
            problems: Vec::new(),
        }));
        while let Some(message) = self.hear() {
            match message {
                ToGuest::Spec(spec) => {
                    self.spec = Some(*spec);
                    self.say(ToHost::Held);
                }
                ToGuest::Attach(attach) => {
                    let execution = self.spec.as_ref().unwrap().execution;
                    self.chain = Some(chain(execution, attach.node, Vantage::Guest, attach.epoch));
                    self.say(ToHost::Attached(Ok(Attached {
                        vantage: Vantage::Guest,
                        controller: "played".into(),
                        hooks: Vec::new(),
                        blind_spots: Vec::new(),
                    })));
                }
                ToGuest::Release => {
                    self.say(ToHost::Running);
                    return;
                }
                _ => {}
            }
        }
    }

    /// Honest from the exit to the end; `seal` is what it says of its chain.
    pub(crate) fn end(&mut self, seal: impl FnOnce(&mut Self)) {
        self.say(ToHost::Exit(Exit { status: Status::Code(0), rusage: None }));
        let mut seal = Some(seal);
        while let Some(message) = self.hear() {
            match message {
                ToGuest::Drain(_) => self.say(ToHost::Drained(Drained { ran_into: None, error: None })),
                ToGuest::Seal => seal.take().unwrap()(self),
                ToGuest::Shutdown => return,
                _ => {}
            }
        }
    }

    pub(crate) fn seal(&mut self) -> EncodedFrame {
        self.chain.take().unwrap().seal(SealTotals::default(), Seal::default()).pop().unwrap()
    }
}

pub(crate) fn chain(execution: ExecutionId, node: NodeId, vantage: Vantage, epoch: u64) -> FrameWriter {
    FrameWriter::new(FrameWriterConfig::new(execution, node, vantage, epoch, 0))
}

pub(crate) fn frame(bytes: Vec<u8>) -> ToHost {
    ToHost::Frame(Bytes(bytes))
}
