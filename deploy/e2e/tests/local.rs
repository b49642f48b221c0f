//! Users without rights run commands through the node agent's socket: as themselves, watched, and never as anybody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use glasshouse_e2e::{Process, command, output, program, skip_unless_watching_works, stderr, wait_for};
use glasshouse_runner::local::{LocalAnswer, LocalRequest, ask, read_answer};
use glasshouse_schema::lifecycle::{ProfilingMode, RedactionRules};
use glasshouse_schema::{Limits, SandboxLevel, SandboxRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A user and a group without rights, and two other groups.
const NOBODY: u32 = 65_534;
const GROUPS: [u32; 2] = [1234, 4321];

/// An agent that serves a socket, and a place that everybody can get to.
struct Place {
    agent: Process,
    dir: tempfile::TempDir,
    own: PathBuf,
    work: PathBuf,
}

impl Place {
    fn new(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (own, work) = (dir.path().join("glasshouse"), dir.path().join("work"));
        std::fs::copy(program("glasshouse"), &own).unwrap();
        std::fs::create_dir(&work).unwrap();
        chown(&work, Some(NOBODY), Some(NOBODY)).unwrap();
        let mut agent = command("glasshouse-node-agent");
        agent.args(["--local-only", "--profile", "host", "--socket-mode", "666", "--socket"]);
        agent.arg(dir.path().join("agent.sock")).arg("--state").arg(dir.path().join("agent"));
        agent.args(options).stderr(Stdio::piped());
        let mut agent = Process::spawn(agent);
        let mut log = BufReader::new(agent.0.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(log.any(|line| line.contains("serving users")), "the agent serves users");
        std::thread::spawn(move || log.for_each(|line| eprintln!("agent: {line}")));
        Self { agent, dir, own, work }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// `glasshouse run` as somebody without rights.
    fn run(&self, options: &[&str], argv: &[&str]) -> Command {
        let groups = GROUPS.map(|group| group.to_string()).join(",");
        let (user, own) = (NOBODY.to_string(), self.own.to_str().unwrap());
        let mut run = Command::new("setpriv");
        run.args(["--reuid", &user, "--regid", &user, "--groups", &groups, "--", own, "run"]);
        run.env("GLASSHOUSE_SOCKET", self.socket()).stdin(Stdio::null()).current_dir(&self.work);
        run.args(["--profile", "host", "--profile-required"]).args(options).arg("--").args(argv);
        run
    }

    fn ran(&self, options: &[&str], argv: &[&str]) -> Output {
        output(self.run(options, argv))
    }

    fn receipt(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.work.join("receipt.json")).unwrap()).unwrap()
    }

    /// What no command line would ask: spoken to the agent directly, by a thread without rights.
    fn ask(&self, request: LocalRequest) -> (LocalAnswer, String) {
        let socket = self.socket();
        let (mut read, write) = std::io::pipe().unwrap();
        let answer = std::thread::spawn(move || {
            become_nobody();
            let none: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
            let write = OwnedFd::from(write);
            let streams = [none, write.try_clone().unwrap(), write];
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let asked = ask(&socket, &request, &streams).unwrap();
                drop(streams);
                read_answer(asked).await.unwrap()
            })
        });
        let mut printed = String::new();
        read.read_to_string(&mut printed).unwrap();
        (answer.join().unwrap(), printed)
    }
}

/// The kernel's own calls change this thread only.
#[allow(unsafe_code, reason = "credentials of one thread have no safe API")]
fn become_nobody() {
    use nix::libc::{SYS_setgroups, SYS_setresgid, SYS_setresuid, syscall};
    // SAFETY: plain system calls on this thread; the list is empty.
    unsafe {
        assert_eq!(syscall(SYS_setgroups, 0, std::ptr::null::<u32>()), 0);
        assert_eq!(syscall(SYS_setresgid, NOBODY, NOBODY, NOBODY), 0);
        assert_eq!(syscall(SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
    }
}

fn request(workdir: &Path, argv: &[&str]) -> LocalRequest {
    LocalRequest {
        argv: argv.iter().map(Into::into).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        workdir: workdir.into(),
        umask: 0o22,
        is_terminal: false,
        profile: ProfilingMode::Disabled,
        profile_required: false,
        lossless: false,
        wait_for_descendants: false,
        sandbox: SandboxRequest::default(),
        limits: Limits::default(),
        labels: Vec::new(),
        policies: Vec::new(),
        redaction: RedactionRules { path_prefixes: Vec::new(), tokens: true },
        trace: None,
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Living processes with this mark in their command line.
fn processes(mark: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(mark.len()).any(|part| part == mark.as_bytes())
    })
    .collect()
}

#[test]
fn a_command_is_its_callers_in_everything_and_has_a_receipt() {
    skip_unless_watching_works!();
    let place = Place::new(&[]);
    let script = "id -u; id -G; pwd; umask; echo $WHO; ulimit -Sn; cat; echo late >&2; \
                  grep -E 'CapEff|NoNewPrivs' /proc/self/status | tr -d '\\n\\t'; echo; ls /proc/self/fd | tr '\\n' ' '; exit 7";
    let mut run = place.run(&["--label", "a=b"], &["sh", "-c", script]);
    run.env("WHO", "somebody").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[allow(unsafe_code, reason = "a limit and a mask of the caller alone")]
    // SAFETY: between fork and exec, both calls are async-signal-safe.
    unsafe {
        run.pre_exec(|| {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o27));
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 77, 99)?;
            Ok(())
        });
    }
    let mut run = run.spawn().unwrap();
    run.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    let expected = format!(
        "65534\n65534 1234 4321\n{}\n0027\nsomebody\n77\nfrom stdin\nCapEff:0000000000000000NoNewPrivs:1\n0 1 2 3 ",
        place.work.display()
    );
    assert_eq!(text(&output), expected);
    assert_eq!(stderr(&output), "late\n");
    let receipt = place.receipt();
    assert_eq!((&receipt["exit_code"], &receipt["completeness"]), (&7.into(), &"closed".into()), "{receipt}");
    let commands: Vec<&str> =
        receipt["processes"].as_array().unwrap().iter().filter_map(|of| of["cmd"].as_str()).collect();
    assert!(commands.iter().any(|command| command.starts_with("id -G")), "{commands:?}");
    assert_eq!(receipt["labels"]["a"], "b");
}

#[test]
fn what_the_agents_policies_do_not_let_pass_does_not_run_for_a_user_either() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("users.yaml");
    let rules = "name: users\nversion: v1\nrules:\n  - id: no-true\n    phase: pre\n    \
        expression: request.user.uid == 65534 && request.argv[0] != 'true'\n    message: nothing is true\n";
    std::fs::write(&policy, rules).unwrap();
    let place = Place::new(&["--policy", policy.to_str().unwrap()]);
    let refused = place.ran(&[], &["true"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(
        stderr(&refused).contains("policy `users`, rule `no-true`: nothing is true"),
        "{}",
        stderr(&refused)
    );
    let passes = place.ran(&[], &["echo", "yes"]);
    assert_eq!((passes.status.code(), text(&passes)), (Some(0), "yes\n".to_owned()), "{}", stderr(&passes));
    assert_eq!(place.receipt()["policies"][0]["name"], "users");
}

#[test]
fn a_sandbox_is_the_users_too() {
    skip_unless_watching_works!();
    let place = Place::new(&[]);
    std::fs::write(place.dir.path().join("beside"), "").unwrap();
    std::fs::set_permissions(place.dir.path().join("beside"), std::fs::Permissions::from_mode(0o666))
        .unwrap();
    let beside = place.dir.path().join("beside").display().to_string();
    for (level, groups) in [("standard", "65534 1234 4321\n"), ("strict", "65534\n")] {
        let script = format!(
            "id -u; id -G; echo x > made && stat -c %u:%a made; echo x > /tmp/made && stat -c %u /tmp/made; \
             (echo x > {beside}) 2>/dev/null || echo kept; test -e /proc/{} || echo alone; grep CapBnd /proc/self/status",
            std::process::id()
        );
        let output = place.ran(&["--sandbox", level], &["sh", "-c", &script]);
        assert!(output.status.success(), "{level}: {}", stderr(&output));
        let rest = "65534:644\n65534\nkept\nalone\nCapBnd:\t0000000000000000\n";
        assert_eq!(text(&output), format!("65534\n{groups}{rest}"), "{level}");
        assert_eq!(place.receipt()["environment"]["sandbox"]["level"], level);
        std::fs::remove_file(place.work.join("made")).unwrap();
    }
}

#[test]
fn signals_reach_the_command_and_it_does_not_outlive_its_caller() {
    skip_unless_watching_works!();
    let place = Place::new(&[]);
    let mark = format!("glasshouse-local-{}", std::process::id());
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGUSR1, 138)] {
        let up = place.work.join("up");
        let script = format!(": {mark}; echo x > {}; exec sleep 1000", up.display());
        let mut run = place.run(&[], &["sh", "-c", &script]).spawn().unwrap();
        wait_for("the command runs", || up.exists().then_some(()));
        std::fs::remove_file(&up).unwrap();
        kill(Pid::from_raw(run.id().cast_signed()), signal).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(code), "{signal}");
        assert_eq!(place.receipt()["exit_code"], code);
    }
    // One that leaves its session, and a caller that cannot say goodbye.
    let script = format!(": {mark}; setsid sh -c ': {mark}; sleep 1000; :' & sleep 1000; :");
    let mut run = place.run(&[], &["sh", "-c", &script]).spawn().unwrap();
    wait_for("the command runs", || (processes(&mark).len() >= 3).then_some(()));
    run.kill().unwrap();
    run.wait().unwrap();
    wait_for("nothing of it is left", || processes(&mark).is_empty().then_some(()));
}

#[test]
fn nobody_gets_what_is_not_theirs() {
    skip_unless_watching_works!();
    let place = Place::new(&[]);
    // A directory that only root may enter, in a place that a sandbox makes anew.
    let secret = tempfile::Builder::new().prefix("glasshouse-secret-").tempdir_in("/run").unwrap();
    std::fs::set_permissions(secret.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let below = secret.path().join("below");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("file"), "secret").unwrap();
    std::fs::set_permissions(&below, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink(&below, place.work.join("link")).unwrap();
    for path in [below.clone(), place.work.join("link")] {
        for write in [false, true] {
            let mut asked = request(&place.work, &["cat", below.join("file").to_str().unwrap()]);
            asked.sandbox = SandboxRequest::of(SandboxLevel::Standard);
            let list = if write { &mut asked.sandbox.write } else { &mut asked.sandbox.read };
            list.push(path.clone());
            let (answer, printed) = place.ask(asked);
            assert_eq!((answer.outcome.exit_code, printed.as_str()), (125, ""), "{answer:?}");
        }
        let (answer, _) = place.ask(request(&path, &["ls"]));
        assert_eq!(answer.outcome.exit_code, 125, "as the working directory: {answer:?}");
    }
    // What is there and what is not is the same for whoever may not look.
    let tell = |name: &str| {
        let path = below.join(name);
        let (answer, _) = place.ask(request(&place.work, &[path.to_str().unwrap()]));
        answer.outcome.error.unwrap().replace(name, "NAME")
    };
    assert_eq!(tell("file"), tell("none"));
    let mut searched = request(&place.work, &["file"]);
    searched.env = vec![("PATH".into(), below.clone().into())];
    assert_eq!(place.ask(searched).0.outcome.exit_code, 127);
    // A set-user-ID program gains nothing.
    let id = place.dir.path().join("id");
    std::fs::copy("/usr/bin/id", &id).unwrap();
    std::fs::set_permissions(&id, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let (answer, printed) = place.ask(request(&place.work, &[id.to_str().unwrap(), "-u"]));
    assert_eq!((answer.outcome.exit_code, printed.as_str()), (0, "65534\n"), "{answer:?}");
    // No words of the caller's make it another user, or go around what is refused.
    let mut relative = request(Path::new("work"), &["true"]);
    assert_eq!(place.ask(relative.clone()).0.outcome.exit_code, 125);
    relative.workdir = "/".into();
    relative.is_terminal = true;
    assert_eq!(place.ask(relative).0.outcome.exit_code, 125, "/dev/null is no terminal");
    let nested = format!(
        "GLASSHOUSE_SOCKET={} {} run --agent always -- id",
        place.socket().display(),
        place.own.display()
    );
    let output = place.ran(&[], &["sh", "-c", &nested]);
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(125), ""));
    assert!(stderr(&output).contains("cannot get out of it"), "{}", stderr(&output));
    let mut root = command("glasshouse");
    root.args(["run", "--agent", "always", "--socket"]).arg(place.socket()).args(["--", "id"]);
    let output = glasshouse_e2e::output(root);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("root"), "{}", stderr(&output));
}

#[test]
fn the_agents_sandbox_and_limits_are_the_least() {
    skip_unless_watching_works!();
    let options = ["--socket-sandbox", "standard", "--socket-limits", "files=50", "--socket-per-user", "2"];
    let place = Place::new(&options);
    let output = place.ran(&["--limit", "files=60"], &["sh", "-c", "ulimit -n; ls -d /proc/1 2>&1"]);
    assert_eq!(text(&output).lines().next(), Some("50"), "{}", stderr(&output));
    let receipt = place.receipt();
    assert_eq!(receipt["environment"]["sandbox"]["level"], "standard", "{receipt}");
    let output = place.ran(&["--limit", "files=40"], &["sh", "-c", "ulimit -n"]);
    assert_eq!(text(&output), "40\n");
    let output = place.ran(&["--sandbox", "strict"], &["true"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(place.receipt()["environment"]["sandbox"]["level"], "strict");

    let mut held: Vec<_> = (0..2)
        .map(|_| {
            let mut run = place.run(&[], &["cat"]);
            run.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut run = run.spawn().unwrap();
            // It runs once it answers.
            run.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            run.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            run
        })
        .collect();
    let output = place.ran(&[], &["true"]);
    assert!(stderr(&output).contains("2 commands run for this user"), "{}", stderr(&output));
    held.iter_mut().for_each(|run| drop(run.stdin.take()));
    held.iter_mut().for_each(|run| assert!(run.wait().unwrap().success()));
    wait_for("there is room again", || place.ran(&[], &["true"]).status.success().then_some(()));
}

#[test]
fn a_terminal_is_the_commands_own() {
    skip_unless_watching_works!();
    if !Path::new("/usr/bin/script").exists() {
        eprintln!("skipped: script(1) is not installed");
        return;
    }
    let place = Place::new(&[]);
    let inner = format!(
        "{} run --agent always --profile host --socket {} -- sh -c 'test -t 0 && test -t 1 && test -t 2 && echo all; \
         echo hello >/dev/tty; read line; echo got-$line; exec sleep 1000'",
        place.own.display(),
        place.socket().display()
    );
    let mut script = Command::new("/usr/bin/script");
    script.args(["-qefc", &inner, "/dev/null"]).uid(NOBODY).gid(NOBODY).current_dir(&place.work);
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().unwrap();
    let (mut keys, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let mut seen = String::new();
    let mut see = |what: &str| {
        let mut buffer = [0; 1024];
        while !seen.contains(what) {
            let read = screen.read(&mut buffer).unwrap();
            assert!(read > 0, "{what} does not come: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    see("all");
    see("hello");
    keys.write_all(b"typed\n").unwrap();
    see("got-typed");
    keys.write_all(b"\x03").unwrap();
    assert_eq!(script.wait().unwrap().code(), Some(130));
    assert_eq!(place.receipt()["exit_code"], 130);
}

#[test]
fn many_leave_nothing_and_a_stopped_agent_ends_what_runs() {
    skip_unless_watching_works!();
    let mut place = Place::new(&["--drain-grace", "100ms"]);
    let pid = place.agent.0.id();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(place.ran(&[], &["true"]).status.success());
    let before = descriptors();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let place = &place;
            scope.spawn(move || {
                for number in 0..10 {
                    let name = format!("{:?}-{number}", std::thread::current().id());
                    let receipt = place.work.join(name).display().to_string();
                    let output = place.ran(&["--receipt", &receipt], &["sh", "-c", "exit 3"]);
                    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
                }
            });
        }
    });
    wait_for("every descriptor is closed", || (descriptors() <= before).then_some(()));
    let children = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        lists.map(|list| list.split_whitespace().count()).sum::<usize>()
    };
    assert_eq!(children(), 0);
    let mut run = place.run(&[], &["sh", "-c", "echo up; exec sleep 1000"]);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(run.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    place.agent.signal(Signal::SIGTERM);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137));
    assert!(stderr(&output).contains("the node agent was stopped"), "{}", stderr(&output));
    assert!(place.agent.0.wait().unwrap().success());
    assert!(!place.socket().exists());
    // Without it, one that asks for it says so, and one that does not runs alone.
    let output = place.ran(&["--agent", "always"], &["true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("no node agent"), "{}", stderr(&output));
}
