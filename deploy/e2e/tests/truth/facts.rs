//! What is compared: an act, how it ended, and on what.
//!
//! Both sides are brought to this one form; where they can't be, a rule of [`crate::rules`] says why.
//!
//! - A path is what the kernel resolved when an open succeeded, and the caller's string made absolute by its letters
//!   otherwise (failed opens, deletes, renames): after the call there is nothing left to resolve.
//! - An open is one fact per deed (`read`, `write`, `path`, `create`), or one for its error.
//! - Numbers are compared as well as sets: how often a fact happened, where it is a fact of both.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

/// The five sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Exec,
    Open,
    Delete,
    Rename,
    Connect,
}

impl Kind {
    pub(crate) const ALL: [(Self, &'static str); 5] = [
        (Self::Exec, "exec"),
        (Self::Open, "open"),
        (Self::Delete, "delete"),
        (Self::Rename, "rename"),
        (Self::Connect, "connect"),
    ];
}

/// One act. Two with the same letters are the same fact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fact {
    pub(crate) kind: Kind,
    /// The deed of an open; `ok`; or the errno's name, after `rmdir ` when a directory was to be deleted.
    pub(crate) what: String,
    /// The path as bytes, or the address.
    pub(crate) path: Vec<u8>,
    /// The new name of a rename. The receipt has no bytes of it, so what is not UTF-8 is replaced on both sides.
    pub(crate) to: String,
}

impl Fact {
    pub(crate) fn new(kind: Kind, what: impl Into<String>, path: impl Into<Vec<u8>>) -> Self {
        Self { kind, what: what.into(), path: path.into(), to: String::new() }
    }

    pub(crate) fn with_path(&self, path: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), ..self.clone() }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = Kind::ALL.into_iter().find_map(|(kind, name)| (kind == self.kind).then_some(name));
        write!(f, "{} {} {}", kind.unwrap_or_default(), self.what, self.path.escape_ascii())?;
        if self.to.is_empty() { Ok(()) } else { write!(f, " -> {}", self.to.escape_debug()) }
    }
}

/// How often each fact happened. A receipt does not say that of renames that succeeded: once.
pub(crate) type Facts = BTreeMap<Fact, u64>;

pub(crate) fn add(facts: &mut Facts, fact: Fact, count: u64) {
    if count > 0 {
        *facts.entry(fact).or_default() += count;
    }
}

/// An address as the receipt writes it: IPv6 in brackets, an IPv4 address in IPv6 clothes as that IPv4 address.
pub(crate) fn address(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip.to_canonical(), port).to_string()
}

/// The facts of a receipt, read leniently: fields and operations that are not compared are passed over.
pub(crate) fn of_receipt(receipt: &Value) -> Facts {
    let mut facts = Facts::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for process in list(&receipt["process_tree"]) {
        let execs = list(&process["execs"]);
        for exec in &execs {
            add(&mut facts, Fact::new(Kind::Exec, "ok", text(&exec["exe"])), 1);
        }
        if execs.is_empty() && process["forked_only"] != true {
            add(&mut facts, Fact::new(Kind::Exec, "ok", text(&process["exe"])), 1);
        }
    }
    for file in list(&receipt["files"]) {
        let path = match file["path_hex"].as_str() {
            Some(hex) => bytes_of_hex(hex),
            None => text(&file["path"]).into_bytes(),
        };
        let count = |field: &str| file[field].as_u64().unwrap_or(0);
        for (field, deed) in
            [("reads", "read"), ("writes", "write"), ("path_only", "path"), ("creates", "create")]
        {
            add(&mut facts, Fact::new(Kind::Open, deed, path.clone()), count(field));
        }
        add(&mut facts, Fact::new(Kind::Delete, "ok", path.clone()), count("deletes"));
        for to in list(&file["renamed_to"]) {
            let fact = Fact::new(Kind::Rename, "ok", path.clone());
            add(&mut facts, Fact { to: text(&to), ..fact }, 1);
        }
        for (error, count) in file["errors"].as_object().into_iter().flatten() {
            let (kind, what) = match error.split_once(' ') {
                Some(("open", errno)) => (Kind::Open, errno),
                Some(("delete", errno)) => (Kind::Delete, errno),
                Some(("rmdir", _)) => (Kind::Delete, error.as_str()),
                Some(("rename", errno)) => (Kind::Rename, errno),
                _ => continue,
            };
            add(&mut facts, Fact::new(kind, what, path.clone()), count.as_u64().unwrap_or(0));
        }
    }
    for socket in list(&receipt["sockets"]) {
        // A receipt that tells operations apart says so; in the others every socket was connected.
        if socket["operation"].as_str().is_some_and(|operation| operation != "connect") {
            continue;
        }
        for (result, count) in socket["results"].as_object().into_iter().flatten() {
            let fact = Fact::new(Kind::Connect, result, text(&socket["dst"]));
            add(&mut facts, fact, count.as_u64().unwrap_or(0));
        }
    }
    facts
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn bytes_of_hex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|two| String::from_utf8_lossy(two).into_owned());
    digits.filter_map(|two| u8::from_str_radix(&two, 16).ok()).collect()
}
