//! The YAML document as a tree whose every scalar knows its place in the file.
//!
//! Read from parser events instead of through serde, so that all problems are found at once and a place inside of a
//! scalar (a folded block, an escaped string) can be traced back to the file. Anchors, aliases and tags are refused: a
//! policy has no use for them and they are how a small document becomes a large one.

use std::ops::Range;

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle};

use crate::diagnostic::Diagnostics;

/// Deepest nesting of the document; a policy needs three.
const MAX_NESTING: usize = 16;

/// A node of the document.
pub(crate) enum Node {
    Scalar(Scalar),
    Sequence(usize, Vec<Node>),
    Mapping(usize, Vec<(Scalar, Node)>),
}

impl Node {
    /// Where it begins, in bytes of the document.
    pub(crate) fn offset(&self) -> usize {
        match self {
            Self::Scalar(scalar) => scalar.range.start,
            Self::Sequence(offset, _) | Self::Mapping(offset, _) => *offset,
        }
    }

    /// What it is, for a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Scalar(_) => "a scalar",
            Self::Sequence(..) => "a list",
            Self::Mapping(..) => "a mapping",
        }
    }
}

/// A scalar with its text and its place.
pub(crate) struct Scalar {
    pub(crate) text: String,
    pub(crate) range: Range<usize>,
    style: ScalarStyle,
}

impl Scalar {
    /// Where each character of `text` stands in `source`, and at last where the text ends.
    ///
    /// The two are walked side by side: what the document has and the text has not (indentation, quotes, folded line
    /// ends, escapes) is skipped.
    pub(crate) fn places(&self, source: &str) -> Vec<usize> {
        let raw = source.get(self.range.clone()).unwrap_or_default();
        let chars: Vec<(usize, char)> =
            raw.char_indices().map(|(at, c)| (at + self.range.start, c)).collect();
        let mut at = 0;
        if matches!(self.style, ScalarStyle::Literal | ScalarStyle::Folded) {
            // The header (`|`, `>-`, a comment) is not text.
            let header = chars.iter().take_while(|(_, c)| *c != '\n').count();
            if chars.first().is_some_and(|(_, c)| matches!(c, '|' | '>')) {
                at = header;
            }
        } else if matches!(self.style, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted) {
            at = 1;
        }
        let mut places = Vec::with_capacity(self.text.len() + 1);
        for wanted in self.text.chars() {
            at = self.skip_to(&chars, at, wanted);
            places.push(chars.get(at).map_or(self.range.end, |(offset, _)| *offset));
            at += match chars.get(at) {
                Some((_, '\\')) if self.style == ScalarStyle::DoubleQuoted => {
                    escape_length(chars.get(at + 1).map(|(_, c)| *c))
                }
                Some((_, '\'')) if self.style == ScalarStyle::SingleQuoted => 2,
                _ => 1,
            };
        }
        places.push(chars.get(at).map_or(self.range.end, |(offset, _)| *offset));
        places
    }

    /// The index at or after `at` of the character that stands for `wanted`.
    fn skip_to(&self, chars: &[(usize, char)], at: usize, wanted: char) -> usize {
        let double = self.style == ScalarStyle::DoubleQuoted;
        (at..chars.len())
            .find(|index| match chars[*index].1 {
                // A backslash before a line end joins the lines; any other escape is a character.
                '\\' if double => !matches!(chars.get(index + 1), Some((_, '\n' | '\r'))),
                '\n' => wanted == ' ' || wanted == '\n',
                found => found == wanted,
            })
            .unwrap_or(chars.len())
    }
}

/// Characters of a double-quoted escape, the backslash included (YAML 1.2.2 §5.7).
fn escape_length(kind: Option<char>) -> usize {
    match kind {
        Some('x') => 4,
        Some('u') => 6,
        Some('U') => 10,
        _ => 2,
    }
}

/// Reads the one document of `source`; `None` when it cannot be read any further, with the reason in `problems`.
pub(crate) fn read(source: &str, problems: &mut Diagnostics<'_>) -> Option<Node> {
    let mut options = Options::default();
    options.emit_comments = false;
    options.flow_nesting_limit = MAX_NESTING;
    options.block_nesting_limit = MAX_NESTING;

    enum Open {
        Sequence(usize, Vec<Node>),
        Mapping(usize, Vec<(Scalar, Node)>, Option<Scalar>),
    }
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    let mut documents = 0;
    for event in Parser::new_from_str_with_options(source, options) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let offset = error.marker().byte_offset().unwrap_or(source.len());
                problems.push(offset, format!("this is not YAML: {}", error.info()));
                return None;
            }
        };
        let range = span.byte_range().unwrap_or(0..0);
        let mut refuse = |anchor: usize, tagged: bool| {
            if anchor != 0 || tagged {
                problems.push(range.start, "anchors, aliases and tags are not allowed in a policy");
            }
        };
        let node = match event {
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    problems.push(range.start, "a policy file holds one document");
                    return None;
                }
                continue;
            }
            Event::Alias(_) => {
                refuse(1, false);
                Node::Scalar(Scalar { text: String::new(), range, style: ScalarStyle::Plain })
            }
            Event::Scalar(text, style, anchor, tag) => {
                refuse(anchor, tag.is_some());
                Node::Scalar(Scalar { text: text.into_owned(), range, style })
            }
            Event::SequenceStart(_, anchor, tag) => {
                refuse(anchor, tag.is_some());
                open.push(Open::Sequence(range.start, Vec::new()));
                continue;
            }
            Event::MappingStart(_, anchor, tag) => {
                refuse(anchor, tag.is_some());
                open.push(Open::Mapping(range.start, Vec::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::Sequence(offset, items)) => Node::Sequence(offset, items),
                Some(Open::Mapping(offset, entries, _)) => Node::Mapping(offset, entries),
                None => return None,
            },
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(node),
            Some(Open::Sequence(_, items)) => items.push(node),
            Some(Open::Mapping(_, entries, key)) => match (key.take(), node) {
                (Some(key), value) => entries.push((key, value)),
                (None, Node::Scalar(scalar)) => *key = Some(scalar),
                (None, other) => {
                    problems.push(other.offset(), "a key must be a word");
                    return None;
                }
            },
        }
    }
    if root.is_none() && problems.is_empty() {
        problems.push(0, "the document is empty: expected a policy with version, name and rules");
    }
    root
}
