//! Truth: the receipt of a real program holds the execs, opens, deletes, renames and connects that strace sees of it, no
//! more and no fewer.
//!
//! Every program runs twice in the same, freshly made directory: under strace, and under `glasshouse run`. Both are made
//! into sets of facts ([`facts`]), and each difference must be taken by a rule that says why it is none ([`rules`]); a fact
//! that both have must have happened as often. The receipt must be closed, its counters adding up and nothing lost; of a
//! program that goes around the hooks it must say so.
//!
//!     cargo test -p glasshouse-e2e --test truth -- --nocapture      # with the table of all programs
//!
//! A program whose tools are missing is reported as skipped; with `GLASSHOUSE_REQUIRE_ALL=1` that is a failure.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "truth/facts.rs"]
mod facts;
#[path = "truth/programs.rs"]
mod programs;
#[path = "truth/rules.rs"]
mod rules;
#[path = "truth/strace.rs"]
mod strace;
#[path = "truth/trial.rs"]
mod trial;

/// A test for each program, and how many there are.
macro_rules! programs {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                trial::judge(stringify!($name), PROGRAMS, programs::$name);
            }
        )+
        const PROGRAMS: usize = [$(stringify!($name)),+].len();
    };
}

programs!(
    c_compile,
    git_init_add_commit,
    python_subprocesses_and_threads,
    tar,
    find_exec,
    find_exec_each,
    shell_pipeline,
    static_binary,
    fork_tree_32_deep,
    vfork_and_posix_spawn,
    threads_that_exec,
    execveat,
    connects,
    io_uring,
    calls_32_bit,
);
