//! A machine is kept where its guest waits for a command, and restored: by migration through a stream, which is the template's file.
//!
//! The stream holds the memory too, pages of zeroes left out. QEMU could also map memory from a file, with migration of the devices
//! alone, but before version 8.2 only from one that it may write. So a clone takes as long as it takes to read some 70 MB, and every byte
//! of it was compared with its digest.
//!
//! The guest says nothing between its greeting and its command, so its link is kept as it is: a clone has greeted already.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use glasshouse_schema::ids::Digest;
use serde_json::json;

use super::qmp::{ANSWERS_WITHIN, Qmp};
use crate::templates::{Key, Template, Templates};

/// What we call the stream.
const STREAM: &str = "machine";
/// Bytes a second; faster than any memory.
const NO_LIMIT: u64 = 1 << 40;
const BUFFER_BYTES: usize = 1 << 20;

fn tell_of_migration(qmp: &mut Qmp) -> io::Result<()> {
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.ask("migrate-set-capabilities", events).map(drop)
}

/// Keeps a machine whose guest waits, and lets it go on. The outer error is of a machine that does not go on, the inner one of a template
/// that is not kept.
pub(super) fn keep(qmp: &mut Qmp, templates: &Templates, key: &Key) -> io::Result<io::Result<Digest>> {
    qmp.ask("stop", json!({}))?;
    let kept = save(qmp, templates, key);
    qmp.ask("cont", json!({}))?;
    Ok(kept)
}

fn save(qmp: &mut Qmp, templates: &Templates, key: &Key) -> io::Result<Digest> {
    let mut writing = templates.begin()?;
    tell_of_migration(qmp)?;
    qmp.ask("migrate-set-parameters", json!({ "max-bandwidth": NO_LIMIT }))?;
    let (mut stream, theirs) = UnixStream::pair()?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
    qmp.give(STREAM, theirs)?;
    qmp.ask("migrate", json!({ "uri": format!("fd:{STREAM}") }))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let written = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(read) => match writing.write_all(buffer.get(..read).unwrap_or_default()) {
                Ok(()) => {}
                Err(error) => break Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    // Its end, should there be more, which it has to come to before it goes on.
    drop(stream);
    let migrated = qmp.migrated();
    written?;
    migrated?;
    templates.keep(writing, key)
}

/// Makes a QEMU that waits for a machine one that runs.
pub(super) fn restore(qmp: &mut Qmp, template: &Template) -> io::Result<()> {
    tell_of_migration(qmp)?;
    qmp.give(STREAM, template.file())?;
    qmp.ask("migrate-incoming", json!({ "uri": format!("fd:{STREAM}") }))?;
    qmp.migrated()?;
    qmp.ask("cont", json!({})).map(drop)
}
