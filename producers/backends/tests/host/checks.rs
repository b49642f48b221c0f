//! The checks.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use glasshouse_backends::ProcessBackend;
use glasshouse_backends::conformance::spec;
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::Engine;
use glasshouse_schema::ids::Digest;
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::terminal::Terminal;

/// `Err` says why the host cannot.
type Check = Result<(), String>;

type Named = (&'static str, fn() -> Check);

const CHECKS: [Named; 20] = [
    ("pipes_are_passed_through_and_hashed", pipes_are_passed_through_and_hashed),
    ("input_is_passed_through", input_is_passed_through),
    ("a_reader_that_leaves_ends_the_writer", a_reader_that_leaves_ends_the_writer),
    ("a_script_without_an_interpreter_line_runs", a_script_without_an_interpreter_line_runs),
    ("a_workdir_that_is_missing_is_our_error", a_workdir_that_is_missing_is_our_error),
    ("a_pipe_in_the_environment_reaches_the_command", a_pipe_in_the_environment_reaches_the_command),
    ("signals_are_reset_for_the_command", signals_are_reset_for_the_command),
    ("signals_are_forwarded", signals_are_forwarded),
    ("the_terminal_is_proxied", the_terminal_is_proxied),
    ("a_key_interrupts_once", a_key_interrupts_once),
    ("a_terminal_in_a_pipeline", a_terminal_in_a_pipeline),
    ("guest_prep_as_pid_1", guest_prep_as_pid_1),
    ("guest_prep_is_refused_elsewhere", guest_prep_is_refused_elsewhere),
    ("without_a_cgroup_the_command_runs_and_is_ended", without_a_cgroup_the_command_runs_and_is_ended),
    ("a_killed_runner_leaves_no_held_process", a_killed_runner_leaves_no_held_process),
    ("a_killed_runners_execution_is_ended_by_the_next", a_killed_runners_execution_is_ended_by_the_next),
    ("a_caller_that_does_not_read_can_end_us", a_caller_that_does_not_read_can_end_us),
    ("signals_reach_what_the_root_left_behind", signals_reach_what_the_root_left_behind),
    ("a_signal_after_the_end_costs_a_reader_nothing", a_signal_after_the_end_costs_a_reader_nothing),
    ("fifty_at_once_leave_nothing", fifty_at_once_leave_nothing),
];

pub(crate) fn run() -> ExitCode {
    let trial = |(name, check): &Named| {
        let (name, check) = (*name, *check);
        Trial::test(name, move || {
            if let Err(reason) = check() {
                eprintln!("skipped: {name}: {reason}");
            }
            Ok(())
        })
    };
    // One after the other: some of them count the processes and descriptors that are left.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, CHECKS.iter().map(trial).collect()).exit_code()
}

fn runner() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// The runner with its report's file.
struct Run {
    command: Command,
    report: tempfile::TempPath,
}

impl Run {
    fn new(profile: &str, kind: &str, argv: &[&str]) -> Self {
        Self::under(&[], profile, kind, argv)
    }

    /// Under another program, such as unshare.
    fn under(outer: &[&str], profile: &str, kind: &str, argv: &[&str]) -> Self {
        let report = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let mut command = match outer.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(runner());
                command
            }
            None => Command::new(runner()),
        };
        command.args(["run", profile, kind, "--"]).args(argv).env("REPORT", &report);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, report }
    }

    fn output(&mut self) -> Output {
        self.command.output().unwrap()
    }

    fn field(&self, name: &str) -> String {
        let text = std::fs::read_to_string(&self.report).unwrap();
        let prefix = format!("{name}=");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "{what} did not come true");
        std::thread::yield_now();
    }
}

fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

fn pipes_are_passed_through_and_hashed() -> Check {
    let mut run = Run::new("host", "plain", &["sh", "-c", "printf out; printf err >&2; exit 5"]);
    let output = run.output();
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(5), "out".into(), "err".into())
    );
    assert_eq!(run.field("stdout"), Digest::of(b"out").to_string());
    assert_eq!(run.field("stderr"), Digest::of(b"err").to_string());
    assert!(run.field("phases").ends_with("profiled exited sealed cleaned"), "{}", run.field("phases"));

    // Disabled: the caller's own streams, and nothing to hash them for.
    let mut run = Run::new("disabled", "plain", &["sh", "-c", "printf out; printf err >&2"]);
    let output = run.output();
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out".into(), "err".into()));
    assert_eq!((run.field("stdout"), run.field("left")), (String::new(), String::new()));
    Ok(())
}

fn input_is_passed_through() -> Check {
    let input = b"line\n".repeat(100_000);
    for profile in ["host", "disabled"] {
        let mut run = Run::new(profile, "plain", &["cat"]);
        let mut child = run.command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let sent = input.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&sent));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.stdout == input, "{} of {} bytes came back", output.stdout.len(), input.len());
    }
    Ok(())
}

fn a_reader_that_leaves_ends_the_writer() -> Check {
    for profile in ["host", "disabled"] {
        let mut run = Run::new(profile, "plain", &["yes"]);
        let mut child = run.command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 100]).unwrap();
        drop(stdout);
        assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGPIPE), "{profile}");
        assert_eq!(run.field("signal"), "SIGPIPE");
        assert_eq!(run.field("stdout"), "", "a hash of a part is no hash");
    }
    Ok(())
}

fn a_script_without_an_interpreter_line_runs() -> Check {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "echo $1").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = Run::new("host", "plain", &[script.to_str().unwrap(), "argument"]).output();
    assert_eq!(text(&output.stdout), "argument\n");

    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let output = Run::new("host", "plain", &[script.to_str().unwrap()]).output();
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("interpreter"), "{}", text(&output.stderr));
    Ok(())
}

fn a_workdir_that_is_missing_is_our_error() -> Check {
    let report = execute(|spec| spec.workdir = Some("/no/such/dir".into()));
    assert_eq!(report.outcome.exit_code, 125);
    assert!(report.outcome.error.unwrap().contains("entering the working directory"));

    // A program is looked for from there.
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/pwd", dir.path().join("where")).unwrap();
    let report = execute(|spec| {
        spec.argv = vec!["./where".into()];
        spec.workdir = Some(dir.path().into());
    });
    assert_eq!(text(&report.output.stdout).trim(), dir.path().to_str().unwrap());
    Ok(())
}

fn execute(
    change: impl FnOnce(&mut glasshouse_execution::ExecutionSpec),
) -> glasshouse_execution::EngineReport {
    let mut spec = spec(["true"]);
    change(&mut spec);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        Engine::new(Arc::new(ProcessBackend::new()), Arc::new(RecordingSink::new())).run(spec, None).await
    })
}

/// As make's jobserver does: descriptors that are not close-on-exec are for the command.
fn a_pipe_in_the_environment_reaches_the_command() -> Check {
    let with = |runner: &str| {
        let script = format!("exec 9<<X\nhello\nX\nexec {runner} sh -c 'cat <&9; ls /proc/self/fd'");
        text(&Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap().stdout)
    };
    let ours = with(&format!("{} run host plain --", runner().display()));
    assert!(ours.starts_with("hello\n"), "{ours}");
    assert_eq!(ours, with("env"), "the command has other descriptors than without us");
    Ok(())
}

fn signals_are_reset_for_the_command() -> Check {
    let status = ["grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status"];
    // Signals from 32 on are the C library's own or nobody's.
    let standard = |output: Output| -> Vec<u64> {
        let sets = text(&output.stdout);
        sets.lines().map(|line| u64::from_str_radix(&line[8..], 16).unwrap() & 0x7fff_ffff).collect()
    };
    let ours = standard(Run::new("host", "plain", &status).output());
    let plain = standard(Command::new(status[0]).args(&status[1..]).output().unwrap());
    assert_eq!((ours.len(), ours[0]), (3, 0));
    assert_eq!(ours, plain, "the command has other signals than without us");
    Ok(())
}

fn ready(child: &mut Child) -> BufReader<std::process::ChildStdout> {
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    stdout
}

fn signals_are_forwarded() -> Check {
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
    ] {
        for profile in ["host", "disabled"] {
            let script = format!("trap 'exit 7' {name}; echo ready; while :; do :; done");
            let mut run = Run::new(profile, "plain", &["sh", "-c", &script]);
            let mut child = run.command.spawn().unwrap();
            let _stdout = ready(&mut child);
            kill(Pid::from_raw(child.id() as i32), signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(7), "{name} {profile}");
        }
    }
    // One that it does not handle ends it, and the outcome says by what.
    let mut run = Run::new("host", "plain", &["sh", "-c", "echo ready; exec sleep 1000"]);
    let mut child = run.command.spawn().unwrap();
    let _stdout = ready(&mut child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(run.field("signal"), "SIGTERM");
    Ok(())
}

fn needs(program: &str) -> Check {
    match Command::new(program).arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn the_terminal_is_proxied() -> Check {
    needs("setsid")?;
    let mut terminal = Terminal::new(33, 77);
    let before = terminal.settings();
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size; read x; echo got:$x; \
        trap 'stty size; exit 6' WINCH; echo resize; while :; do :; done";
    let mut child = terminal.lead(&runner(), &["run", "host", "plain", "--", "sh", "-c", script], None);
    terminal.expect("33 77");
    terminal.write("hello\r");
    terminal.expect("got:hello\r\n");
    terminal.expect("resize");
    assert_ne!(terminal.settings(), before, "the caller's terminal is not raw");
    terminal.resize(44, 99);
    terminal.expect("44 99");
    assert_eq!(child.wait().unwrap().code(), Some(6));
    assert_eq!(terminal.settings(), before, "the caller's terminal was not restored");

    // Interrupted from the outside, it is restored too.
    let mut child = terminal.lead(
        &runner(),
        &["run", "host", "plain", "--", "sh", "-c", "echo here:$PPID; sleep 1000"],
        None,
    );
    terminal.expect("here:");
    terminal.expect("\r\n");
    let shown = terminal.seen.rsplit("here:").next().unwrap().to_owned();
    let pid: String = shown.chars().take_while(char::is_ascii_digit).collect();
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(terminal.settings(), before, "the caller's terminal was not restored");
    Ok(())
}

fn a_key_interrupts_once() -> Check {
    needs("setsid")?;
    for profile in ["host", "disabled"] {
        let mut terminal = Terminal::new(24, 80);
        let script =
            "trap 'echo interrupted' INT; echo ready; while :; do read x; test \"$x\" = q && exit 3; done";
        let mut child = terminal.lead(&runner(), &["run", profile, "plain", "--", "sh", "-c", script], None);
        terminal.expect("ready\r\n");
        terminal.write("\u{3}");
        terminal.expect("interrupted\r\n");
        // Typed after it: had the runner sent a second signal, it would be seen before this is read.
        terminal.write("q\r");
        assert_eq!(child.wait().unwrap().code(), Some(3), "{profile}: {:?}", terminal.seen);
        assert_eq!(terminal.seen.matches("interrupted").count(), 1, "{profile}: {:?}", terminal.seen);
    }
    Ok(())
}

/// `runner … | less`: the terminal stays as it is, because it is the other program's too.
fn a_terminal_in_a_pipeline() -> Check {
    needs("setsid")?;
    let mut terminal = Terminal::new(24, 80);
    let before = terminal.settings();
    let script =
        "test -t 1 || echo pipe; test -t 2 && echo error on a terminal >&2; test -t 0 && read x; echo $x";
    let mut child =
        terminal.lead(&runner(), &["run", "host", "plain", "--", "sh", "-c", script], Some(Stdio::piped()));
    terminal.expect("error on a terminal\r\n");
    assert_eq!(terminal.settings(), before, "the terminal was changed");
    terminal.write("typed\r");
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(stdout, "pipe\ntyped\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    Ok(())
}

fn can_unshare(flags: &[&str]) -> Check {
    match Command::new("unshare").args(flags).arg("true").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("unshare: {}", text(&output.stderr))),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

fn guest_prep_as_pid_1() -> Check {
    let flags = ["--pid", "--fork", "--mount", "--kill-child"];
    can_unshare(&flags)?;
    let outer = [&["unshare"], &flags[..]].concat();
    // /proc is this pid namespace's own, sysfs and bpf are there, and orphans are reaped while the root is waited for.
    let script = "readlink /proc/self >/dev/null && test -e /proc/1/stat && test -d /sys/kernel && \
        grep -q ' /sys/fs/bpf .* - bpf ' /proc/self/mountinfo && echo mounted; \
        tr '\\0' ' ' </proc/1/cmdline | grep -q 'run host guest' && echo first; \
        (sh -c ':' &); (sh -c ':' &); \
        while grep -qs ') Z 1 ' /proc/[0-9]*/stat; do :; done; echo reaped; exit 9";
    let mut run = Run::under(&outer, "host", "guest", &["sh", "-c", script]);
    let output = run.output();
    assert_eq!(text(&output.stdout), "mounted\nfirst\nreaped\n", "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(run.field("left"), "");

    // Signals that PID 1 would not get without a handler reach the command.
    let script = "trap 'exit 7' TERM; echo ready; while :; do :; done";
    let mut run = Run::under(&outer, "disabled", "guest", &["sh", "-c", script]);
    let mut child = run.command.spawn().unwrap();
    let _stdout = ready(&mut child);
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let first = std::fs::read_to_string(children).unwrap();
    kill(Pid::from_raw(first.trim().parse().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
    Ok(())
}

fn guest_prep_is_refused_elsewhere() -> Check {
    let output = Run::new("disabled", "guest", &["echo", "ran"]).output();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(125), String::new()));
    assert!(text(&output.stderr).contains("this is for PID 1"), "{}", text(&output.stderr));
    Ok(())
}

fn without_a_cgroup_the_command_runs_and_is_ended() -> Check {
    let mount = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts: Vec<&str> = mount
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    can_unshare(&["--mount"])?;
    let unmount: String = mounts.iter().map(|mount| format!("umount -l {mount} && ")).collect();
    let script = format!("{unmount}exec \"$@\"");
    let outer = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let mut run = Run::under(&outer, "disabled", "plain", &["sh", "-c", "sleep 1000 & echo $!; exit 4"]);
    let output = run.output();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(!is_alive(&text(&output.stdout)), "what the command left behind is alive");
    assert_eq!(run.field("left"), "");

    let mut run =
        Run::under(&outer, "disabled", "wait", &["sh", "-c", "(sleep 0.2; echo late) & echo early"]);
    assert_eq!(text(&run.output().stdout), "early\nlate\n");
    Ok(())
}

fn a_killed_runner_leaves_no_held_process() -> Check {
    let marker = tempfile::tempdir().unwrap().path().join("ran");
    let mut run = Run::new("host", "hold", &["touch", marker.to_str().unwrap()]);
    let mut child = run.command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (pid, id) = line.trim().split_once(' ').unwrap();
    assert!(is_alive(pid));
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    eventually("the held process ends with its runner", || !is_alive(pid));
    assert!(!marker.exists(), "the command ran");
    // Nobody is left to remove its cgroup.
    if let Some(dir) = find_dir(Path::new("/sys/fs/cgroup"), id) {
        eventually("its cgroup can be removed", || std::fs::remove_dir(&dir).is_ok());
    }
    Ok(())
}

fn find_dir(base: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(base).ok()?.flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).find_map(|dir| match dir.file_name().is_some_and(|of| of == name) {
        true => Some(dir),
        false => find_dir(&dir, name),
    })
}

fn a_killed_runners_execution_is_ended_by_the_next() -> Check {
    let script = "echo ready; readlink /proc/self; cat /proc/self/cgroup; sleep 1000 & echo $!; wait";
    let start = || {
        let mut child = Run::new("disabled", "plain", &["sh", "-c", script]).command.spawn().unwrap();
        let mut stdout = ready(&mut child);
        let mut lines = Vec::new();
        while lines.len() < 3 || lines.last().is_none_or(|line: &String| line.trim().parse::<u32>().is_err())
        {
            let mut line = String::new();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "{lines:?}");
            lines.push(line);
        }
        let cgroup = lines.iter().find_map(|line| line.trim().strip_prefix("0::")).map(str::to_owned);
        (child, cgroup, lines.pop().unwrap())
    };
    let (mut killed, cgroup, left) = start();
    let Some(id) = cgroup.filter(|path| path.contains("/glasshouse/")) else {
        killed.kill().unwrap();
        return Err("no cgroup of its own".into());
    };
    let id = id.rsplit('/').next().unwrap().to_owned();
    let (mut alive, _, kept) = start();
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(is_alive(&left), "nobody ends it yet");
    let output = Run::new("disabled", "plain", &["true"]).output();
    assert!(output.status.success(), "{}", text(&output.stderr));
    eventually("what was left is ended", || !is_alive(&left));
    assert!(is_alive(&kept), "an execution with a runner was ended");
    eventually("its cgroup is removed", || {
        Run::new("disabled", "plain", &["true"]).output();
        find_dir(Path::new("/sys/fs/cgroup"), &id).is_none()
    });
    kill(Pid::from_raw(alive.id() as i32), Signal::SIGTERM).unwrap();
    alive.wait().unwrap();
    Ok(())
}

/// More than the caller's pipe and ours hold together, from a root that does not wait for it to be read.
const UNREAD: &str = "head -c 100000 /dev/zero; echo ready >&2; exit 3";

fn a_caller_that_does_not_read_can_end_us() -> Check {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut run = Run::new("host", "plain", &["sh", "-c", UNREAD]);
        let mut child = run.command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        // The root may not have ended yet, and then the signal is for it.
        eventually("it ends", || {
            kill(Pid::from_raw(child.id() as i32), signal).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            std::fs::metadata(&run.report).is_ok_and(|report| report.len() > 0)
        });
        child.wait().unwrap();
        assert!(run.field("phases").ends_with("exited sealed cleaned"), "{}", run.field("phases"));
        assert_eq!(run.field("stdout"), "", "a hash of a part is no hash");
    }
    Ok(())
}

fn root_has_ended(runner: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{runner}/task")).unwrap().flatten();
    let children =
        tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    !children.collect::<Vec<_>>().join(" ").split_whitespace().any(is_alive)
}

fn a_signal_after_the_end_costs_a_reader_nothing() -> Check {
    let mut run = Run::new("host", "plain", &["sh", "-c", UNREAD]);
    let mut child = run.command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    eventually("the root ends", || root_has_ended(child.id()));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 100_000));
    assert_ne!(run.field("stdout"), "");
    Ok(())
}

fn signals_reach_what_the_root_left_behind() -> Check {
    for (trap, signals) in [("trap 'echo told; exit' TERM", 1), ("trap 'echo told' TERM", 2)] {
        let script = format!("({trap}; echo ready; while :; do sleep 0.01; done) & exit 6");
        let mut run = Run::new("disabled", "wait", &["sh", "-c", &script]);
        let mut child = run.command.spawn().unwrap();
        let mut stdout = ready(&mut child);
        eventually("the root ends", || root_has_ended(child.id()));
        let mut told = String::new();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        stdout.read_line(&mut told).unwrap();
        assert_eq!(told, "told\n");
        if signals == 2 {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        }
        assert_eq!(child.wait().unwrap().code(), Some(6));
        assert_eq!(run.field("left"), "");
    }
    Ok(())
}

fn fifty_at_once_leave_nothing() -> Check {
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let children = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks
            .map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default())
            .collect::<String>()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let round = || {
        runtime.block_on(async {
            let runs = (0..50).map(|number| {
                tokio::spawn(async move {
                    let spec = spec(["sh", "-c", &format!("echo {number}; sleep 1000 & exit {number}")]);
                    let engine = Engine::new(Arc::new(ProcessBackend::new()), Arc::new(RecordingSink::new()));
                    let report = engine.run(spec, None).await;
                    assert_eq!((report.outcome.exit_code, report.cleanup_errors.len()), (number, 0));
                    assert_eq!(report.output.stdout, format!("{number}\n").into_bytes());
                })
            });
            for run in runs.collect::<Vec<_>>() {
                run.await.unwrap();
            }
        });
    };
    round();
    let before = fds();
    round();
    assert_eq!(children(), "");
    // A copying thread gives its descriptors back just after its result.
    eventually("every descriptor is closed", || fds() <= before);
    Ok(())
}
