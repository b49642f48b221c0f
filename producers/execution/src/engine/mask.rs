//! Masks what the engine publishes. Every text that may hold a part of the command, its environment or its paths goes
//! through here, errors included.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::{RedactionRules, Requested};
use glasshouse_schema::redact::Redactor;

use crate::backend::BackendError;
use crate::spec::ExecutionSpec;

/// What of the arguments is published in `requested`. JSON makes at most six bytes of one, so that the document stays
/// below [`glasshouse_schema::lifecycle::MAX_LIFECYCLE_BYTES`]; frames carry what the kernel saw of them anyway.
const MAX_ARGV_BYTES: usize = 24 * 1024;
/// Likewise of an error.
const MAX_ERROR_BYTES: usize = 4 * 1024;
/// Stands for what was cut.
const CUT: &str = "…";

/// Applies one execution's redaction rules to what the engine publishes of it.
pub(super) struct Masker {
    key: [u8; 32],
    execution: ExecutionId,
    rules: RedactionRules,
}

impl Masker {
    pub(super) fn new(spec: &ExecutionSpec) -> Self {
        Self { key: spec.redaction_key, execution: spec.id, rules: spec.redaction.clone() }
    }

    /// A redactor that counts from zero: what the engine masks in its own documents is not the frames' count.
    pub(super) fn redactor(&self) -> Redactor {
        Redactor::new(self.key, self.execution, self.rules.clone())
    }

    pub(super) fn requested(
        &self,
        spec: &ExecutionSpec,
        backend: &str,
        trace_id: Option<String>,
    ) -> Requested {
        let workdir = match &spec.workdir {
            Some(dir) => std::path::absolute(dir).unwrap_or_else(|_| dir.clone()),
            None => std::env::current_dir().unwrap_or_default(),
        };
        Requested {
            argv: self.argv(&spec.argv),
            workdir: String::from_utf8_lossy(&self.redactor().path(workdir.as_os_str().as_bytes()))
                .into_owned(),
            backend: backend.to_owned(),
            profile: spec.profile,
            profile_required: spec.profile_required,
            labels: self.labels(&spec.labels),
            trace_id,
        }
    }

    fn argv(&self, argv: &[OsString]) -> Vec<String> {
        let argv: Vec<&[u8]> = argv.iter().map(|argument| argument.as_bytes()).collect();
        let mut room = MAX_ARGV_BYTES;
        let mut kept = Vec::new();
        for argument in self.redactor().argv(&argv) {
            if room == 0 {
                kept.push(CUT.to_owned());
                break;
            }
            let text = String::from_utf8_lossy(&argument);
            kept.push(cut(&text, room));
            // An empty argument takes room too, or a million of them would pass.
            room = room.saturating_sub(text.len() + 1);
        }
        kept
    }

    /// A label is masked as the argument `name=value` would be.
    fn labels(&self, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut redactor = self.redactor();
        let mut text = |value: &str| -> String {
            redactor.argv(&[value.as_bytes()]).iter().map(|masked| String::from_utf8_lossy(masked)).collect()
        };
        labels
            .iter()
            .map(|(name, value)| {
                let pair = text(&format!("{name}={value}"));
                match pair.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('=')) {
                    Some(value) => (name.clone(), value.to_owned()),
                    None => (text(name), text(value)),
                }
            })
            .collect()
    }

    /// A backend's error with the command's name masked.
    pub(super) fn error(&self, error: BackendError) -> BackendError {
        let program = |program: String| -> String {
            let mut redactor = self.redactor();
            let masked = redactor.argv(&[program.as_bytes()]);
            masked.iter().map(|masked| String::from_utf8_lossy(masked)).collect()
        };
        match error {
            BackendError::NotFound { program: name } => BackendError::NotFound { program: program(name) },
            BackendError::CannotExecute { program: name, reason } => {
                BackendError::CannotExecute { program: program(name), reason: self.text(&reason) }
            }
            BackendError::Failed { action, reason } => {
                BackendError::Failed { action: self.text(&action), reason: self.text(&reason) }
            }
        }
    }

    /// A sentence, masked word by word: a word loses its quotes and punctuation before the rules look at it.
    pub(super) fn text(&self, text: &str) -> String {
        let mut redactor = self.redactor();
        let punctuation = |c: char| matches!(c, '`' | '\'' | '"' | ',' | ':' | ';' | '(' | ')');
        let words = text.split(' ').map(|word| {
            let core = word.trim_matches(punctuation);
            let masked = redactor.argv(&[core.as_bytes()]);
            match masked.first() {
                Some(masked) if **masked != *core.as_bytes() => {
                    word.replacen(core, &String::from_utf8_lossy(masked), 1)
                }
                _ => word.to_owned(),
            }
        });
        cut(&words.collect::<Vec<_>>().join(" "), MAX_ERROR_BYTES)
    }
}

fn cut(text: &str, room: usize) -> String {
    match text.len() <= room {
        true => text.to_owned(),
        false => format!("{}{CUT}", &text[..text.floor_char_boundary(room)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masker() -> Masker {
        Masker {
            key: [7; 32],
            execution: ExecutionId::from_parts(1, [1; 10]),
            rules: RedactionRules { path_prefixes: vec!["/home/ana".into()], tokens: true },
        }
    }

    #[test]
    fn errors_leak_neither_tokens_nor_masked_paths() {
        let masker = masker();
        let token = "ghp_abcdefghijklmnopqrstuv";
        for error in [
            BackendError::NotFound { program: token.into() },
            BackendError::CannotExecute { program: "sh".into(), reason: format!("`{token}`: no") },
            BackendError::failed("entering the directory `/home/ana/hunter2`", "no such directory"),
            BackendError::NotFound { program: "/home/ana/hunter2/tool".into() },
        ] {
            let text = masker.error(error).to_string();
            assert!(!text.contains(token) && !text.contains("hunter2"), "{text}");
            assert!(text.contains("<masked:"), "{text}");
        }
        assert!(masker.text("`TOKEN=hunter2` is not a name").ends_with("is not a name"));
        assert_eq!(masker.text("reading /etc/hosts: no such file"), "reading /etc/hosts: no such file");
    }

    #[test]
    fn labels_are_masked_as_arguments_are() {
        let masker = masker();
        let labels = [("team", "core"), ("api_key", "hunter2"), ("dir", "/home/ana/hunter2")];
        let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let masked = masker.labels(&labels);
        assert_eq!(masked["team"], "core");
        assert!(masked["api_key"].starts_with("<masked:"), "{masked:?}");
        assert!(masked["dir"].starts_with("/home/ana/<masked:"), "{masked:?}");
    }

    #[test]
    fn a_huge_command_line_is_cut() {
        let masker = masker();
        let argv: Vec<OsString> = (0..100_000).map(|n| format!("é{n}").into()).collect();
        let kept = masker.argv(&argv);
        assert_eq!(kept.last().map(String::as_str), Some(CUT));
        assert!(kept.iter().map(String::len).sum::<usize>() <= MAX_ARGV_BYTES + 16);
        assert!(masker.argv(&["x".repeat(1_000_000).into()])[0].len() <= MAX_ARGV_BYTES + CUT.len());
    }
}
