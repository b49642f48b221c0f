//! Any text is an event subject or an error, and one that reads is spelled as we spell it.

#![no_main]

use glasshouse_schema::subject::{self, EventSubject, EventSubjectKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(parsed) = EventSubject::parse(text) else { return };
    let published = match (parsed.kind, &parsed.node) {
        (EventSubjectKind::Frame(vantage), Some(node)) => subject::frames(node, parsed.execution, vantage),
        // A frame under no node, and a `closed` event under one, are never published.
        (EventSubjectKind::Frame(_), None) => return,
        (EventSubjectKind::Lifecycle(phase), node) => {
            subject::lifecycle(node.as_ref(), parsed.execution, phase)
        }
    };
    let spelled = match parsed.partition {
        Some(partition) => subject::stored(partition, &published).expect("our subject has our prefix"),
        None => published,
    };
    assert!(spelled == text || text.ends_with(".closed"));
});
