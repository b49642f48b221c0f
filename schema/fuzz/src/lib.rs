//! What fuzz targets share: the golden execution, and what a redactor may never let through.

use glasshouse_schema::LifecycleEvent;
use glasshouse_schema::lifecycle::RedactionRules;

/// The lifecycle of the golden execution, one event per phase but `closed`, in the order of [`PhaseName::ALL`].
///
/// [`PhaseName::ALL`]: glasshouse_schema::lifecycle::PhaseName::ALL
pub fn golden_lifecycle() -> Vec<LifecycleEvent> {
    macro_rules! golden {
        ($($phase:literal)*) => {
            [$(&include_bytes!(concat!("../../tests/golden/lifecycle-", $phase, ".json"))[..]),*]
        };
    }
    golden!("requested" "admitted" "claimed" "prepared" "started" "profiled" "unprofiled" "exited" "sealed" "failed" "cleaned")
        .into_iter()
        .map(|bytes| LifecycleEvent::decode(bytes).expect("a golden document reads"))
        .collect()
}

/// Paths below this are masked by [`rules`].
const PREFIX: &[u8] = b"/home/ana/";
const MARK: &[u8] = b"<masked:";

/// The rules whose effect [`check_path`] and [`check_argument`] look for.
pub fn rules() -> RedactionRules {
    RedactionRules { path_prefixes: vec!["/home/ana/".into()], tokens: true }
}

/// Panics when a path or address that went through a redactor with [`rules`] still says what they mask.
pub fn check_path(path: &[u8]) {
    assert!(!is_under_prefix(path), "a masked prefix leaks: {}", path.escape_ascii());
    assert!(!holds_token(path), "a token leaks: {}", path.escape_ascii());
}

/// As [`check_path`], for an argument: it may be a path, or hold `NAME=PATH`.
pub fn check_argument(argument: &[u8]) {
    check_path(argument);
    for (at, _) in argument.iter().enumerate().filter(|(_, byte)| **byte == b'=') {
        assert!(!is_under_prefix(&argument[at + 1..]), "a masked prefix leaks: {}", argument.escape_ascii());
    }
}

/// Below the prefix is more than a mark. The name of an abstract socket, which begins with NUL, is taken as a path.
fn is_under_prefix(path: &[u8]) -> bool {
    let path = path.strip_prefix(b"\0").unwrap_or(path);
    path.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty() && !is_mark(rest))
}

fn is_mark(text: &[u8]) -> bool {
    let digits = text.strip_prefix(MARK).and_then(|rest| rest.strip_suffix(b">"));
    digits.is_some_and(|digits| digits.len() == 16 && digits.iter().all(u8::is_ascii_hexdigit))
}

/// A token of GitHub where a word begins. Not the code under test told again: one issuer stands for all.
fn holds_token(text: &[u8]) -> bool {
    let is_word = |byte: &&u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    (0..text.len()).any(|at| {
        let begins = at == 0 || !text[at - 1].is_ascii_alphanumeric();
        begins && text[at..].starts_with(b"ghp_") && text[at..].iter().take_while(is_word).count() >= 20
    })
}
