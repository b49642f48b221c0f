//! What is wrong with a policy, shown at its place in the file, all of it at once.

use std::fmt;

/// How many problems of one document are kept; the rest is only counted.
const MAX_DIAGNOSTICS: usize = 50;
/// How much of a line is quoted, in characters.
const EXCERPT_CHARS: usize = 120;

/// One problem at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line in the YAML file, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it, where that is known.
    pub help: Option<String>,
    excerpt: String,
    caret: usize,
}

/// Why a policy was refused: every problem, in the order of the file.
///
/// It prints like a compiler's message:
///
/// ```text
/// policy.yaml:12:17: error: `receipt` has no field `netwrok`
///    |
/// 12 |     expression: receipt.netwrok.connections.size() == 0
///    |                 ^
///    = help: did you mean `network`?
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    source_name: String,
    diagnostics: Vec<Diagnostic>,
    left_out: usize,
}

impl PolicyError {
    /// The problems, in the order of the file.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

impl std::error::Error for PolicyError {}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            let Diagnostic { line, column, message, help, excerpt, caret } = problem;
            let width = line.to_string().len();
            write!(
                f,
                "{}:{line}:{column}: error: {message}\n{:width$} |\n{line} | {excerpt}\n{:width$} | {:caret$}^",
                self.source_name, "", "", ""
            )?;
            if let Some(help) = help {
                write!(f, "\n{:width$} = help: {help}", "")?;
            }
        }
        if self.left_out > 0 {
            write!(f, "\n\n{}: and {} more", self.source_name, self.left_out)?;
        }
        Ok(())
    }
}

/// Collects the problems of one document.
pub(crate) struct Diagnostics<'a> {
    source: &'a str,
    found: Vec<(usize, String, Option<String>)>,
}

impl<'a> Diagnostics<'a> {
    pub(crate) fn new(source: &'a str) -> Self {
        Self { source, found: Vec::new() }
    }

    /// A problem at a byte offset of the document.
    pub(crate) fn push(&mut self, offset: usize, message: impl Into<String>) {
        self.found.push((offset, message.into(), None));
    }

    /// A problem with what to do about it.
    pub(crate) fn push_with(&mut self, offset: usize, message: impl Into<String>, help: Option<String>) {
        self.found.push((offset, message.into(), help));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn into_error(mut self, source_name: &str) -> PolicyError {
        self.found.sort_by_key(|(offset, ..)| *offset);
        let left_out = self.found.len().saturating_sub(MAX_DIAGNOSTICS);
        let diagnostics = self
            .found
            .into_iter()
            .take(MAX_DIAGNOSTICS)
            .map(|(offset, message, help)| diagnostic(self.source, offset, message, help))
            .collect();
        PolicyError { source_name: source_name.to_owned(), diagnostics, left_out }
    }
}

fn diagnostic(source: &str, offset: usize, message: String, help: Option<String>) -> Diagnostic {
    let mut offset = offset.min(source.len());
    while !source.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &source[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let text = source[line_start..].lines().next().unwrap_or_default();
    let at = before[line_start..].chars().count();
    // A long line is quoted around the place.
    let from = at.saturating_sub(EXCERPT_CHARS * 3 / 4);
    let from = if text.chars().count() <= EXCERPT_CHARS { 0 } else { from };
    let excerpt = text
        .chars()
        .skip(from)
        .take(EXCERPT_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>();
    Diagnostic {
        line: before.matches('\n').count() + 1,
        column: at + 1,
        message,
        help,
        excerpt: excerpt.trim_end().to_owned(),
        caret: at - from,
    }
}

/// The candidate that `word` is most likely a misspelling of.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()) / 3 + 1)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, with a transposition of neighbours counted once.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=right.len()).collect();
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}
