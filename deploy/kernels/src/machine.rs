//! One boot of a kernel in QEMU, and what the machine handed over.
//!
//! An emulated machine (TCG) needs no hardware support and no root. Its first serial port is the console, its second the
//! channel of `guest/init.c`. A panic, a reboot and a power-off all end QEMU alike: only the end mark is success.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A boot takes some 10 s on an idle machine.
const TIMEOUT: Duration = Duration::from_secs(180);
pub(crate) const ATTEMPTS: u32 = 3;
const POLL: Duration = Duration::from_millis(50);

/// Everything that the machine handed over, and how many boots it took.
#[derive(Debug)]
pub(crate) struct Report {
    parts: BTreeMap<String, Vec<u8>>,
    pub(crate) attempts: u32,
    pub(crate) took: Duration,
}

impl Report {
    /// A part as text; empty if there is none.
    pub(crate) fn text(&self, name: &str) -> String {
        self.parts.get(name).map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned()).unwrap_or_default()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.parts.contains_key(name)
    }
}

/// `GLASSHOUSE_QEMU`, or what is on the PATH.
pub(crate) fn qemu() -> Result<String> {
    let program = std::env::var("GLASSHOUSE_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let found = Command::new(&program).arg("--version").stdout(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => Ok(program),
        _ => bail!(
            "cannot run {program}: apt-get install --no-install-recommends qemu-system-x86, or name one in GLASSHOUSE_QEMU"
        ),
    }
}

/// Boots until the machine has handed over everything, at most [`ATTEMPTS`] times.
pub(crate) fn boot(qemu: &str, kernel: &Path, initramfs: &Path, scratch: &Path) -> Result<Report> {
    let mut reasons = Vec::new();
    for attempt in 1..=ATTEMPTS {
        let began = Instant::now();
        match once(qemu, kernel, initramfs, scratch)? {
            Ok(parts) => return Ok(Report { parts, attempts: attempt, took: began.elapsed() }),
            Err(reason) => reasons.push(format!("boot {attempt}: {reason}")),
        }
    }
    bail!("{}", reasons.join("\n"))
}

/// One boot: the parts, or why there are none.
fn once(
    qemu: &str,
    kernel: &Path,
    initramfs: &Path,
    scratch: &Path,
) -> Result<Result<BTreeMap<String, Vec<u8>>, String>> {
    let (console, channel) = (scratch.join("console"), scratch.join("channel"));
    for file in [&console, &channel] {
        std::fs::write(file, []).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let to_file = |path: &PathBuf| format!("file:{}", path.display());
    let mut child = Command::new(qemu)
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-serial", &to_file(&console), "-serial", &to_file(&channel)])
        .args(["-append", "console=ttyS0 panic=-1 mitigations=off"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {qemu}"))?;
    let deadline = Instant::now() + TIMEOUT;
    let ended = loop {
        if child.try_wait()?.is_some() {
            break true;
        }
        if Instant::now() > deadline {
            child.kill()?;
            break false;
        }
        std::thread::sleep(POLL);
    };
    let output = child.wait_with_output()?;
    let parts = parts(&std::fs::read(&channel)?);
    if parts.contains_key("end") {
        return Ok(Ok(parts));
    }
    let console = String::from_utf8_lossy(&std::fs::read(&console)?).into_owned();
    let lines: Vec<&str> = console.lines().collect();
    let last = lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n    ");
    let how = if ended { "it ended before its end mark" } else { "it did not end in 180 s" };
    Ok(Err(format!("{how}; {}\n    {last}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// The complete parts in what came through the channel. A name that comes again adds a line.
fn parts(mut channel: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some((head, rest)) =
        channel.iter().position(|byte| *byte == b'\n').map(|at| channel.split_at(at + 1))
    {
        let head = String::from_utf8_lossy(head);
        let mut words = head.trim_end().split(' ');
        let (Some("@"), Some(name), Some(Ok(length))) =
            (words.next(), words.next(), words.next().map(str::parse::<usize>))
        else {
            break;
        };
        let Some(bytes) = rest.get(..length) else { break };
        let part = parts.entry(name.to_owned()).or_default();
        if !part.is_empty() {
            part.push(b'\n');
        }
        part.extend(bytes);
        channel = rest.get(length + 1..).unwrap_or_default();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_hold_any_bytes_and_a_cut_one_is_left_out() {
        let found = parts(b"@ a 3\n\n@ \n@ b 1\nx\n@ b 1\ny\n@ c 10\nshort");
        assert_eq!(found.get("a").map(Vec::as_slice), Some(b"\n@ ".as_slice()));
        assert_eq!(found.get("b").map(Vec::as_slice), Some(b"x\ny".as_slice()));
        assert!(!found.contains_key("c"));
    }
}
