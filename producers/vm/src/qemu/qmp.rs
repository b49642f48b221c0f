//! QEMU's monitor (docs/interop/qmp-spec.txt of QEMU): a command and its answer as lines of JSON, events between them, and
//! descriptors beside them.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde_json::{Value, json};

/// How long QEMU may take for an answer, or until the next event that is waited for.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Longer than anything it says.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// A monitor. Blocks.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    /// Events that came before an answer.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Begins with the QEMU at the other end.
    pub(super) fn begin(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        stream.set_write_timeout(Some(ANSWERS_WITHIN))?;
        let mut qmp = Self { stream: BufReader::new(stream), events: VecDeque::new() };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other(format!("no greeting, but {greeting}")));
        }
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        self.stream.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Asks for something, and gives the answer.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        self.say(command, &arguments, &[])?;
        self.answer(command)
    }

    /// Gives it a descriptor, by which it is then called in a URI: `fd:NAME`.
    pub(super) fn give(&mut self, name: &str, fd: impl AsFd) -> io::Result<()> {
        let fds = [fd.as_fd().as_raw_fd()];
        self.say("getfd", &json!({ "fdname": name }), &[ControlMessage::ScmRights(&fds)])?;
        self.answer("getfd").map(drop)
    }

    fn say(&mut self, command: &str, arguments: &Value, with: &[ControlMessage<'_>]) -> io::Result<()> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let mut stream = self.stream.get_ref();
        let bytes = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg::<UnixAddr>(stream.as_raw_fd(), &bytes, with, MsgFlags::MSG_NOSIGNAL, None)?;
        stream.write_all(line.as_bytes().get(sent..).unwrap_or_default())
    }

    fn answer(&mut self, command: &str) -> io::Result<Value> {
        loop {
            let mut line = self.line()?;
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = line.get("error") {
                let reason = error["desc"].as_str().unwrap_or("without a reason");
                return Err(io::Error::other(format!("{command}: {reason}")));
            }
            self.events.push_back(line);
        }
    }

    /// Waits for the end of a migration, either way. Its events must be switched on.
    pub(super) fn migrated(&mut self) -> io::Result<()> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.line()?,
            };
            match (event["event"].as_str(), event["data"]["status"].as_str()) {
                (Some("MIGRATION"), Some("completed")) => return Ok(()),
                (Some("MIGRATION"), Some(status @ ("failed" | "cancelled"))) => {
                    return Err(io::Error::other(format!("the migration is {status}")));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A QEMU that says these lines, one after each that it hears; gives what it heard.
    fn played(lines: &'static [&'static str]) -> (UnixStream, thread::JoinHandle<Vec<Value>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let heard = thread::spawn(move || {
            let mut heard = Vec::new();
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            for said in lines {
                writeln!(&theirs, "{said}").unwrap();
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 {
                    break;
                }
                heard.push(serde_json::from_str(&line).unwrap());
            }
            heard
        });
        (ours, heard)
    }

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    #[test]
    fn answers_are_told_from_events_and_errors() {
        let (stream, heard) = played(&[
            GREETING,
            r#"{"return": {}}"#,
            "{\"event\": \"STOP\"}\n{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\n{\"return\": {\"a\": 1}}",
            r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#,
            r#"{"event": "MIGRATION", "data": {"status": "failed"}}"#,
        ]);
        let mut qmp = Qmp::begin(stream).unwrap();
        assert_eq!(qmp.ask("stop", json!({})).unwrap(), json!({"a": 1}));
        qmp.migrated().unwrap();
        let error = qmp.ask("fly", json!({"to": "the moon"})).unwrap_err().to_string();
        assert_eq!(error, "fly: no such thing");
        qmp.say("wait", &json!({}), &[]).unwrap();
        assert_eq!(qmp.migrated().unwrap_err().to_string(), "the migration is failed");
        drop(qmp);
        let heard = heard.join().unwrap();
        let commands: Vec<_> = heard.iter().map(|heard| heard["execute"].as_str().unwrap()).collect();
        assert_eq!(commands, ["qmp_capabilities", "stop", "fly", "wait"]);
        assert_eq!(heard[2]["arguments"], json!({"to": "the moon"}));
    }

    #[test]
    fn another_end_than_qemu_and_one_that_is_gone_are_errors() {
        let (stream, _) = played(&["{}"]);
        assert!(Qmp::begin(stream).is_err());
        let (stream, _) = played(&["no JSON"]);
        assert!(Qmp::begin(stream).is_err());
        let (stream, _) = played(&[GREETING]);
        assert_eq!(Qmp::begin(stream).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
