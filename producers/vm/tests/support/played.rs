//! A guest that is played over a real link, without a machine.

use std::os::unix::net::UnixStream;
use std::path::Path;

use glasshouse_guest_link::message::Bytes;
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
    hears: StreamReceiver<UnixStream, ToGuest>,
    says: StreamSender<UnixStream>,
    pub(crate) spec: Option<glasshouse_guest_link::Spec>,
    pub(crate) chain: Option<FrameWriter>,
}

impl Host {
    pub(crate) fn at(link: &Path) -> Self {
        Self::over(UnixStream::connect(link).unwrap())
    }

    pub(crate) fn over(socket: UnixStream) -> Self {
        let (hears, says) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
        Self {
            socket,
            hears: StreamReceiver::new(hears),
            says: StreamSender::new(says),
            spec: None,
            chain: None,
        }
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
