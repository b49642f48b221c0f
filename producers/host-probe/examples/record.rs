//! Watches one command and writes the frames of its chain to a file, as the bus would get them.
//!
//! `cargo run --release -p glasshouse-host-probe --example record -- FILE -- COMMAND [ARGUMENT]...`
//!
//! Frames lie one behind the other, each with its length before it (u32, little endian). `scripts/record.sh` makes the committed
//! ones, in `schema/recordings`. Needs root.

#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "tests use the rest")]
#[path = "../tests/support/held.rs"]
mod held;

use std::process::ExitCode;

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("skipped: the host probe needs Linux");
    ExitCode::SUCCESS
}

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    match held::role().map_err(Into::into).and_then(|()| linux::record()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::error::Error;
    use std::ffi::OsString;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use glasshouse_host_probe::{HostProbe, LoadOptions, WatchRequest};
    use glasshouse_schema::frame::FrameWriterConfig;
    use glasshouse_schema::lifecycle::RedactionRules;
    use glasshouse_schema::redact::Redactor;
    use glasshouse_schema::{EncodedFrame, ExecutionId, Frame, FrameWriter, NodeId, Vantage};

    use super::held::{Gate, Held};

    const WITHIN: Duration = Duration::from_secs(300);

    pub(super) fn record() -> Result<(), Box<dyn Error>> {
        let mut arguments = std::env::args_os().skip(1);
        let usage = "record FILE -- COMMAND [ARGUMENT]...";
        let file = arguments.next().ok_or(usage)?;
        if arguments.next().is_none_or(|dashes| dashes != "--") {
            return Err(usage.into());
        }
        let argv: Vec<OsString> = arguments.collect();

        let probe = HostProbe::load(&LoadOptions::default())?;
        let execution = ExecutionId::from_parts(1_767_323_045_000, [7; 10]);
        let offset_ns = 1_767_323_000_000_000_000;
        let config = FrameWriterConfig::new(execution, NodeId::new("recorder")?, Vantage::Host, 1, offset_ns);
        let rules = RedactionRules { path_prefixes: Vec::new(), tokens: true };
        let (sender, frames) = channel();
        let gate = Gate::new()?;
        let mut held = Held::start(&argv, &gate)?;
        let watch = probe.watch(WatchRequest {
            cgroup_id: held.cgroup.id()?,
            root_tgid: held.child.id(),
            writer: FrameWriter::new(config),
            redactor: Redactor::new([0; 32], execution, rules),
            sink: Box::new(move |frame: EncodedFrame| {
                // Who receives them outlives the watch.
                let _ = sender.send(frame);
            }),
            lossless: false,
        })?;
        gate.open();
        let (status, _) = held.finish(WITHIN)?;
        let report = watch.seal()?;

        let (mut recording, mut events, mut count) = (Vec::new(), 0, 0);
        for frame in frames.try_iter() {
            events += Frame::decode(&frame.bytes)?.body.events();
            count += 1;
            recording.extend(u32::try_from(frame.bytes.len())?.to_le_bytes());
            recording.extend(frame.bytes);
        }
        if !status.success() || report.counters.lost() > 0 {
            return Err(format!("{status}, {} facts lost: not a recording", report.counters.lost()).into());
        }
        println!("{}: {events} events in {count} frames, {} bytes", file.display(), recording.len());
        Ok(std::fs::write(file, recording)?)
    }
}
