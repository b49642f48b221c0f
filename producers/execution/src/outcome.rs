//! How a command's end is said: exit codes as a shell gives them, signals by name.

use glasshouse_schema::lifecycle::Outcome;
use glasshouse_schema::limits::{Limit, Limits};

use crate::backend::{BackendError, ExitStatus};

/// Names of Linux's signals 1 to 31 (x86-64, arm64 and every other architecture but alpha, mips, parisc and sparc).
const SIGNALS: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];
/// The first real-time signal that the C library leaves to programs, and the last.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The name of a signal: `SIGKILL`, `SIGRTMIN+2`, and `SIG99` for a number that has none.
pub fn signal_name(number: i32) -> String {
    let known = usize::try_from(number).ok().and_then(|number| SIGNALS.get(number.checked_sub(1)?));
    match known {
        Some(name) => (*name).to_owned(),
        None if number == *REAL_TIME.start() => "SIGRTMIN".to_owned(),
        None if REAL_TIME.contains(&number) => format!("SIGRTMIN+{}", number - REAL_TIME.start()),
        None => format!("SIG{number}"),
    }
}

/// The outcome of a command that ended by itself or by a signal: its own code, or 128 + n.
pub fn of_status(status: ExitStatus) -> Outcome {
    match status {
        ExitStatus::Code(exit_code) => Outcome { exit_code, ..Outcome::default() },
        ExitStatus::Signal(number) => {
            Outcome { exit_code: 128 + number, signal: Some(signal_name(number)), ..Outcome::default() }
        }
    }
}

/// The same of an execution that ran into a limit, if it did. A refused fork (`pids`) is no reason for an end.
pub fn within(outcome: Outcome, limit: Option<Limit>, limits: &Limits) -> Outcome {
    let Some(limit) = limit else { return outcome };
    let unit = match limit {
        Limit::Wall | Limit::Cpu => " ms",
        Limit::Memory | Limit::Output | Limit::Disk => " bytes",
        Limit::Pids | Limit::Files => "",
    };
    let value = limits.get(limit).unwrap_or_default();
    let error = (limit != Limit::Pids).then(|| format!("limit exceeded: {limit}: {value}{unit}"));
    Outcome { error, limit_exceeded: Some(limit), ..outcome }
}

/// The outcome of a command that Glasshouse ended or never ran: 125, 126 or 127, with the reason in `error`, which is
/// how a command's own 125 is told from ours.
pub fn of_error(error: &BackendError) -> Outcome {
    Outcome { exit_code: error.exit_code(), error: Some(error.to_string()), ..Outcome::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_names() {
        for (number, name) in [
            (1, "SIGHUP"),
            (9, "SIGKILL"),
            (15, "SIGTERM"),
            (31, "SIGSYS"),
            (34, "SIGRTMIN"),
            (36, "SIGRTMIN+2"),
        ] {
            assert_eq!(signal_name(number), name);
        }
        assert_eq!(signal_name(0), "SIG0");
        assert_eq!(signal_name(-1), "SIG-1");
        assert_eq!(of_status(ExitStatus::Signal(9)).exit_code, 137);
    }
}
