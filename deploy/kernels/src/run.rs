//! Running other programs, with errors that say which and why.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// What it prints on stdout; its stderr is shown only when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let named = name(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{named}`"))?;
    if !output.status.success() {
        bail!("`{named}` failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it to its end; what it prints is shown only when it fails.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    output(command).map(|_| ())
}
