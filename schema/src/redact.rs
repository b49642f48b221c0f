//! Masking of values before they leave the node.
//!
//! What is removed leaves a mark, `<masked:XXXXXXXXXXXXXXXX>`: the first 16 hexadecimal digits of
//! HMAC-SHA-256(key, execution id, value). The key is random, made per execution and never published, so equal
//! values stay comparable inside one receipt and nowhere else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::ids::ExecutionId;
use crate::lifecycle::RedactionRules;

/// What a mark begins with.
const MARK: &str = "<masked:";
/// The rule name under which masked argument values are counted.
pub const TOKENS_RULE: &str = "tokens";

/// Applies the redaction rules of one execution and counts what each masked.
#[derive(Debug, Clone)]
pub struct Redactor {
    key: [u8; 32],
    execution: ExecutionId,
    rules: RedactionRules,
    counts: BTreeMap<String, u64>,
}

/// Words that, in the name of an option or variable, say that its value is secret.
const SECRET_WORDS: [&str; 11] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "api-key",
    "api_key",
    "access-key",
    "access_key",
    "credential",
];

/// Beginnings of values that are tokens of a well-known issuer, and how long they are at least.
const TOKEN_PREFIXES: [(&str, usize); 17] = [
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("ghr_", 20),
    ("github_pat_", 20),
    ("glpat-", 20),
    ("sk-", 20),
    ("sk_live_", 20),
    ("rk_live_", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("AKIA", 20),
    ("ASIA", 20),
    ("AIza", 30),
    ("eyJ", 40),
    ("npm_", 30),
];

impl Redactor {
    /// A redactor with a key of its own. `key` is an input, because this crate has no randomness.
    pub fn new(key: [u8; 32], execution: ExecutionId, rules: RedactionRules) -> Self {
        Self { key, execution, rules, counts: BTreeMap::new() }
    }

    /// How many values each rule masked so far.
    pub fn counts(&self) -> Vec<(String, u64)> {
        self.counts.iter().map(|(rule, count)| (rule.clone(), *count)).collect()
    }

    /// The path with what lies under a masked prefix replaced by its mark, and names in it that are tokens.
    pub fn path<'a>(&mut self, path: &'a [u8]) -> Cow<'a, [u8]> {
        let under = |prefix: &&String| {
            let prefix = prefix.trim_end_matches('/').as_bytes();
            path.strip_prefix(prefix).is_some_and(|rest| rest.first() == Some(&b'/') && rest.len() > 1)
        };
        let Some(rule) = self.rules.path_prefixes.iter().find(under).cloned() else {
            return match self.rules.tokens {
                true => self.without(path, tokens(path)),
                false => Cow::Borrowed(path),
            };
        };
        let prefix = rule.trim_end_matches('/');
        let mark = self.mark(&path[prefix.len() + 1..], &rule);
        Cow::Owned([prefix.as_bytes(), b"/", mark.as_bytes()].concat())
    }

    /// The arguments with token-like values replaced by their marks, and masked paths in them masked too.
    pub fn argv<'a>(&mut self, argv: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
        let mut value_is_secret = false;
        argv.iter()
            .map(|argument| {
                let masked = if std::mem::take(&mut value_is_secret) && !argument.starts_with(b"-") {
                    Cow::Owned(self.token_mark(argument))
                } else {
                    self.argument(argument)
                };
                value_is_secret = self.rules.tokens
                    && argument.starts_with(b"-")
                    && !argument.contains(&b'=')
                    && names_a_secret(argument);
                masked
            })
            .collect()
    }

    fn argument<'a>(&mut self, argument: &'a [u8]) -> Cow<'a, [u8]> {
        if self.rules.tokens
            && let Cow::Owned(masked) = self.without(argument, secrets(argument))
        {
            return Cow::Owned(masked);
        }
        match argument.iter().position(|byte| *byte == b'=') {
            Some(at) if argument[at + 1..].starts_with(b"/") => match self.path(&argument[at + 1..]) {
                Cow::Owned(path) => Cow::Owned([&argument[..=at], &path].concat()),
                Cow::Borrowed(_) => Cow::Borrowed(argument),
            },
            _ => self.path(argument),
        }
    }

    /// The text with each span replaced by its mark. Spans may overlap; what is masked already stays.
    fn without<'a>(&mut self, text: &'a [u8], mut spans: Vec<Range<usize>>) -> Cow<'a, [u8]> {
        spans.retain(|span| !span.is_empty() && !text[span.start..].starts_with(MARK.as_bytes()));
        if spans.is_empty() {
            return Cow::Borrowed(text);
        }
        spans.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
        let mut masked = Vec::with_capacity(text.len());
        let mut done = 0;
        for span in spans {
            if span.end <= done {
                continue;
            }
            let start = span.start.max(done);
            masked.extend_from_slice(&text[done..start]);
            masked.extend_from_slice(&self.token_mark(&text[start..span.end]));
            done = span.end;
        }
        masked.extend_from_slice(&text[done..]);
        Cow::Owned(masked)
    }

    fn token_mark(&mut self, value: &[u8]) -> Vec<u8> {
        self.mark(value, TOKENS_RULE).into_bytes()
    }

    fn mark(&mut self, value: &[u8], rule: &str) -> String {
        *self.counts.entry(rule.to_owned()).or_default() += 1;
        // HMAC takes a key of any length, so this cannot fail; a value is still never let through if it did.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            return format!("{MARK}>");
        };
        mac.update(self.execution.as_bytes());
        mac.update(value);
        let code = mac.finalize().into_bytes();
        let digits: String = code.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{MARK}{digits}>")
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn names_a_secret(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| find(&name, word.as_bytes()).is_some())
        || find(&name, b"authorization").is_some()
}

/// Bytes of a name such as `X-Api-Key` or of a token.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// What must not leave the node in an argument: tokens of well-known issuers, values of names that say they are secret
/// (`--token=VALUE`, `"password": "VALUE"`, `Authorization: Bearer VALUE`), and passwords in addresses
/// (`scheme://user:VALUE@`).
fn secrets(text: &[u8]) -> Vec<Range<usize>> {
    let mut spans = tokens(text);
    spans.extend(passwords(text));
    for (at, _) in text.iter().enumerate().filter(|(_, byte)| matches!(byte, b'=' | b':')) {
        let quotes = text[..at].iter().rev().take_while(|byte| matches!(byte, b'"' | b'\'')).count();
        let end = at - quotes;
        let name = text[..end].iter().rev().take_while(|byte| is_word(**byte)).count();
        if names_a_secret(&text[end - name..end]) {
            spans.push(value(text, at + 1));
        }
    }
    spans
}

/// The value that begins at or after `from`: past blanks, quotes and the name of an authentication scheme, up to what
/// ends a word.
fn value(text: &[u8], from: usize) -> Range<usize> {
    let skip = |from: usize| {
        from + text[from..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'"' | b'\'')).count()
    };
    let mut start = skip(from);
    for scheme in [&b"bearer"[..], b"basic", b"token"] {
        let rest = &text[start..];
        let is_scheme = rest.len() > scheme.len()
            && rest[..scheme.len()].eq_ignore_ascii_case(scheme)
            && matches!(rest[scheme.len()], b' ' | b'\t');
        if is_scheme {
            start = skip(start + scheme.len());
            break;
        }
    }
    let ends =
        |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b',' | b'&' | b';' | b'}');
    let length = text[start..].iter().position(ends).unwrap_or(text.len() - start);
    start..start + length
}

/// `scheme://user:PASSWORD@host`, wherever it stands.
fn passwords(text: &[u8]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut from = 0;
    while let Some(at) = find(&text[from..], b"://") {
        let begin = from + at + 3;
        let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'"' | b'\'');
        let authority = &text[begin..];
        let authority = &authority[..authority.iter().position(ends).unwrap_or(authority.len())];
        if let Some(user_end) = authority.iter().rposition(|byte| *byte == b'@')
            && let Some(colon) = authority[..user_end].iter().position(|byte| *byte == b':')
        {
            spans.push(begin + colon + 1..begin + user_end);
        }
        from = begin;
    }
    spans
}

/// Tokens of well-known issuers, wherever a word begins.
fn tokens(text: &[u8]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let begins = at == 0 || !text[at - 1].is_ascii_alphanumeric();
        let known = |(prefix, least): &(&str, usize)| {
            let length = text[at..].iter().take_while(|byte| is_word(**byte)).count();
            (text[at..].starts_with(prefix.as_bytes()) && length >= *least).then_some(length)
        };
        match begins.then(|| TOKEN_PREFIXES.iter().find_map(known)).flatten() {
            Some(length) => {
                spans.push(at..at + length);
                at += length;
            }
            None => at += 1,
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redactor() -> Redactor {
        let rules = RedactionRules { path_prefixes: vec!["/home/ana/".into()], tokens: true };
        Redactor::new([9; 32], ExecutionId::from_parts(1, [1; 10]), rules)
    }

    fn masked(argv: &[&str]) -> Vec<String> {
        let argv: Vec<&[u8]> = argv.iter().map(|argument| argument.as_bytes()).collect();
        let masked = redactor().argv(&argv);
        masked.iter().map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
    }

    #[test]
    fn secrets_go_and_the_rest_stays() {
        for secret in [
            &["curl", "--token=hunter2secret"][..],
            &["curl", "--password", "hunter2secret"],
            &["curl", "-H", "Authorization: Bearer hunter2secret"],
            &["curl", "https://ana:hunter2secret@example.org/x"],
            &["env", "GITHUB_TOKEN=hunter2secret", "sh"],
            &["sh", "-c", "API_KEY=hunter2secret make"],
            &["curl", "-H", "X-Api-Key:hunter2secret"],
            &["curl", "--data", r#"{"user": "ana", "password": "hunter2secret"}"#],
            &["git", "clone", "--config=http.extraHeader=Authorization: Basic hunter2secret"],
        ] {
            let masked = masked(secret);
            assert!(!masked.concat().contains("hunter2secret"), "{masked:?}");
            assert!(masked.concat().contains(MARK), "{masked:?}");
            assert_eq!(masked[0], secret[0]);
        }
        let token = "ghp_abcdefghijklmnopqrstuv";
        for text in ["T", "echo 1\nT", "curl\tT", r#"{"x":"T"}"#, "git:T@example.org", "/tmp/T", "a,T;b"] {
            let masked = masked(&[&text.replace('T', token)]);
            assert!(!masked[0].contains(token) && masked[0].contains(MARK), "{masked:?}");
        }
        for plain in
            ["make -j4", "--author=Ana", "eyJ", "https://example.org/a@b", "sk-learn", "/usr/bin/env"]
        {
            assert_eq!(masked(&[plain]), [plain]);
        }
    }

    #[test]
    fn equal_values_have_equal_marks_under_one_key() {
        let mut redactor = redactor();
        let one = redactor.path(b"/home/ana/a").into_owned();
        assert_eq!(one, redactor.path(b"/home/ana/a").into_owned());
        assert_ne!(one, redactor.path(b"/home/ana/b").into_owned());
        assert!(one.starts_with(b"/home/ana/<masked:"));
        assert_eq!(&*redactor.path(b"/home/anatole/a"), b"/home/anatole/a");
        assert_eq!(redactor.counts(), [("/home/ana/".to_owned(), 3)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(argv in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6)) {
            let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(redactor().argv(&argv).len(), argv.len());
        }
    }
}
