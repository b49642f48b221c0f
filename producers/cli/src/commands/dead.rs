//! `dead`: list, show, replay.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use glasshouse_nats::{Bus, DEAD, EVENTS, LetterBody, Snapshot, StoredMessage};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::time::rfc3339;
use glasshouse_schema::{ExecutionId, Frame, LifecycleEvent, headers, subject};
use serde_json::{Value, json};

use crate::args::{DeadAction, DeadCommand, ListLettersArgs, ReplayLettersArgs, ShowLetterArgs};
use crate::{bus, say};

/// How much of a body that cannot be decoded is shown.
const HEX_BYTES: usize = 64;

pub(crate) async fn main(command: DeadCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        DeadAction::List(args) => list(args).await,
        DeadAction::Show(args) => show(args).await,
        DeadAction::Replay(args) => replay(args).await,
    }
}

/// The subjects of letters of one kind, or of all.
fn filters(kind: Option<DeadKind>) -> Vec<String> {
    match kind {
        Some(kind) => vec![subject::dead(kind)],
        None => DeadKind::ALL.map(subject::dead).into(),
    }
}

async fn list(args: ListLettersArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let mut letters = bus.snapshot_of_newest(DEAD, args.limit, filters(args.kind.kind)).await?;
    let width = columns();
    // A snapshot may begin further back; only the lines are kept, not the letters.
    let mut lines = VecDeque::new();
    while let Some(message) = letters.next().await? {
        let letter = DeadLetter::decode(&message.payload).map_err(|error| error.to_string());
        lines.push_back(match args.json {
            true => listed(&message, &letter).to_string(),
            false => line(&message, &letter, width),
        });
        if lines.len() as u64 > args.limit {
            lines.pop_front();
        }
    }
    match (lines.is_empty(), args.json) {
        (true, false) => say("glasshouse: there are no dead letters of this kind, or none any more"),
        (false, false) => super::print(format!(
            "{:>7}  {:<20}  {:<9}  {:<36}  subject: reason\n",
            "seq", "set aside", "kind", "execution"
        ))?,
        _ => {}
    }
    for line in lines {
        super::print(line + "\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A letter, or why it cannot be read.
type Read = Result<DeadLetter, String>;

fn line(message: &StoredMessage, letter: &Read, width: Option<usize>) -> String {
    let (kind, execution, what) = match letter {
        Ok(letter) => {
            let execution = subject::execution_of(&letter.subject).map(|id| id.to_string());
            let what = format!("{}: {}", original(letter), letter.reason);
            (letter.kind.as_str(), execution, what)
        }
        Err(error) => ("?", None, error.clone()),
    };
    let execution = execution.unwrap_or_else(|| "-".into());
    let line =
        format!("{:>7}  {:<20}  {kind:<9}  {execution:<36}  {what}", message.stream_seq, time(message));
    cut(&printable(&line), width)
}

/// The subject under which the message was published, where the letter names the one under which it was stored.
fn original(letter: &DeadLetter) -> String {
    subject::published(&letter.subject).unwrap_or_else(|| letter.subject.clone())
}

/// A letter without its payload.
fn listed(message: &StoredMessage, letter: &Read) -> Value {
    let seq = message.stream_seq;
    let at = rfc3339(message.stored_unix_ns);
    match letter {
        Ok(letter) => json!({
            "seq": seq,
            "time": at,
            "kind": letter.kind,
            "execution": subject::execution_of(&letter.subject),
            "subject": original(letter),
            "reason": letter.reason,
            "stream": letter.stream,
            "stream_seq": letter.stream_seq,
            "stored_subject": letter.subject,
            "body_bytes": letter.body_bytes,
            "body_digest": letter.body_digest,
            "worker": letter.worker,
        }),
        Err(error) => json!({"seq": seq, "time": at, "error": error}),
    }
}

/// When it was set aside, to the second.
fn time(message: &StoredMessage) -> String {
    let text = rfc3339(message.stored_unix_ns);
    text.split_once('.').map_or_else(|| text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

/// How wide standard output is, if it is a terminal.
fn columns() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0))
}

fn cut(line: &str, width: Option<usize>) -> String {
    match width
        .and_then(|width| line.char_indices().nth(width.saturating_sub(1)).zip(line.chars().nth(width)))
    {
        Some(((at, _), _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

/// Reasons and subjects quote what came from outside: nothing in them may move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

async fn letter_at(bus: &Bus, seq: u64) -> anyhow::Result<Option<(StoredMessage, DeadLetter)>> {
    let Some(message) = bus.message(DEAD, seq).await? else { return Ok(None) };
    let letter = DeadLetter::decode(&message.payload)
        .with_context(|| format!("message {seq} of {DEAD} cannot be read as a dead letter"))?;
    Ok(Some((message, letter)))
}

async fn show(args: ShowLetterArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    let Some((message, letter)) = letter_at(&bus, args.seq).await? else {
        anyhow::bail!(
            "there is no dead letter {} (any more): `glasshouse dead list` shows those that are there",
            args.seq
        );
    };
    let body = bus.letter_body(&letter).await?;
    if let Some(path) = &args.payload {
        let bytes = match &body {
            LetterBody::Whole(bytes) => bytes,
            LetterBody::Gone(reason) => anyhow::bail!("the original bytes cannot be had: {reason}"),
        };
        if path == Path::new("-") {
            super::print(bytes)?;
            return Ok(ExitCode::SUCCESS);
        }
        std::fs::write(path, bytes).with_context(|| format!("cannot write to {}", path.display()))?;
    }
    let payload = Payload::of(&letter, &body);
    if args.json {
        let mut shown = listed(&message, &Ok(letter));
        shown["payload"] = payload.json();
        super::print_json(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    super::print(shown(&message, &letter, &payload))?;
    Ok(ExitCode::SUCCESS)
}

fn shown(message: &StoredMessage, letter: &DeadLetter, payload: &Payload) -> String {
    let execution = subject::execution_of(&letter.subject).map(|id| format!("execution   {id}\n"));
    let mut out = format!(
        "letter      {} of {DEAD}, {}\nreason      {}\nset aside   {} by {}\nsubject     {}\nstood at    message {} of {}",
        message.stream_seq,
        letter.kind.as_str(),
        printable(&letter.reason),
        rfc3339(message.stored_unix_ns),
        printable(&letter.worker),
        printable(&original(letter)),
        letter.stream_seq,
        printable(&letter.stream),
    );
    if letter.subject != original(letter) {
        let _ = write!(out, ", under {}", printable(&letter.subject));
    }
    let _ = write!(
        out,
        "\n{}payload     {} bytes, SHA-256 {}\n",
        execution.unwrap_or_default(),
        letter.body_bytes,
        letter.body_digest
    );
    let again = match letter.replay_subject() {
        Ok(_) => format!("`glasshouse dead replay {}` publishes it again", message.stream_seq),
        Err(reason) => format!("cannot be published again: {}", printable(&reason.to_string())),
    };
    let _ = writeln!(out, "replay      {again}");
    out.push_str(&payload.text());
    out
}

/// What the body of a letter is.
enum Payload {
    Lifecycle(Box<LifecycleEvent>),
    Frame(Value),
    Document(Value),
    /// No form of the kind that the letter says: why, and its first bytes.
    Undecoded(String, Vec<u8>),
    Gone(String),
}

impl Payload {
    fn of(letter: &DeadLetter, body: &LetterBody) -> Self {
        let bytes = match body {
            LetterBody::Whole(bytes) => bytes,
            LetterBody::Gone(reason) => return Self::Gone(reason.clone()),
        };
        let undecoded = |error: String| Self::Undecoded(error, bytes[..bytes.len().min(HEX_BYTES)].to_vec());
        match letter.kind {
            DeadKind::Frame => match Frame::decode(bytes) {
                Ok(frame) => Self::Frame(outline(&frame)),
                Err(error) => undecoded(error.to_string()),
            },
            DeadKind::Lifecycle => match LifecycleEvent::decode(bytes) {
                Ok(event) => Self::Lifecycle(Box::new(event)),
                Err(error) => undecoded(error.to_string()),
            },
            DeadKind::Receipt | DeadKind::Verdict | DeadKind::Request => {
                match serde_json::from_slice(bytes) {
                    Ok(document) => Self::Document(document),
                    Err(error) => undecoded(error.to_string()),
                }
            }
            DeadKind::Subject => undecoded("its subject does not say what it is".into()),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Lifecycle(event) => json!({"lifecycle": event}),
            Self::Frame(outline) => json!({"frame": outline}),
            Self::Document(document) => json!({"document": document}),
            Self::Undecoded(error, bytes) => json!({"undecoded": error, "first_bytes_hex": hex(bytes)}),
            Self::Gone(reason) => json!({"gone": reason}),
        }
    }

    fn text(&self) -> String {
        let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
        match self {
            Self::Lifecycle(event) => match serde_json::to_value(event) {
                Ok(event) => format!("\nlifecycle event\n{}\n", pretty(&event)),
                Err(error) => format!("\nlifecycle event, which cannot be shown: {error}\n"),
            },
            Self::Frame(outline) => format!("\nframe\n{}\n", pretty(outline)),
            Self::Document(document) => format!("\ndocument\n{}\n", pretty(document)),
            Self::Undecoded(error, bytes) => {
                format!("\nnot decoded: {}\nit begins with {}\n", printable(error), hex(bytes))
            }
            Self::Gone(reason) => format!("\nthe payload cannot be shown: {}\n", printable(reason)),
        }
    }
}

/// A frame's header and how many events of each kind it holds.
fn outline(frame: &Frame<'_>) -> Value {
    let events: serde_json::Map<String, Value> =
        frame.body.kinds().into_iter().map(|(kind, count)| (kind.into(), count.into())).collect();
    json!({
        "header": frame.header,
        "processes": frame.body.processes.len(),
        "paths": frame.body.paths.len(),
        "events": events,
        "is_seal": frame.seal.is_some(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What became of a letter.
enum Became {
    Published {
        subject: String,
        stream_seq: u64,
    },
    /// The stream took this very replay a moment ago.
    PublishedBefore {
        subject: String,
    },
    WouldBe {
        subject: String,
        bytes: usize,
    },
    Refused(String),
}

impl Became {
    fn is_failure(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    fn text(&self) -> String {
        match self {
            Self::Published { subject, stream_seq } => {
                format!("published again to {subject}, message {stream_seq} of {EVENTS}")
            }
            Self::PublishedBefore { subject } => {
                format!("was published again to {subject} a moment ago, and is stored once")
            }
            Self::WouldBe { subject, bytes } => format!("would be published to {subject}, {bytes} bytes"),
            Self::Refused(reason) => format!("not published: {reason}"),
        }
    }

    fn json(&self, seq: u64) -> Value {
        match self {
            Self::Published { subject, stream_seq } => {
                json!({"seq": seq, "outcome": "published", "subject": subject, "stream": EVENTS, "stream_seq": stream_seq})
            }
            Self::PublishedBefore { subject } => {
                json!({"seq": seq, "outcome": "published_before", "subject": subject})
            }
            Self::WouldBe { subject, bytes } => {
                json!({"seq": seq, "outcome": "would_be_published", "subject": subject, "bytes": bytes})
            }
            Self::Refused(reason) => json!({"seq": seq, "outcome": "refused", "reason": reason}),
        }
    }
}

/// The letters to publish again, one at a time: all of them together may be half a gigabyte.
enum Letters {
    These(std::vec::IntoIter<u64>),
    All(Box<Snapshot>),
}

impl Letters {
    /// The next letter's sequence, with its message if it is there.
    async fn next(&mut self, bus: &Bus) -> anyhow::Result<Option<(u64, Option<StoredMessage>)>> {
        Ok(match self {
            Self::These(seqs) => match seqs.next() {
                Some(seq) => Some((seq, bus.message(DEAD, seq).await?)),
                None => None,
            },
            Self::All(letters) => letters.next().await?.map(|message| (message.stream_seq, Some(message))),
        })
    }
}

async fn replay(args: ReplayLettersArgs) -> anyhow::Result<ExitCode> {
    let bus = bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await?;
    // Found out now: a letter must not be refused one by one because the stream is not there.
    bus.position(EVENTS).await?;
    let mut letters = match args.all {
        true => Letters::All(Box::new(bus.snapshot(DEAD, filters(args.kind)).await?)),
        false => Letters::These(args.seqs.clone().into_iter()),
    };
    let (mut total, mut failed) = (0u64, 0u64);
    while let Some((seq, message)) = letters.next(&bus).await? {
        let became = match message {
            Some(message) => again(&bus, &message, &args).await?,
            None => Became::Refused("there is no such dead letter (any more)".into()),
        };
        total += 1;
        failed += u64::from(became.is_failure());
        match args.json {
            true => super::print_json(&became.json(seq))?,
            false => super::print(format!("{seq:>7}  {}\n", printable(&became.text())))?,
        }
    }
    if failed > 0 {
        say(format_args!(
            "glasshouse: {failed} of {total} letters {} not published",
            if args.dry_run { "would be" } else { "were" }
        ));
    } else if total == 0 {
        say("glasshouse: there are no dead letters of this kind, or none any more");
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Publishes one letter's message again. An error is one of the bus; what is wrong with the letter is an outcome.
async fn again(bus: &Bus, message: &StoredMessage, args: &ReplayLettersArgs) -> anyhow::Result<Became> {
    let letter = match DeadLetter::decode(&message.payload) {
        Ok(letter) => letter,
        Err(error) => return Ok(Became::Refused(error.to_string())),
    };
    let subject = match letter.replay_subject() {
        Ok(subject) => subject,
        Err(reason) => return Ok(Became::Refused(reason.to_string())),
    };
    if !args.even_if_closed
        && let Some(execution) = subject::execution_of(&subject)
        && let Some(reason) = closed_problem(bus, execution).await?
    {
        return Ok(Became::Refused(reason));
    }
    let body = match bus.letter_body(&letter).await? {
        LetterBody::Whole(body) => body,
        LetterBody::Gone(reason) => return Ok(Became::Refused(reason)),
    };
    if args.dry_run {
        return Ok(Became::WouldBe { subject, bytes: body.len() });
    }
    let traceparent = message.header(headers::TRACEPARENT);
    match bus.replay(message.stream_seq, &letter, &subject, body, traceparent).await {
        Ok(replayed) if replayed.is_duplicate => Ok(Became::PublishedBefore { subject }),
        Ok(replayed) => Ok(Became::Published { subject, stream_seq: replayed.stream_seq }),
        Err(error) => Ok(Became::Refused(error.to_string())),
    }
}

async fn closed_problem(bus: &Bus, execution: ExecutionId) -> anyhow::Result<Option<String>> {
    Ok(bus.closed_at(execution).await?.map(|seq| {
        format!(
            "execution {execution} is closed by message {seq} of {EVENTS}: an aggregator would set it aside again \
             (--even-if-closed publishes it all the same)"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_the_terminal() {
        assert_eq!(cut("abcdef", None), "abcdef");
        assert_eq!(cut("abcdef", Some(6)), "abcdef");
        assert_eq!(cut("äbcdef", Some(5)), "äbcd…");
        assert_eq!(cut("abc", Some(0)), "…");
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
