//! The functions that rules may call, beside the macros `has`, `all`, `exists`, `exists_one`, `map` and `filter`.
//!
//! Each may be written as a function or as a method: `under(f.path, "/etc")` is `f.path.under("/etc")`.
//!
//! | function | meaning |
//! |---|---|
//! | `size(x)` | characters of a string, elements of a list or a map |
//! | `contains(s, part)`, `startsWith(s, part)`, `endsWith(s, part)` | plain text |
//! | `lowerAscii(s)` | `s` with `A-Z` in lower case |
//! | `matches(s, "regex")` | the pattern is found anywhere in `s` (Rust `regex` syntax, linear time) |
//! | `glob(path, "/etc/**")` | `*` within one name, `**` across names, `?` one character; the whole path must match |
//! | `under(path, dir)` | `path` is `dir` or below it, by whole names: `/etcetera` is not under `/etc` |
//! | `cidr_contains("10.0.0.0/8", dst)` | the address of `dst` (`1.2.3.4:80`, `[::1]:80`, or bare) is in the network |
//! | `port(dst)` | the port of `address:port`; an error for anything else |
//! | `int(x)`, `string(x)` | conversions; `int("12")` reads the decimal strings of a receipt |
//!
//! A pattern (regex, glob, network) must be a literal: it is compiled once, when the policy is loaded, with a bound on
//! its size.

use std::net::{IpAddr, SocketAddr};

use regex::{Regex, RegexBuilder};

use crate::shape::Shape;

/// Largest compiled pattern, in bytes.
const PATTERN_BYTES: usize = 256 * 1024;

/// A function, its pattern compiled.
#[derive(Debug, Clone)]
pub(crate) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    LowerAscii,
    Under,
    Port,
    Int,
    Str,
    Matches(Regex),
    CidrContains(Cidr),
}

/// A compiled pattern.
pub(crate) enum Pattern {
    Regex(Regex),
    Cidr(Cidr),
}

/// What kind of pattern a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatternKind {
    Regex,
    Glob,
    Cidr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    LowerAscii,
    Under,
    Port,
    Int,
    Str,
    Pattern,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Parameter {
    Str,
    Sized,
    Scalar,
    Pattern(PatternKind),
}

impl Parameter {
    pub(crate) fn accepts(self, shape: &Shape) -> bool {
        match (self, shape) {
            (_, Shape::Any) => true,
            (Self::Str | Self::Pattern(_), shape) => *shape == Shape::Str,
            (Self::Sized, shape) => matches!(shape, Shape::Str | Shape::List(_) | Shape::Map(_)),
            (Self::Scalar, shape) => matches!(shape, Shape::Str | Shape::Number | Shape::Bool),
        }
    }

    pub(crate) fn pattern(self) -> Option<PatternKind> {
        match self {
            Self::Pattern(kind) => Some(kind),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Str | Self::Pattern(_) => "a string",
            Self::Sized => "a string, a list or a map",
            Self::Scalar => "a string or a number",
        }
    }
}

pub(crate) struct Signature {
    name: &'static str,
    pub(crate) usage: &'static str,
    pub(crate) kind: Kind,
    pub(crate) parameters: &'static [Parameter],
    pub(crate) result: Shape,
}

const SIGNATURES: &[Signature] = &[
    signature("size", "size(x)", Kind::Size, &[Parameter::Sized], Shape::Number),
    signature("contains", "contains(s, part)", Kind::Contains, TWO, Shape::Bool),
    signature("startsWith", "startsWith(s, part)", Kind::StartsWith, TWO, Shape::Bool),
    signature("endsWith", "endsWith(s, part)", Kind::EndsWith, TWO, Shape::Bool),
    signature("lowerAscii", "lowerAscii(s)", Kind::LowerAscii, &[Parameter::Str], Shape::Str),
    signature(
        "matches",
        "matches(s, \"regex\")",
        Kind::Pattern,
        &[Parameter::Str, Parameter::Pattern(PatternKind::Regex)],
        Shape::Bool,
    ),
    signature(
        "glob",
        "glob(path, \"/etc/**\")",
        Kind::Pattern,
        &[Parameter::Str, Parameter::Pattern(PatternKind::Glob)],
        Shape::Bool,
    ),
    signature("under", "under(path, \"/etc\")", Kind::Under, TWO, Shape::Bool),
    signature(
        "cidr_contains",
        "cidr_contains(\"10.0.0.0/8\", dst)",
        Kind::Pattern,
        &[Parameter::Pattern(PatternKind::Cidr), Parameter::Str],
        Shape::Bool,
    ),
    signature("port", "port(dst)", Kind::Port, &[Parameter::Str], Shape::Number),
    signature("int", "int(x)", Kind::Int, &[Parameter::Scalar], Shape::Number),
    signature("string", "string(x)", Kind::Str, &[Parameter::Scalar], Shape::Str),
];

const TWO: &[Parameter] = &[Parameter::Str, Parameter::Str];

const fn signature(
    name: &'static str,
    usage: &'static str,
    kind: Kind,
    parameters: &'static [Parameter],
    result: Shape,
) -> Signature {
    Signature { name, usage, kind, parameters, result }
}

impl Function {
    pub(crate) fn signature(name: &str) -> Option<&'static Signature> {
        SIGNATURES.iter().find(|signature| signature.name == name)
    }

    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        SIGNATURES.iter().map(|signature| signature.name)
    }

    /// The function, given the pattern its call names; `None` when that pattern is missing.
    pub(crate) fn of(kind: Kind, pattern: Option<Pattern>) -> Option<Self> {
        Some(match (kind, pattern) {
            (Kind::Pattern, Some(Pattern::Regex(regex))) => Self::Matches(regex),
            (Kind::Pattern, Some(Pattern::Cidr(cidr))) => Self::CidrContains(cidr),
            (Kind::Pattern, None) => return None,
            (Kind::Size, _) => Self::Size,
            (Kind::Contains, _) => Self::Contains,
            (Kind::StartsWith, _) => Self::StartsWith,
            (Kind::EndsWith, _) => Self::EndsWith,
            (Kind::LowerAscii, _) => Self::LowerAscii,
            (Kind::Under, _) => Self::Under,
            (Kind::Port, _) => Self::Port,
            (Kind::Int, _) => Self::Int,
            (Kind::Str, _) => Self::Str,
        })
    }
}

impl Pattern {
    pub(crate) fn compile(kind: PatternKind, text: &str) -> Result<Self, String> {
        match kind {
            PatternKind::Cidr => Cidr::parse(text).map(Self::Cidr),
            PatternKind::Regex => regex(text).map(Self::Regex),
            PatternKind::Glob => regex(&glob_as_regex(text)).map(Self::Regex),
        }
    }
}

fn regex(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .size_limit(PATTERN_BYTES)
        .dfa_size_limit(PATTERN_BYTES)
        .nest_limit(32)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => {
                format!("the pattern is too large: it compiles to more than {PATTERN_BYTES} bytes")
            }
            // The last line of the message says what is wrong; those before it draw it.
            error => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                format!("the pattern is not a regex: {last}")
            }
        })
}

/// `*` stays within a name, `**` does not, and `/**/` also stands for one slash.
fn glob_as_regex(glob: &str) -> String {
    let mut regex = String::from(r"(?s)\A");
    let mut rest = glob;
    while let Some(first) = rest.chars().next() {
        let (part, length) = match first {
            '/' if rest.starts_with("/**/") => ("/(?:.*/)?".to_owned(), 4),
            '*' if rest.starts_with("**") => (".*".to_owned(), 2),
            '*' => ("[^/]*".to_owned(), 1),
            '?' => ("[^/]".to_owned(), 1),
            other => (regex::escape(other.encode_utf8(&mut [0; 4])), other.len_utf8()),
        };
        regex.push_str(&part);
        rest = &rest[length..];
    }
    regex.push_str(r"\z");
    regex
}

/// Whether `path` is `directory` or below it, by whole names.
pub(crate) fn under(path: &str, directory: &str) -> bool {
    let directory = directory.strip_suffix('/').unwrap_or(directory);
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The port of `address:port`.
pub(crate) fn port(destination: &str) -> Option<u16> {
    destination.parse::<SocketAddr>().ok().map(|address| address.port())
}

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl Cidr {
    fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("`{text}` is not a network such as 10.0.0.0/8 or fd00::/8: {why}");
        let (address, bits) = text.split_once('/').ok_or_else(|| bad("it has no `/`"))?;
        let address: IpAddr = address.parse().map_err(|_| bad("the address cannot be read"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        match bits.parse::<u8>() {
            Ok(bits) if bits <= most => Ok(Self { address, bits }),
            _ => Err(bad("the prefix length is out of range")),
        }
    }

    /// Whether the address of `destination` is in the network; a unix socket's path never is.
    pub(crate) fn contains(&self, destination: &str) -> bool {
        let address = destination
            .parse::<SocketAddr>()
            .map(|address| address.ip())
            .or_else(|_| destination.trim_matches(['[', ']']).parse::<IpAddr>());
        // An IPv4 address that came through an IPv6 socket is that IPv4 address.
        match (self.address, address.map(|address| address.to_canonical())) {
            (IpAddr::V4(network), Ok(IpAddr::V4(address))) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(network), Ok(IpAddr::V6(address))) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_keep_to_their_names() {
        let matches = |glob: &str, path: &str| regex(&glob_as_regex(glob)).unwrap().is_match(path);
        assert!(matches("/etc/**", "/etc/ssl/certs/a.pem"));
        assert!(!matches("/etc/*", "/etc/ssl/certs"));
        assert!(matches("/home/*/.ssh/**", "/home/a/.ssh/id"));
        assert!(matches("**/.ssh/*", "/root/.ssh/id"));
        assert!(matches("/a/**/z", "/a/z") && matches("/a/**/z", "/a/b/c/z"));
        assert!(!matches("/a.c", "/abc") && !matches("/a", "/a\nb") && matches("/?", "/é"));
    }

    #[test]
    fn under_compares_whole_names() {
        assert!(under("/etc", "/etc") && under("/etc/passwd", "/etc/") && under("/etc", "/"));
        assert!(!under("/etcetera", "/etc") && !under("/", "/etc"));
    }

    #[test]
    fn networks_hold_their_addresses() {
        let contains = |network: &str, dst: &str| Cidr::parse(network).unwrap().contains(dst);
        assert!(contains("10.0.0.0/8", "10.1.2.3:80") && contains("10.0.0.0/8", "[::ffff:10.1.2.3]:80"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1:80") && !contains("10.0.0.0/8", "/run/x.sock"));
        assert!(contains("::1/128", "[::1]:9") && contains("0.0.0.0/0", "8.8.8.8"));
        assert!(Cidr::parse("10.0.0.0/33").is_err() && Cidr::parse("10.0.0.0").is_err());
    }
}
