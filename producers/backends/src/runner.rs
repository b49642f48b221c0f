//! Which process runs an execution, so that whoever finds what it left can tell that it is gone: its id alone may be another's
//! by then.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Of the machine's start.
    boot_id: String,
    /// In which pid namespace it has its id, by that one's inode.
    namespace: u64,
    pid: u32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5)).
    start_ticks: u64,
}

impl Runner {
    /// This process; `None` where /proc does not tell.
    pub fn this() -> Option<Self> {
        let (pid, start_ticks) = alive("self")?;
        Some(Self { boot_id: boot_id()?, namespace: namespace()?, pid, start_ticks })
    }

    /// What is displayed of one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let mut next = || fields.next();
        let runner = Self {
            boot_id: next()?.to_owned(),
            namespace: next()?.parse().ok()?,
            pid: next()?.parse().ok()?,
            start_ticks: next()?.parse().ok()?,
        };
        next().is_none().then_some(runner)
    }

    /// A short name, for as long as the machine is up.
    pub fn name(&self) -> String {
        format!("{:x}.{:x}.{:x}", self.namespace, self.pid, self.start_ticks)
    }

    /// The one of that name since the machine's start.
    pub fn named(name: &str) -> Option<Self> {
        let mut fields = name.split('.').map(|field| u64::from_str_radix(field, 16).ok());
        let (namespace, pid, start_ticks) = (fields.next()??, fields.next()??, fields.next()??);
        let pid = u32::try_from(pid).ok()?;
        let runner = Self { boot_id: boot_id()?, namespace, pid, start_ticks };
        fields.next().is_none().then_some(runner)
    }

    /// Whether it is known to be gone. Of another pid namespace nothing is known while the machine is up.
    pub fn is_gone(&self) -> bool {
        match (boot_id(), namespace()) {
            (Some(boot_id), _) if boot_id != self.boot_id => true,
            (Some(_), Some(namespace)) if namespace == self.namespace => {
                alive(&self.pid.to_string()) != Some((self.pid, self.start_ticks))
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.boot_id, self.namespace, self.pid, self.start_ticks)
    }
}

fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

fn namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|namespace| namespace.ino())
}

/// Id and start of a process, if it has not ended.
fn alive(process: &str) -> Option<(u32, u64)> {
    stat(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// proc_pid_stat(5): `pid (name) state …`, the start as the 22nd field; `None` of one that nobody has waited for yet.
fn stat(line: &str) -> Option<(u32, u64)> {
    let pid = line.split(' ').next()?.parse().ok()?;
    // The name may hold anything.
    let mut fields = line.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some((pid, start_ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_id() {
        let this = Runner::this().unwrap();
        assert_eq!(Runner::parse(&this.to_string()), Some(this.clone()));
        assert_eq!(Runner::named(&this.name()), Some(this.clone()));
        assert!(!this.is_gone());
        assert!(Runner { start_ticks: this.start_ticks + 1, ..this.clone() }.is_gone());
        assert!(Runner { boot_id: "an-earlier-one".into(), namespace: 1, ..this.clone() }.is_gone());
        assert!(!Runner { namespace: 1, pid: 0, ..this.clone() }.is_gone(), "of that nothing is known");
        for text in ["", "x", "x 1 2", &format!("{this} 4")] {
            assert_eq!(Runner::parse(text), None, "{text}");
        }
        for name in ["", "1.2", "1.2.x", "1.fffffffff.3", &format!("{}.4", this.name())] {
            assert_eq!(Runner::named(name), None, "{name}");
        }
    }

    #[test]
    fn a_child_that_was_killed_is_gone_before_it_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (pid, start_ticks) = alive(&child.id().to_string()).unwrap();
        let runner = Runner { pid, start_ticks, ..Runner::this().unwrap() };
        assert!(!runner.is_gone());
        child.kill().unwrap();
        while !runner.is_gone() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(runner.is_gone());
    }

    #[test]
    fn the_line_of_a_process_is_read_whatever_its_name() {
        let line = |state: &str| {
            format!("7 (a) b) c) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n")
        };
        assert_eq!(stat(&line("S")), Some((7, 4711)));
        assert_eq!(stat(&line("Z")), None);
        assert_eq!(stat(""), None);
    }
}
