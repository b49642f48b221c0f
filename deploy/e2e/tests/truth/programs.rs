//! The programs. Each is made so that two runs do the same: fixed names, dates, seeds and environment, fresh directories.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::facts::Kind;
use crate::rules::{Expected, Explained};
use crate::trial::{Completeness, Skipped, Trial, Verdict, source_path, text, tool};

type Judged = Result<Verdict, Skipped>;

/// A program that could not do what it is for says so with this code.
const REFUSED: i32 = 77;
/// What `glasshouse run` ends with when a seccomp filter ended the program.
const ENDED_BY_SIGSYS: i32 = 128 + 31;

fn write(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap();
}

fn write_script(path: impl AsRef<Path>, text: &str) {
    write(&path, text);
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Two modules and a header, preprocessed, compiled, assembled, archived and linked, and one that does not compile.
pub(crate) fn c_compile(trial: &Trial) -> Judged {
    tool("cc")?;
    let prepare = |work: &Path| {
        std::fs::create_dir(work.join("include")).unwrap();
        write(work.join("include/sum.h"), "int sum(int a, int b);\n");
        write(work.join("sum.c"), "#include \"sum.h\"\nint sum(int a, int b) { return a + b; }\n");
        write(
            work.join("main.c"),
            "#include <stdio.h>\n#include <sum.h>\nint main(void) { printf(\"%d\\n\", sum(1, 2)); return 0; }\n",
        );
        write(work.join("broken.c"), "#include <missing.h>\n");
    };
    let script = "set -e
        cc -Iinclude -O2 -g -c sum.c -o sum.o
        ar rc libsum.a sum.o
        cc -Iinclude -pipe -S main.c
        cc -Iinclude -L. -o main main.c -lsum
        cc broken.c 2>/dev/null || test $? = 1
        ./main && rm main";
    let verdict = trial.closed(&prepare, &["/bin/sh", "-c", script])?;
    Ok(verdict.at_least(Kind::Exec, 8).at_least(Kind::Open, 100).at_least(Kind::Delete, 4))
}

pub(crate) fn git_init_add_commit(trial: &Trial) -> Judged {
    tool("git")?;
    let prepare = |work: &Path| {
        std::fs::create_dir_all(work.join("repository/sub")).unwrap();
        // Old enough for git to trust what it remembers of them.
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for name in ["a.txt", "sub/b.txt", "remove"] {
            write(work.join("repository").join(name), name);
            let file = std::fs::File::options().write(true).open(work.join("repository").join(name)).unwrap();
            file.set_modified(old).unwrap();
        }
        // A second that passes between two commands must not make git read a file again.
        let config = "[user]\n\tname = T\n\temail = t@example.org\n[core]\n\ttrustctime = false\n\
                      [gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n";
        write(work.join(".gitconfig"), config);
    };
    let script = "set -e; cd repository
        git init -q -b main .; git add .; git commit -q -m first
        git mv a.txt c.txt; git rm -q remove; git commit -q -m second
        git log --format=%H; git status --short";
    let verdict = trial.closed(&prepare, &["/bin/sh", "-c", script])?;
    let verdict = verdict.at_least(Kind::Exec, 2).at_least(Kind::Open, 50);
    Ok(verdict.at_least(Kind::Rename, 5).at_least(Kind::Delete, 1))
}

pub(crate) fn python_subprocesses_and_threads(trial: &Trial) -> Judged {
    let python = tool("python3")?;
    let script = source_path("work.py");
    let verdict = trial.closed(&|_| (), &[text(&python), "-I", text(&script)])?;
    let verdict = verdict.at_least(Kind::Exec, 5).at_least(Kind::Open, 100);
    Ok(verdict.at_least(Kind::Delete, 10).at_least(Kind::Rename, 5))
}

pub(crate) fn tar(trial: &Trial) -> Judged {
    tool("tar")?;
    tool("gzip")?;
    let prepare = |work: &Path| {
        for dir in ["tree/one", "tree/two/three", "out", "gone"] {
            std::fs::create_dir_all(work.join(dir)).unwrap();
        }
        for number in 0..20 {
            write(work.join(format!("tree/two/three/file-{number}")), vec![b'x'; number * 1000]);
        }
        write(work.join("gone/file"), "x");
        symlink("three/file-1", work.join("tree/two/link")).unwrap();
        std::fs::hard_link(work.join("tree/two/three/file-2"), work.join("tree/one/hard")).unwrap();
    };
    let script = "set -e
        tar -cf plain.tar tree
        tar -czf packed.tar.gz -C tree . -C .. plain.tar
        tar -tzf packed.tar.gz | sort | wc -l
        tar -xzf packed.tar.gz -C out
        mkdir again; tar -xf plain.tar -C again; rm -r again
        tar -cf gone.tar --remove-files gone
        tar -xf missing.tar 2>/dev/null || test $? = 2";
    let verdict = trial.closed(&prepare, &["/bin/sh", "-c", script])?;
    Ok(verdict.at_least(Kind::Exec, 6).at_least(Kind::Open, 60).at_least(Kind::Delete, 2))
}

/// How deep [`find`] goes: `/usr/share/doc/*/copyright`.
const DEPTH: usize = 4;

/// Runs `find TREE -maxdepth DEPTH -type f …` over a tree that others may change: until it was the same before and after.
fn find(trial: &Trial, tree: &str, rest: &[&str]) -> Judged {
    fn list(dir: &Path, depth: usize, into: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            into.push(entry.path());
            if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                list(&entry.path(), depth - 1, into);
            }
        }
    }
    let listed = || {
        let mut all = Vec::new();
        list(Path::new(tree), DEPTH, &mut all);
        all.sort();
        all
    };
    let find = tool("find")?;
    let depth = DEPTH.to_string();
    let argv = [&[text(&find), tree, "-maxdepth", &depth, "-type", "f"], rest].concat();
    for _ in 0..5 {
        let before = listed();
        let verdict = trial.closed(&|_| (), &argv);
        if before == listed() {
            return verdict;
        }
    }
    panic!("{tree} keeps changing");
}

/// Many files given to few programs.
pub(crate) fn find_exec(trial: &Trial) -> Judged {
    let rest = ["-name", "copyright", "-exec", "head", "-c1", "{}", "+"];
    Ok(find(trial, "/usr", &rest)?.at_least(Kind::Exec, 2).at_least(Kind::Open, 100))
}

/// A program for each file. The kernel's headers are there wherever this builds.
pub(crate) fn find_exec_each(trial: &Trial) -> Judged {
    let rest = ["-exec", "head", "-c1", "{}", ";"];
    let verdict = find(trial, "/usr/include/linux/netfilter", &rest)?;
    Ok(verdict.at_least(Kind::Exec, 2).at_least(Kind::Open, 20))
}

pub(crate) fn shell_pipeline(trial: &Trial) -> Judged {
    let prepare = |work: &Path| {
        std::fs::create_dir_all(work.join("sub/empty")).unwrap();
        write(work.join("words"), "b a c a b a\n");
        symlink("../words", work.join("sub/link")).unwrap();
        write_script(work.join("script"), "#!/bin/sh\ncat \"$1\" > \"$2\"\n");
    };
    let script = r#"set -e
        tr ' ' '\n' < words | sort | uniq -c | sort -rn | tee counted | head -n 1
        cat missing 2>/dev/null | cat > 'with space'
        (cd sub; cat link ../words > "../quo\"te<>"; rmdir empty; rmdir ../sub 2>/dev/null || true)
        echo x | cat /dev/stdin
        cat <<END
here
END
        x=$(cat counted | wc -l); echo $x
        ./script words by-script
        mv counted sub/; mv sub/counted sub/again; mv missing nowhere 2>/dev/null || true
        cat /proc/self/cmdline > /dev/null
        for i in 1 2 3; do echo $i; done | while read i; do echo $i > file-$i; done
        rm file-* sub/link; rm -r sub; rm missing 2>/dev/null || true"#;
    let verdict = trial.closed(&prepare, &["/bin/sh", "-c", script])?;
    let verdict = verdict.at_least(Kind::Exec, 10).at_least(Kind::Open, 20).at_least(Kind::Delete, 8);
    Ok(verdict.at_least(Kind::Rename, 3).shows(Explained::ProcessId).shows(Explained::Nameless))
}

pub(crate) fn static_binary(trial: &Trial) -> Judged {
    let program = trial.build("static.c", &["-static", "-Wno-nonnull"])?;
    let verdict = trial.closed(&|_| (), &[&program])?;
    let verdict = verdict.at_least(Kind::Exec, 1).at_least(Kind::Open, 20);
    Ok(verdict.at_least(Kind::Delete, 8).at_least(Kind::Rename, 6))
}

pub(crate) fn fork_tree_32_deep(trial: &Trial) -> Judged {
    let program = trial.build("forks.c", &[])?;
    let verdict = trial.closed(&|_| (), &[&program])?.at_least(Kind::Open, 32).at_least(Kind::Delete, 31);
    // Each process is the child of the one before.
    let tree = verdict.receipt()["process_tree"].as_array().unwrap();
    let child_of = |pid: &serde_json::Value| tree.iter().find(|process| process["ppid"] == *pid);
    let mut deepest = &tree[0];
    let mut depth = 1;
    while let Some(child) = child_of(&deepest["pid"]) {
        deepest = child;
        depth += 1;
    }
    assert_eq!((tree.len(), depth), (32, 32), "{tree:#?}");
    assert_eq!(deepest["argv"][0], "true");
    Ok(verdict)
}

pub(crate) fn vfork_and_posix_spawn(trial: &Trial) -> Judged {
    let program = trial.build("spawns.c", &[])?;
    let prepare = |work: &Path| {
        std::fs::create_dir(work.join("sub")).unwrap();
        write(work.join("input"), "x\n");
        write(work.join("sub/input"), "y\n");
    };
    Ok(trial.closed(&prepare, &[&program])?.at_least(Kind::Exec, 3).at_least(Kind::Open, 5))
}

pub(crate) fn threads_that_exec(trial: &Trial) -> Judged {
    let program = trial.build("threads.c", &["-pthread"])?;
    let prepare = |work: &Path| std::fs::create_dir_all(work.join("sub/sub/sub")).unwrap();
    let verdict = trial.closed(&prepare, &[&program])?.at_least(Kind::Exec, 2).at_least(Kind::Delete, 7);
    // An exec keeps the process, whichever thread asks for it: the first, and its child.
    let tree = verdict.receipt()["process_tree"].as_array().unwrap();
    let execs: Vec<usize> =
        tree.iter().map(|process| process["execs"].as_array().map_or(1, Vec::len)).collect();
    assert_eq!(execs, [3, 1], "{tree:#?}");
    Ok(verdict)
}

pub(crate) fn execveat(trial: &Trial) -> Judged {
    let program = trial.build("execveat.c", &[])?;
    let prepare = |work: &Path| {
        let sub = work.join("sub");
        std::fs::create_dir(&sub).unwrap();
        for name in ["program", "doomed"] {
            std::fs::copy("/bin/true", sub.join(name)).unwrap();
        }
        symlink("program", sub.join("link")).unwrap();
        write_script(sub.join("script"), "#!/bin/sh -e\n:\n");
        // Its interpreter is itself a script.
        write_script(sub.join("chain"), &format!("#!{}\n", sub.join("script").display()));
    };
    let verdict = trial.closed(&prepare, &[&program])?.at_least(Kind::Exec, 5);
    let verdict = verdict.shows(Explained::Interpreter).shows(Explained::Symlink);
    Ok(verdict.shows(Explained::Memory))
}

pub(crate) fn connects(trial: &Trial) -> Judged {
    let python = tool("python3")?;
    let script = source_path("connects.py");
    let port4 = TcpListener::bind("127.0.0.1:0").unwrap();
    let port6 =
        TcpListener::bind("[::1]:0").map_err(|error| Skipped(format!("no IPv6 loopback: {error}")))?;
    let (stream, datagram) = (trial.beside("stream.sock"), trial.beside("datagram.sock"));
    let _stream = UnixListener::bind(&stream).unwrap();
    let _datagram = UnixDatagram::bind(&datagram).unwrap();
    let name = format!("glasshouse-truth-{}", std::process::id());
    let abstract_name =
        <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name).unwrap();
    let _abstract = UnixListener::bind_addr(&abstract_name).unwrap();
    let [port4, port6] = [&port4, &port6].map(|on| on.local_addr().unwrap().port().to_string());
    let argv =
        [text(&python), "-I", text(&script), &port4, &port6, text(&stream), text(&datagram), name.as_str()];
    let verdict = trial.closed(&|_| (), &argv)?.at_least(Kind::Connect, 15);
    Ok(verdict.shows(Explained::Disconnect).shows(Explained::NoAddress))
}

/// Seen where a hook sees it, else refused by the sandbox, else named in the coverage of a partial receipt.
fn around_the_hooks(trial: &Trial, name: &str, file: &str, argv: &[&str]) -> Judged {
    let prepare = |work: &Path| write(work.join(file), "by another way\n");
    let plain = trial.plain(&prepare, argv);
    match plain.status.code() {
        Some(0) => assert_eq!(String::from_utf8_lossy(&plain.stdout), "by another way\n"),
        Some(REFUSED) => return Err(Skipped(format!("this kernel refuses {name}"))),
        // A kernel without 32-bit calls ends who tries with a signal.
        None => return Err(Skipped(format!("this kernel has no {name}: {}", plain.status))),
        Some(other) => panic!("{other}: {}", glasshouse_e2e::stderr(&plain)),
    }
    let runs = trial.run(&prepare, argv, true)?;
    let path = trial.work.join(file).into_os_string().into_string().unwrap();
    let bypassed = runs.bypassed();
    let mut expected = Expected { bypassed: bypassed.clone(), ..Expected::default() };
    if runs.status != Some(0) {
        // Whoever is refused does not get that far; strace's run did.
        assert!(matches!(runs.status, Some(REFUSED | ENDED_BY_SIGSYS)), "{:?}", runs.status);
        assert!(!runs.has_seen(&path), "refused, and {path} was opened");
        expected.refused.extend([format!("{path}-renamed"), path]);
    } else if runs.has_seen(&path) {
        let is_closed = bypassed.is_empty();
        runs.assert_complete(if is_closed { Completeness::Closed } else { Completeness::Bypassed });
        // What strace can't see, a hook may.
        expected.by_io_uring.push(path);
    } else {
        assert!(bypassed.iter().any(|what| what.contains(name)), "{name} is not in {bypassed:?}");
        runs.assert_complete(Completeness::Bypassed);
        // What a hook does not see, strace may.
        expected.by_compat.extend([format!("{path}-renamed"), path]);
    }
    Ok(runs.judge(&expected).at_least(Kind::Exec, 1))
}

pub(crate) fn io_uring(trial: &Trial) -> Judged {
    let program = trial.build("iouring.c", &[])?;
    around_the_hooks(trial, "io_uring", "by-io-uring", &[&program, "by-io-uring"])
}

pub(crate) fn calls_32_bit(trial: &Trial) -> Judged {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Skipped("int $0x80 is of x86-64".into()));
    }
    let program = trial.build("compat.c", &["-static", "-no-pie"])?;
    around_the_hooks(trial, "compat", "by-32", &[&program])
}
