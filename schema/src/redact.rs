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

    /// The path with what lies under a masked prefix replaced by its mark, and names in it that are tokens. The name of
    /// an abstract socket, with its leading NUL, is taken as a path.
    pub fn path<'a>(&mut self, path: &'a [u8]) -> Cow<'a, [u8]> {
        let from = usize::from(path.first() == Some(&0));
        let spans = match self.below_prefix(path, from) {
            Some(span) => vec![span],
            None if self.rules.tokens => tokens(path).into_iter().map(Span::secret).collect(),
            None => Vec::new(),
        };
        self.without(path, spans)
    }

    /// The arguments with token-like values replaced by their marks, and masked paths in them masked too.
    pub fn argv<'a>(&mut self, argv: &[&'a [u8]]) -> Vec<Cow<'a, [u8]>> {
        let mut value_is_secret = false;
        argv.iter()
            .map(|argument| {
                let masked = if std::mem::take(&mut value_is_secret) && !is_option(argument) {
                    Cow::Owned(self.mark(argument, None).into_bytes())
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

    /// A path may be the whole argument or follow a `=`. Once one is found, all that comes after it is masked.
    fn argument<'a>(&mut self, argument: &'a [u8]) -> Cow<'a, [u8]> {
        let mut spans: Vec<Span> = match self.rules.tokens {
            true => secrets(argument).into_iter().map(Span::secret).collect(),
            false => Vec::new(),
        };
        let values = (1..argument.len()).filter(|from| argument[from - 1] == b'=');
        spans.extend(std::iter::once(0).chain(values).find_map(|from| self.below_prefix(argument, from)));
        self.without(argument, spans)
    }

    /// What lies below a masked prefix, if the text from `from` on is a path that does.
    fn below_prefix(&self, text: &[u8], from: usize) -> Option<Span> {
        self.rules.path_prefixes.iter().enumerate().find_map(|(rule, prefix)| {
            let prefix = prefix.trim_end_matches('/').as_bytes();
            let below = text[from..].strip_prefix(prefix)?.strip_prefix(b"/")?;
            let range = text.len() - below.len()..text.len();
            (!below.is_empty()).then_some(Span { range, prefix: Some(rule) })
        })
    }

    /// The text with each span replaced by its mark. Spans may overlap. A mark in the text is no exception: anybody can
    /// write one.
    fn without<'a>(&mut self, text: &'a [u8], mut spans: Vec<Span>) -> Cow<'a, [u8]> {
        spans.retain(|span| !span.range.is_empty());
        if spans.is_empty() {
            return Cow::Borrowed(text);
        }
        spans.sort_by_key(|span| (span.range.start, std::cmp::Reverse(span.range.end)));
        let mut masked = Vec::with_capacity(text.len());
        let mut done = 0;
        for Span { range, prefix } in spans {
            if range.end <= done {
                continue;
            }
            let start = range.start.max(done);
            masked.extend_from_slice(&text[done..start]);
            masked.extend_from_slice(self.mark(&text[start..range.end], prefix).as_bytes());
            done = range.end;
        }
        masked.extend_from_slice(&text[done..]);
        Cow::Owned(masked)
    }

    /// The mark of a value that lies below the prefix of that number, or is a secret.
    fn mark(&mut self, value: &[u8], prefix: Option<usize>) -> String {
        let rule = prefix.and_then(|rule| self.rules.path_prefixes.get(rule));
        *self.counts.entry(rule.map_or(TOKENS_RULE, String::as_str).to_owned()).or_default() += 1;
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

/// A part of a text that is masked, and why.
#[derive(Debug)]
struct Span {
    range: Range<usize>,
    /// Number of the prefix it lies below; `None` for a secret.
    prefix: Option<usize>,
}

impl Span {
    fn secret(range: Range<usize>) -> Self {
        Self { range, prefix: None }
    }
}

/// How long the run of such bytes is that the text begins with. Every search whose length an argument can choose is made
/// of this and [`find`], so that the tests can count its steps: they stay a multiple of the argument's length.
fn run<'a>(text: impl IntoIterator<Item = &'a u8>, is_in: impl Fn(u8) -> bool) -> usize {
    let length = text.into_iter().take_while(|byte| is_in(**byte)).count();
    #[cfg(test)]
    tests::count_steps(length + 1);
    length
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let found = haystack.windows(needle.len()).position(|window| window == needle);
    #[cfg(test)]
    tests::count_steps(found.unwrap_or(haystack.len()) + 1);
    found
}

fn names_a_secret(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| find(&name, word.as_bytes()).is_some())
        || find(&name, b"authorization").is_some()
}

/// Whether an argument after an option that takes a secret is an option too (`-h`, `--user`, `--user=ana`), so that the one
/// before it was a mere flag. A secret may well begin with a dash; it is hardly one letter, or words without a digit.
fn is_option(argument: &[u8]) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    match argument {
        [b'-', b'-'] => true,
        [b'-', b'-', b'a'..=b'z', long @ ..] => matches!(long.get(run(long, is_letter)), None | Some(b'=')),
        [b'-', letter] => letter.is_ascii_alphanumeric(),
        _ => false,
    }
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
    let mut end = 0;
    for (at, _) in text.iter().enumerate().filter(|(_, byte)| matches!(byte, b'=' | b':')) {
        let before = &text[..at];
        let before = &before[..at - run(before.iter().rev(), |byte| matches!(byte, b'"' | b'\''))];
        let name = run(before.iter().rev(), is_word);
        if names_a_secret(&before[before.len() - name..]) {
            let start = value(text, at + 1);
            // A value with further names in it is looked through once.
            if start >= end {
                end = start + run(&text[start..], |byte| !ends_value(byte));
                spans.push(start..end);
            }
        }
    }
    spans
}

/// Where the value begins that stands at or after `from`: past blanks, quotes and the name of an authentication scheme.
fn value(text: &[u8], from: usize) -> usize {
    let skip = |from: usize| from + run(&text[from..], |byte| matches!(byte, b' ' | b'\t' | b'"' | b'\''));
    let start = skip(from);
    for scheme in [&b"bearer"[..], b"basic", b"token"] {
        let rest = &text[start..];
        let is_scheme = rest.len() > scheme.len()
            && rest[..scheme.len()].eq_ignore_ascii_case(scheme)
            && matches!(rest[scheme.len()], b' ' | b'\t');
        if is_scheme {
            return skip(start + scheme.len());
        }
    }
    start
}

/// What ends the word that a value is.
fn ends_value(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b',' | b'&' | b';' | b'}')
}

/// `scheme://user:PASSWORD@host`, wherever it stands.
fn passwords(text: &[u8]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut from = 0;
    while let Some(at) = find(&text[from..], b"://") {
        let begin = from + at + 3;
        let ends = |byte: u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'"' | b'\'');
        let authority = &text[begin..];
        let authority = &authority[..run(authority, |byte| !ends(byte))];
        if let Some(user_end) = authority.iter().rposition(|byte| *byte == b'@')
            && let Some(colon) = authority[..user_end].iter().position(|byte| *byte == b':')
        {
            spans.push(begin + colon + 1..begin + user_end);
        }
        from = begin;
    }
    spans
}

/// Whether a token may begin with a letter: few do, and every path is looked through.
const BEGINS_TOKEN: [bool; 256] = {
    let mut begins = [false; 256];
    let mut index = 0;
    while index < TOKEN_PREFIXES.len() {
        begins[TOKEN_PREFIXES[index].0.as_bytes()[0] as usize] = true;
        index += 1;
    }
    begins
};

/// Tokens of well-known issuers, wherever a word begins.
fn tokens(text: &[u8]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let begins =
            BEGINS_TOKEN[usize::from(text[at])] && (at == 0 || !text[at - 1].is_ascii_alphanumeric());
        let known = |(prefix, least): &(&str, usize)| {
            let rest = &text[at..];
            (rest.starts_with(prefix.as_bytes()) && run(rest.iter().take(*least), is_word) == *least)
                .then(|| run(rest, is_word))
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

    #[test]
    fn a_path_is_masked_beside_a_secret() {
        for argument in [
            r#""tokenr":true}},&le=/home/ana/hunter2"#,
            "--token=a,--file=/home/ana/hunter2",
            "/home/ana/hunter2?token=a",
            "https://ana:a@example.org/?file=/home/ana/hunter2",
            "a=b=/home/ana/hunter2",
        ] {
            let masked = masked(&[argument]);
            assert!(!masked[0].contains("hunter2") && masked[0].contains("/home/ana/<masked:"), "{masked:?}");
        }
        let mut redactor = redactor();
        let path = redactor.path(b"/home/ana/x").into_owned();
        let argument = redactor.argv(&[b"--token=a,--file=/home/ana/x"]).concat();
        assert!(
            argument.ends_with(&[b",--file=", &*path].concat()),
            "the path has the mark that it has alone"
        );
        assert_eq!(redactor.counts(), [("/home/ana/".to_owned(), 2), (TOKENS_RULE.to_owned(), 1)]);
    }

    #[test]
    fn abstract_socket_names_are_masked() {
        let path = redactor().path(b"/home/ana/x").into_owned();
        assert_eq!(*redactor().path(b"\0/home/ana/x"), *[b"\0", &*path].concat());
        assert!(redactor().path(b"\0ghp_abcdefghijklmnopqrstuv").starts_with(b"\0<masked:"));
        assert_eq!(&*redactor().path(b"\0/home/anatole"), b"\0/home/anatole");
    }

    #[test]
    fn a_secret_may_begin_with_a_dash_and_an_option_after_a_flag_stays() {
        for secret in ["-hunter2", "--hunter2", "-", "", "--Hunter", "-x1", "hunter2"] {
            let masked = masked(&["tool", "--password", secret, "x"]);
            assert!(masked[2].starts_with(MARK), "{masked:?}");
            assert_eq!(masked[3], "x");
        }
        for option in ["-h", "--user", "--user-name=ana", "--"] {
            let argv = ["tool", "--password-stdin", option, "x"];
            assert_eq!(masked(&argv), argv);
        }
        assert!(masked(&["--password", "--token", "hunter2"])[2].starts_with(MARK));
        assert!(!masked(&["--password", "--token=hunter2"])[1].contains("hunter2"));
    }

    #[test]
    fn a_forged_mark_hides_nothing() {
        for forged in ["<masked:hunter2>", "<masked:hunter2", "<masked:0011223344556677>hunter2"] {
            for argument in [&format!("--token={forged}"), &format!("ftp://ana:{forged}@example.org")] {
                let masked = masked(&[argument]);
                assert!(!masked[0].contains("hunter2") && masked[0].contains(MARK), "{masked:?}");
            }
            assert!(!masked(&["--token", forged])[1].contains("hunter2"));
            let path = format!("/home/ana/{forged}");
            assert!(!masked(&[&path])[0].contains("hunter2"));
        }
        // As long as ours, and made of the same digits: still somebody else's.
        assert_ne!(masked(&["--token=<masked:0011223344556677>"]), ["--token=<masked:0011223344556677>"]);
    }

    thread_local! {
        static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    pub(super) fn count_steps(steps: usize) {
        STEPS.set(STEPS.get() + steps);
    }

    /// Steps for one argument, and for it as a path.
    fn steps(argument: &[u8]) -> usize {
        STEPS.set(0);
        redactor().argv(&[argument]);
        redactor().argv(&[b"--token", argument]);
        redactor().path(argument);
        STEPS.get()
    }

    #[test]
    fn the_longest_argument_takes_a_bounded_number_of_steps() {
        const BYTES: usize = 8192;
        const UNITS: [&str; 16] = [
            "-",
            "a",
            "=",
            ":",
            "\"",
            " ",
            "@",
            "ghp_",
            "-eyJ",
            "token=",
            "\"token\":",
            "token: bearer ",
            "://",
            "a://b:c@",
            "=/home/ana",
            "/home/ana/",
        ];
        for first in UNITS {
            for then in UNITS {
                let one_after_the_other =
                    first.repeat(BYTES / 2 / first.len()) + &then.repeat(BYTES / 2 / then.len());
                let both = format!("{first}{then}");
                for argument in [one_after_the_other, both.repeat(BYTES / both.len())] {
                    // A name is searched for each of a dozen words; the argument is looked through twice.
                    let steps = steps(argument.as_bytes());
                    assert!(steps < 64 * BYTES, "{steps} steps for {first:?} and {then:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(argv in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6)) {
            let argv: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(redactor().argv(&argv).len(), argv.len());
        }
    }
}
