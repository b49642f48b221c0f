//! A log of `strace -f -y` as facts.
//!
//! - `-y` writes what a descriptor is: `3</the/path>`, and the working directory at `AT_FDCWD</the/path>`.
//! - A call that another task's line interrupts stands in two halves, which are put together again.
//! - Calls without a directory descriptor are relative to the working directory of their process, which is followed
//!   through chdir, fchdir and the clones that copy or share it, and corrected wherever `-y` shows it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::facts::{Fact, Facts, Kind, add, address};

/// What strace is asked for: the calls that are compared, and those that tell where a relative path starts.
pub(crate) const TRACED: &str = "trace=open,openat,openat2,creat,unlink,unlinkat,rmdir,rename,renameat,renameat2,\
                                 connect,execve,execveat,chdir,fchdir,clone,clone3,fork,vfork,unshare";

/// One call that returned.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    pid: u32,
    /// The task that began it: another one than `pid` when a thread's exec made it the process.
    by: u32,
    /// Lines where it began and where it returned.
    begin: usize,
    end: usize,
    name: String,
    arguments: Vec<String>,
    result: String,
}

/// The calls of a log, in the order of their returns.
fn calls(log: &str) -> Vec<Call> {
    let mut halves: HashMap<u32, (u32, usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in log.lines().enumerate() {
        let Some((pid, text)) = line.split_once(' ') else { continue };
        let Ok(pid) = pid.parse::<u32>() else { continue };
        let text = text.trim_start();
        if let Some(begun) = text.strip_suffix("<unfinished ...>") {
            halves.insert(pid, (pid, number, begun.to_owned()));
            continue;
        }
        // A thread's exec returns in the process's first thread, which it replaces.
        if let Some((begun, leader)) = text.rsplit_once("<pid changed to ")
            && let Some(Ok(leader)) = leader.strip_suffix(" ...>").map(str::parse)
        {
            halves.insert(leader, (pid, number, begun.to_owned()));
            continue;
        }
        if let Some(by) = text.strip_prefix("+++ superseded by execve in pid ") {
            let by = by.split(' ').next().and_then(|by| by.parse().ok());
            if let Some(half) = by.and_then(|by| halves.remove(&by)) {
                halves.insert(pid, half);
            }
            continue;
        }
        let (by, begin, whole) =
            match text.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
                Some((_, rest)) => match halves.remove(&pid) {
                    Some((by, begin, begun)) => (by, begin, begun + rest),
                    None => panic!("line {}: resumes nothing: {line}", number + 1),
                },
                None => (pid, number, text.to_owned()),
            };
        if whole.starts_with("+++") || whole.starts_with("---") {
            continue;
        }
        let Some((name, arguments, result)) = split(&whole) else {
            panic!("line {}: not understood: {line}", number + 1)
        };
        calls.push(Call { pid, by, begin, end: number, name, arguments, result });
    }
    calls
}

/// `name(arguments) = result`; arguments are split at the commas that stand in no quotes and no brackets.
fn split(text: &str) -> Option<(String, Vec<String>, String)> {
    let (name, rest) = text.split_once('(')?;
    let mut arguments = vec![String::new()];
    let mut depth = 0;
    let mut closing = None;
    let mut letters = rest.char_indices();
    let mut before = ' ';
    while let Some((at, letter)) = letters.next() {
        match letter {
            ')' if depth == 0 => {
                closing = Some(at);
                break;
            }
            ',' if depth == 0 => {
                arguments.push(String::new());
                before = letter;
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        arguments.last_mut()?.push(letter);
        // A string, or the path behind a descriptor; in both a quote, `<` and `>` of the text itself are escaped.
        let end = match letter {
            '"' => '"',
            '<' if before.is_alphanumeric() => '>',
            _ => {
                before = letter;
                continue;
            }
        };
        while let Some((_, letter)) = letters.next() {
            arguments.last_mut()?.push(letter);
            if letter == '\\' {
                arguments.last_mut()?.push(letters.next()?.1);
            } else if letter == end {
                break;
            }
        }
        before = end;
    }
    let result = rest[closing? + 1..].trim_start().strip_prefix("= ")?;
    let arguments = arguments.into_iter().map(|argument| argument.trim().to_owned()).collect();
    Some((name.to_owned(), arguments, result.to_owned()))
}

/// The bytes of a text in which strace escaped what is not printable.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut letters = text.bytes().peekable();
    while let Some(letter) = letters.next() {
        if letter != b'\\' {
            bytes.push(letter);
            continue;
        }
        match letters.next() {
            Some(b'n') => bytes.push(b'\n'),
            Some(b't') => bytes.push(b'\t'),
            Some(b'r') => bytes.push(b'\r'),
            Some(b'v') => bytes.push(0x0b),
            Some(b'f') => bytes.push(0x0c),
            Some(b'x') => {
                let digits: Vec<u8> = letters.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap());
            }
            Some(digit @ b'0'..=b'7') => {
                let mut value = u32::from(digit - b'0');
                for _ in 0..2 {
                    match letters.next_if(|next| (b'0'..=b'7').contains(next)) {
                        Some(next) => value = value * 8 + u32::from(next - b'0'),
                        None => break,
                    }
                }
                bytes.push(value as u8);
            }
            Some(other) => bytes.push(other),
            None => {}
        }
    }
    bytes
}

/// The text of a quoted argument; nothing for a pointer that strace could not follow.
fn string(argument: &str) -> Option<Vec<u8>> {
    let inner = argument.strip_prefix('"')?;
    let inner = inner.strip_suffix('"').unwrap_or_else(|| panic!("a string was cut: {argument}"));
    Some(unescape(inner))
}

/// What a descriptor is: `3</the/path>`, with `(deleted)` behind it when it has no name any more.
fn behind(descriptor: &str) -> Option<Vec<u8>> {
    let (_, path) = descriptor.split_once('<')?;
    let path = path.strip_suffix("(deleted)").unwrap_or(path);
    let path = unescape(path.strip_suffix('>')?);
    Some(path.strip_suffix(b" (deleted)").map(<[u8]>::to_vec).unwrap_or(path))
}

/// A path made absolute by its letters.
fn absolute(base: &[u8], path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    let base = if path.starts_with(b"/") { b"" } else { base };
    for name in base.split(|byte| *byte == b'/').chain(path.split(|byte| *byte == b'/')) {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    [b"/", names.join(&b'/').as_slice()].concat()
}

/// Working directories over the log's lines.
#[derive(Debug)]
struct Directories {
    /// A process and the clone that made it: parent, line where the clone began, whether they share one directory.
    made_by: HashMap<u32, (u32, usize, bool)>,
    /// By the process that first had it: since which line, and what.
    known: HashMap<u32, Vec<(usize, Vec<u8>)>>,
    /// Since which line a task has a directory of its own that was made to share one: through unshare, or by becoming
    /// the process in an exec.
    own_since: HashMap<u32, usize>,
    first: Vec<u8>,
}

impl Directories {
    fn new(calls: &[Call], first: Vec<u8>) -> Self {
        let mut made_by = HashMap::new();
        for call in calls {
            let is_clone = ["clone", "clone3", "fork", "vfork"].contains(&call.name.as_str());
            if let (true, Ok(child)) = (is_clone, call.result.parse::<u32>()) {
                let shares = call.arguments.iter().any(|argument| argument.contains("CLONE_FS"));
                made_by.insert(child, (call.pid, call.begin, shares));
            }
        }
        Self { made_by, known: HashMap::new(), own_since: HashMap::new(), first }
    }

    fn owner(&self, pid: u32, line: usize) -> u32 {
        let has_own = self.own_since.get(&pid).is_some_and(|since| *since <= line);
        match self.made_by.get(&pid) {
            Some((parent, _, true)) if !has_own => self.owner(*parent, line),
            _ => pid,
        }
    }

    fn set(&mut self, pid: u32, line: usize, path: Vec<u8>) {
        let owner = self.owner(pid, line);
        self.known.entry(owner).or_default().push((line, path));
    }

    fn part(&mut self, pid: u32, line: usize, path: Vec<u8>) {
        self.own_since.insert(pid, line);
        self.set(pid, line, path);
    }

    fn at(&self, pid: u32, line: usize) -> Vec<u8> {
        let owner = self.owner(pid, line);
        let known = self.known.get(&owner).into_iter().flatten();
        if let Some((_, path)) = known.filter(|(since, _)| *since <= line).max_by_key(|(since, _)| *since) {
            return path.clone();
        }
        match self.made_by.get(&owner) {
            Some((parent, begin, _)) => self.at(*parent, *begin),
            None => self.first.clone(),
        }
    }
}

/// The facts of a log whose first process began in `directory`.
pub(crate) fn facts(log: &str, directory: &[u8]) -> Facts {
    let calls = calls(log);
    let mut directories = Directories::new(&calls, directory.to_vec());
    for call in &calls {
        let seen = call.arguments.iter().find(|argument| argument.starts_with("AT_FDCWD<"));
        if let Some(path) = seen.and_then(|argument| behind(argument)) {
            directories.set(call.by, call.begin, path);
        }
        if call.result == "0" && call.name == "fchdir" {
            directories.set(call.pid, call.end, behind(&call.arguments[0]).unwrap());
        } else if call.result == "0" && call.name == "chdir" {
            let base = directories.at(call.pid, call.begin);
            directories.set(call.pid, call.end, absolute(&base, &string(&call.arguments[0]).unwrap()));
        } else if call.result == "0" && call.name == "unshare" && call.arguments[0].contains("CLONE_FS") {
            directories.part(call.pid, call.end, directories.at(call.pid, call.begin));
        } else if call.by != call.pid {
            directories.part(call.pid, call.end, directories.at(call.by, call.begin));
        }
    }
    let mut facts = Facts::new();
    for call in &calls {
        fact(call, &directories, &mut facts);
    }
    facts
}

/// `Ok` with the text behind `=`, or the errno's name. Nothing when the call never returned.
fn outcome(result: &str) -> Option<Result<&str, &str>> {
    if let Some(errno) = result.strip_prefix("-1 ") {
        let name = errno.split(' ').next().unwrap();
        assert!(name.starts_with('E'), "not an errno: {result}");
        return Some(Err(name));
    }
    // The caller sees EINTR, or the call is started again and returns a second time.
    if result.starts_with("? ERESTART") {
        return Some(Err("EINTR"));
    }
    (!result.starts_with('?')).then_some(Ok(result))
}

fn fact(call: &Call, directories: &Directories, facts: &mut Facts) {
    let Some(outcome) = outcome(&call.result) else { return };
    let argument = |index: usize| call.arguments.get(index).map(String::as_str).unwrap_or_default();
    let here = || directories.at(call.by, call.begin);
    // The path at `index`, relative to the working directory or to the descriptor before it.
    let path = |index: usize, at: bool| -> Vec<u8> {
        // What can't be read has no letters.
        let Some(path) = string(argument(index)) else { return Vec::new() };
        if path.starts_with(b"/") {
            return absolute(b"/", &path);
        }
        match at {
            true => match behind(argument(index - 1)) {
                Some(base) => absolute(&base, &path),
                None => path,
            },
            false => absolute(&here(), &path),
        }
    };
    let what = outcome.err().unwrap_or("ok");
    match call.name.as_str() {
        "open" | "openat" | "openat2" | "creat" => {
            let at = call.name.starts_with("openat");
            let path = |string| if at { path(1, string) } else { path(0, false) };
            let flags = match call.name.as_str() {
                "creat" => "O_WRONLY|O_CREAT|O_TRUNC",
                "open" => argument(1),
                _ => argument(2),
            };
            match outcome {
                Err(errno) => add(facts, Fact::new(Kind::Open, errno, path(at)), 1),
                Ok(descriptor) => {
                    let path = behind(descriptor).unwrap_or_else(|| path(at));
                    for deed in deeds(flags) {
                        add(facts, Fact::new(Kind::Open, deed, path.clone()), 1);
                    }
                }
            }
        }
        "unlink" => add(facts, Fact::new(Kind::Delete, what, path(0, false)), 1),
        "rmdir" => add(facts, Fact::new(Kind::Delete, removal(what), path(0, false)), 1),
        "unlinkat" if argument(2).contains("AT_REMOVEDIR") => {
            add(facts, Fact::new(Kind::Delete, removal(what), path(1, true)), 1);
        }
        "unlinkat" => add(facts, Fact::new(Kind::Delete, what, path(1, true)), 1),
        "rename" | "renameat" | "renameat2" => {
            let at = call.name != "rename";
            let (from, to) =
                if at { (path(1, true), path(3, true)) } else { (path(0, false), path(1, false)) };
            let renamed = |from, to: &[u8]| {
                let fact = Fact::new(Kind::Rename, what, from);
                Fact { to: String::from_utf8_lossy(to).into_owned(), ..fact }
            };
            match outcome {
                Ok(_) => {
                    // Two names that change places are each renamed to the other.
                    if argument(4).contains("RENAME_EXCHANGE") {
                        facts.insert(renamed(to.clone(), &from), 1);
                    }
                    facts.insert(renamed(from, &to), 1);
                }
                Err(_) => add(facts, renamed(from, &to), 1),
            }
        }
        "execve" => add(facts, Fact::new(Kind::Exec, what, path(0, false)), 1),
        "execveat" => {
            let program = match (argument(1), behind(argument(0))) {
                // The descriptor itself.
                ("\"\"", Some(program)) => program,
                _ => path(1, true),
            };
            add(facts, Fact::new(Kind::Exec, what, program), 1);
        }
        "connect" => {
            let peer = peer(argument(1), here);
            add(facts, Fact::new(Kind::Connect, what, peer), 1);
        }
        _ => {}
    }
}

fn removal(what: &str) -> String {
    if what == "ok" { what.to_owned() } else { format!("rmdir {what}") }
}

/// What an open with these flags does.
fn deeds(flags: &str) -> Vec<&'static str> {
    // openat2 has them in a structure.
    let flags = flags.trim_start_matches('{').split(',').next().unwrap_or_default();
    let flags = flags.strip_prefix("flags=").unwrap_or(flags);
    let has = |flag: &str| flags.split('|').any(|one| one == flag);
    if has("O_PATH") {
        return vec!["path"];
    }
    let mut deeds = match () {
        () if has("O_WRONLY") => vec!["write"],
        () if has("O_RDWR") || has("O_TRUNC") => vec!["read", "write"],
        () => vec!["read"],
    };
    if has("O_CREAT") || has("O_TMPFILE") {
        deeds.push("create");
    }
    deeds
}

/// The address of a connect as the receipt writes it; another family as strace does.
fn peer(sockaddr: &str, here: impl Fn() -> Vec<u8>) -> Vec<u8> {
    let after = |key: &str, until: char| {
        let (_, rest) = sockaddr.split_once(key)?;
        rest.split(until).next()
    };
    let port = |key: &str| after(key, ')').and_then(|port| port.parse::<u16>().ok());
    let ip = |text: Option<&str>| text.and_then(|text| text.parse::<IpAddr>().ok());
    if sockaddr.contains("sa_data=") {
        return sockaddr.as_bytes().to_vec();
    }
    if sockaddr.contains("sa_family=AF_INET,") {
        let v4 = ip(after("inet_addr(\"", '"')).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        return address(v4, port("sin_port=htons(").unwrap_or(0)).into_bytes();
    }
    if sockaddr.contains("sa_family=AF_INET6,") {
        let v6 = ip(after("inet_pton(AF_INET6, \"", '"')).unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        return address(v6, port("sin6_port=htons(").unwrap_or(0)).into_bytes();
    }
    if let Some(name) = sockaddr.split_once("sun_path=@").and_then(|(_, rest)| rest.strip_suffix('}')) {
        return [b"@", string(name).unwrap_or_default().as_slice()].concat();
    }
    if let Some(path) = sockaddr.split_once("sun_path=").and_then(|(_, rest)| rest.strip_suffix('}')) {
        return absolute(&here(), &string(path).unwrap_or_default());
    }
    sockaddr.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(log: &str) -> Vec<String> {
        facts(log, b"/w").keys().map(ToString::to_string).collect()
    }

    #[test]
    fn halves_are_put_together() {
        let log = "10 openat(AT_FDCWD</w>, \"a\", O_RDONLY <unfinished ...>\n\
                   11 unlink(\"b\") = -1 ENOENT (No such file or directory)\n\
                   10 <... openat resumed>) = 3</w/a>\n\
                   10 openat(AT_FDCWD</w>, \"never\", O_RDONLY <unfinished ...>) = ?\n\
                   10 +++ exited with 0 +++";
        assert_eq!(listed(log), ["open read /w/a", "delete ENOENT /w/b"]);
    }

    #[test]
    fn a_threads_exec_belongs_to_its_process() {
        let log = "10 clone3({flags=CLONE_VM|CLONE_FS|CLONE_THREAD} => {parent_tid=[11]}, 88) = 11\n\
                   11 unshare(CLONE_FS) = 0\n\
                   11 chdir(\"sub\") = 0\n\
                   10 unlink(\"x\") = 0\n\
                   11 execve(\"./x\", [\"x\"], 0x7 /* 35 vars */ <pid changed to 10 ...>\n\
                   10 +++ superseded by execve in pid 11 +++\n\
                   10 <... execve resumed>) = 0\n\
                   10 unlink(\"y\") = 0";
        assert_eq!(listed(log), ["exec ok /w/sub/x", "delete ok /w/sub/y", "delete ok /w/x"]);
    }

    #[test]
    fn a_child_starts_where_its_parent_was() {
        // The child's lines come before its parent's clone returns, and the parent moves on meanwhile.
        let log = "10 chdir(\"/p\") = 0\n\
                   10 vfork( <unfinished ...>\n\
                   11 unlink(\"x\") = 0\n\
                   11 chdir(\"..\") = 0\n\
                   11 unlink(\"z\") = 0\n\
                   10 <... vfork resumed>) = 11\n\
                   10 fchdir(3</q/r>) = 0\n\
                   10 rename(\"y\", \"../z\") = 0\n\
                   11 rmdir(\"x\") = -1 ENOTEMPTY (Directory not empty)";
        let expected =
            ["delete ok /p/x", "delete ok /z", "delete rmdir ENOTEMPTY /x", "rename ok /q/r/y -> /q/z"];
        assert_eq!(listed(log), expected);
    }

    #[test]
    fn odd_names_are_read() {
        let log = r#"10 openat(AT_FDCWD</w>, "a<b>\"c\\ \n\377x, y)", O_RDWR|O_CREAT, 0600) = 3</w/a\74b\76\"c\\ \n\377x, y)>
10 openat(3</w/\74>, "x", O_WRONLY|O_TRUNC) = -1 EISDIR (Is a directory)
10 openat2(AT_FDCWD</w>, "o", {flags=O_PATH|O_CLOEXEC, resolve=RESOLVE_BENEATH}, 24) = 4</w/o>(deleted)"#;
        let odd = r#"/w/a<b>\"c\\ \n\xffx, y)"#;
        let mut expected = vec![
            "open EISDIR /w/</x".to_owned(),
            format!("open create {odd}"),
            "open path /w/o".to_owned(),
            format!("open read {odd}"),
            format!("open write {odd}"),
        ];
        expected.sort();
        assert_eq!(listed(log), expected);
    }

    #[test]
    fn addresses_are_written_as_in_receipts() {
        let log = r#"10 connect(3<socket:[1]>, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
10 connect(3<socket:[1]>, {sa_family=AF_INET6, sin6_port=htons(9), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::ffff:1.2.3.4", &sin6_addr), sin6_scope_id=0}, 28) = -1 ECONNREFUSED (Connection refused)
10 connect(3<socket:[1]>, {sa_family=AF_INET6, sin6_port=htons(9), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::1", &sin6_addr), sin6_scope_id=0}, 28) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)
10 connect(3<socket:[1]>, {sa_family=AF_UNIX, sun_path="no.sock"}, 10) = -1 ENOENT (No such file or directory)
10 connect(3<socket:[1]>, {sa_family=AF_UNIX, sun_path=@"abs"}, 6) = 0"#;
        let expected = [
            "connect ECONNREFUSED 1.2.3.4:9",
            "connect EINTR [::1]:9",
            "connect ENOENT /w/no.sock",
            "connect ok 127.0.0.1:80",
            "connect ok @abs",
        ];
        assert_eq!(listed(log), expected);
    }
}
