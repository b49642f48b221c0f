//! What has to hold for one execution, whatever was lost.

use glasshouse_schema::Class;

use super::holder::Sealed;
use super::storm::Counts;

/// What the start and the end of the program alone make.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Base {
    processes: u64,
    files: u64,
    opens: u64,
    writes: u64,
}

impl Base {
    /// Of an execution that did nothing.
    pub(crate) fn of(sealed: &Sealed) -> Self {
        Self {
            processes: sealed.class(Class::Process).observed,
            files: sealed.class(Class::File).observed,
            opens: sealed.in_frames.opens,
            writes: sealed.in_frames.writes,
        }
    }
}

/// Everything that does not hold. `done` is what the execution's processes counted themselves.
pub(crate) fn problems(sealed: &Sealed, done: &Counts, base: Base) -> Vec<String> {
    let mut problems = Vec::new();
    let mut hold = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    hold(sealed.recorded, "not recorded".to_owned());
    hold(sealed.in_frames.broken.is_none(), format!("the chain is broken: {:?}", sealed.in_frames.broken));
    for class in Class::ALL {
        let of = sealed.class(class);
        let sum = of.delivered + of.collapsed + of.lost;
        hold(
            of.observed == sum,
            format!("{}: {} observed, the rest sums to {sum}", class.as_str(), of.observed),
        );
    }
    let mut equal = |what: &str, found: u64, expected: u64| {
        hold(found == expected, format!("{what}: {found}, expected {expected}"));
    };
    equal("facts that nothing explains", sealed.unexplained, 0);
    equal("escaped", sealed.escaped, 0);

    // Frames hold what the seal says they hold.
    let (frames, process, file) =
        (&sealed.in_frames, sealed.class(Class::Process), sealed.class(Class::File));
    for class in Class::ALL {
        let (delivered, collapsed) = frames.facts[class as usize];
        let of = sealed.class(class);
        equal(&format!("{} events in frames", class.as_str()), delivered, of.delivered);
        // The seal itself holds the calls.
        if class != Class::Syscall {
            equal(&format!("{} facts folded in frames", class.as_str()), collapsed, of.collapsed);
        }
    }

    // The execution's own count. Every process that it forked has ended, and so has its root.
    let processes = base.processes + 2 * done.forks + done.execs;
    let files = base.files + done.opens + done.deletes + done.renames + done.writes;
    if sealed.missed_runs == Some([0; 4]) {
        equal("process facts observed", process.observed, processes);
        equal("file facts observed", file.observed, files);
        let calls = |name: &str| sealed.syscalls.get(name).copied().unwrap_or(0);
        equal("calls of unlink", calls("unlink") + calls("unlinkat"), done.deletes);
        equal("calls of rename", calls("rename") + calls("renameat") + calls("renameat2"), done.renames);
    } else {
        // A run that was missed counts as one lost fact of each class it may have been of.
        hold(process.observed >= processes && file.observed >= files, "fewer facts than happened".to_owned());
    }
    let mut equal = |what: &str, found: u64, expected: u64| {
        hold(found == expected, format!("{what}: {found}, expected {expected}"));
    };
    if process.lost == 0 {
        equal("processes alive at the seal", sealed.still_alive, 0);
        equal("forks", frames.forks, done.forks);
        equal("execs", frames.execs, 1 + done.execs);
        equal("exits", frames.exits, 1 + done.forks);
    }
    if file.lost == 0 {
        equal("opens", frames.opens, base.opens + done.opens);
        equal("writes", frames.writes, base.writes + done.writes);
        equal("deletes", frames.deletes, done.deletes);
        equal("renames", frames.renames, done.renames);
    }
    problems
}
