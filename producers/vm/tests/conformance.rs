//! The conformance suite of backends, on real machines. What this host cannot run is printed as skipped, with the reason.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use glasshouse_backends::conformance::{Factory, Scenario, Subject, spec};

/// Plays a scenario with the shell of the guest.
struct InQemu;

impl Factory for InQemu {
    fn make(&self, scenario: &Scenario) -> Result<Subject, String> {
        let backend = support::backend()?;
        let shell = |script: String| spec(["/bin/sh".to_owned(), "-c".to_owned(), script]);
        // Octal escapes: any byte comes through printf, and a line is repeated by the shell.
        let print = |bytes: &[u8]| -> String {
            let of = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\{byte:03o}")).collect::<String>();
            match bytes.iter().position(|byte| *byte == b'\n') {
                Some(end) if bytes.len() > 1000 => {
                    let line = &bytes[..=end];
                    assert!(bytes.chunks(line.len()).all(|chunk| chunk == line));
                    let line = String::from_utf8_lossy(&line[..end]).into_owned();
                    format!("yes '{line}' | head -n {}", bytes.len() / (end + 1))
                }
                _ => format!("printf '{}'", of(bytes)),
            }
        };
        let spec = match scenario {
            Scenario::Exits(code) => shell(format!("exit {code}")),
            Scenario::DiesOf(signal) => shell(format!("kill -{signal} $$")),
            Scenario::RunsUntilKilled => spec(["/bin/sleep", "1000"]),
            Scenario::Prints { stdout, stderr } => shell(format!("{}; {} >&2", print(stdout), print(stderr))),
            Scenario::NotFound => spec(["glasshouse-no-such-program"]),
            Scenario::CannotExecute => spec(["/etc/no-program"]),
            Scenario::Touches(_) => return Err("the guest has no file of this host; see machines.rs".into()),
            Scenario::LeavesAProcess => shell("sleep 1000 & sleep 1000 & :".into()),
            Scenario::PrintsLater(text) => {
                shell(format!("p=$$; (while kill -0 $p 2>/dev/null; do :; done; {}) & :", print(text)))
            }
        };
        let id = spec.id.to_string();
        Ok(Subject { backend: Arc::new(backend), spec, left: Box::new(move || support::left_of(&id)) })
    }
}

glasshouse_backends::conformance!(qemu, super::InQemu);
