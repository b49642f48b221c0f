//! A host within the guest: takes what a host would be told, writes it down as lines of JSON, and answers as a host that
//! wants the command run to its end. For a guest that is nobody's, and for tests without a machine.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc;

use crate::codec::LinkError;
use crate::credit;
use crate::message::{Attach, Spec, Stream, ToGuest, ToHost};
use crate::transport::{Guest, Receiver, Sender, Transport};

/// A transport that leads nowhere.
#[derive(Debug, Clone)]
pub struct Loopback {
    /// Where the lines go: a file, else standard output.
    pub file: Option<PathBuf>,
    /// What is to be run. It is watched if it asks for that.
    pub spec: Spec,
    /// Whose frames they are.
    pub attach: Attach,
}

impl Transport for Loopback {
    fn open(&self) -> io::Result<Guest> {
        let lines: Box<dyn Write + Send> = match &self.file {
            Some(file) => Box::new(File::create(file)?),
            None => Box::new(io::stdout()),
        };
        Ok(self.over(lines))
    }
}

impl Loopback {
    /// The same, with the lines going to `lines`.
    pub fn over(&self, lines: Box<dyn Write + Send>) -> Guest {
        let (answers, receiver) = mpsc::channel();
        let sender = Lines { lines, answers, spec: self.spec.clone(), attach: self.attach.clone() };
        Guest { receiver: Box::new(Answers(receiver)), sender: Box::new(sender) }
    }
}

struct Answers(mpsc::Receiver<ToGuest>);

impl Receiver<ToGuest> for Answers {
    fn receive(&mut self) -> Result<Option<ToGuest>, LinkError> {
        Ok(self.0.recv().ok())
    }
}

struct Lines {
    lines: Box<dyn Write + Send>,
    answers: mpsc::Sender<ToGuest>,
    spec: Spec,
    attach: Attach,
}

impl Sender<ToHost> for Lines {
    fn send(&mut self, message: &ToHost) -> Result<(), LinkError> {
        let mut line =
            serde_json::to_vec(message).map_err(|error| LinkError::Unwritable(error.to_string()))?;
        line.push(b'\n');
        self.lines.write_all(&line)?;
        self.lines.flush()?;
        for answer in self.answers(message) {
            // The guest may have stopped to listen.
            let _ = self.answers.send(answer);
        }
        Ok(())
    }
}

impl Lines {
    fn answers(&self, message: &ToHost) -> Vec<ToGuest> {
        let back = |stream, bytes: usize| vec![ToGuest::Credit((stream, credit::cost(bytes)))];
        match message {
            ToHost::Hello(_) => vec![ToGuest::Spec(Box::new(self.spec.clone())), ToGuest::StdinEnd],
            ToHost::Held if self.spec.watch => vec![ToGuest::Attach(self.attach.clone())],
            ToHost::Held | ToHost::Attached(_) => vec![ToGuest::Release],
            ToHost::Stdout(bytes) => back(Stream::Stdout, bytes.0.len()),
            ToHost::Stderr(bytes) => back(Stream::Stderr, bytes.0.len()),
            ToHost::Exceeded(_) => vec![ToGuest::Kill],
            ToHost::Exit(_) => vec![ToGuest::Drain(false)],
            ToHost::Drained(_) if self.spec.watch => vec![ToGuest::Seal],
            ToHost::Drained(_) | ToHost::Sealed(_) | ToHost::Failed(_) => vec![ToGuest::Shutdown],
            ToHost::Running | ToHost::Frame(_) | ToHost::Credit(_) | ToHost::Heartbeat(_) => Vec::new(),
        }
    }
}
