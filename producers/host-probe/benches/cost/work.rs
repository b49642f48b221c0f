//! What is measured: each workload is a process of its own that prints its operations and the nanoseconds they took.

use std::error::Error;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The first argument of a workload process.
pub(super) const ROLE: &str = "work";
const FILES_PER_DIRECTORY: u64 = 1000;
const SOURCES: u64 = 6;

/// What one row of the table runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    /// One operation.
    pub(super) operation: &'static str,
    pub(super) ops: u64,
    /// For peers that stop the process at each call; too few would only measure the start.
    pub(super) slow_ops: u64,
}

const fn row(name: &'static str, operation: &'static str, ops: u64, slow_ops: u64) -> Workload {
    Workload { name, operation, ops, slow_ops }
}

pub(super) const WORKLOADS: [Workload; 8] = [
    row("same", "open+close of one file", 300_000, 10_000),
    row("distinct", "open+close of 100 k different files, each once", 100_000, 10_000),
    row("rw", "pread or pwrite of 4 KiB", 1_000_000, 20_000),
    row("connect", "connect+accept+close on loopback", 20_000, 2_000),
    row("exec", "fork+exec+wait of /bin/true", 1_000, 200),
    row("compile", "gcc -O2 of a C file, two at a time", 6, 6),
    row("writers", "open+write+close, two processes, each its file", 200_000, 10_000),
    row("distinct2", "open+close of different files, two processes", 100_000, 10_000),
];

/// Files that the tree needs: `distinct2` gives each of its processes files of its own.
pub(super) const TREE_FILES: u64 = 200_000;

/// Makes what the workloads find in `dir`.
pub(super) fn prepare(dir: &Path, files: u64) -> Result<()> {
    for file in 0..files {
        let path = tree_file(dir, file);
        if file % FILES_PER_DIRECTORY == 0
            && let Some(parent) = path.parent()
        {
            std::fs::create_dir_all(parent)?;
        }
        File::create(path)?;
    }
    for source in 0..SOURCES {
        std::fs::write(dir.join(format!("part{source}.c")), c_source(source)?)?;
    }
    std::fs::write(dir.join("block"), vec![7; 4096])?;
    Ok(())
}

fn tree_file(dir: &Path, file: u64) -> PathBuf {
    dir.join(format!("tree/d{:03}/file{file:07}", file / FILES_PER_DIRECTORY))
}

/// A file that takes gcc about as long as a usual one of a C project.
fn c_source(part: u64) -> Result<String> {
    let mut text = String::new();
    for header in
        ["errno", "fcntl", "math", "stdio", "stdlib", "string", "sys/socket", "sys/stat", "time", "unistd"]
    {
        writeln!(text, "#include <{header}.h>")?;
    }
    for function in 0..40 {
        writeln!(
            text,
            "double part{part}_f{function}(const double *in, char *out, int n) {{\n\
             \tdouble sum = {function};\n\
             \tfor (int i = 0; i < n; i++) {{\n\
             \t\tfor (int j = i; j > 0; j /= 2) sum += in[j] * in[i] + sqrt(in[j] + {function});\n\
             \t\tif (i % {} == 0) out[i] = (char)sum; else out[n - i] ^= (char)strlen(out);\n\
             \t\tswitch ((int)sum % 7) {{ case 1: sum *= 2; break; case 3: sum -= i; break; case 5: printf(\"%f\", sum); }}\n\
             \t}}\n\treturn sum;\n}}",
            function + 2
        )?;
    }
    Ok(text)
}

/// Runs the workload that the arguments name, if this process is one.
pub(super) fn role() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, name, ops, dir, rest @ ..] = arguments.as_slice() else {
        return Ok(false);
    };
    if role != ROLE {
        return Ok(false);
    }
    let ops = ops.parse()?;
    let dir = Path::new(dir);
    let (done, took) = match name.as_str() {
        "same" => same(ops, dir)?,
        "distinct" => distinct(0, ops, dir)?,
        "distinct-from" => distinct(rest.first().ok_or("no first file")?.parse()?, ops, dir)?,
        "rw" => rw(ops, dir)?,
        "connect" => connect(ops)?,
        "exec" => exec(ops)?,
        "compile" => compile(ops, dir)?,
        "writer" => writer(ops, dir)?,
        "writers" => two("writer", ops, dir, [0, 1])?,
        "distinct2" => two("distinct-from", ops, dir, [0, TREE_FILES / 2])?,
        "idle" => idle(dir)?,
        _ => return Err(format!("no workload {name}").into()),
    };
    println!("{done} {}", took.as_nanos());
    Ok(true)
}

fn same(ops: u64, dir: &Path) -> Result<(u64, Duration)> {
    let path = CString::new(dir.join("block").into_os_string().into_encoded_bytes())?;
    let began = Instant::now();
    for _ in 0..ops {
        drop(open(path.as_c_str(), OFlag::O_RDONLY, Mode::empty())?);
    }
    Ok((ops, began.elapsed()))
}

fn distinct(first: u64, ops: u64, dir: &Path) -> Result<(u64, Duration)> {
    let path = |file| CString::new(tree_file(dir, file).into_os_string().into_encoded_bytes());
    let paths = (first..first + ops).map(path).collect::<std::result::Result<Vec<_>, _>>()?;
    let began = Instant::now();
    for path in &paths {
        drop(open(path.as_c_str(), OFlag::O_RDONLY, Mode::empty())?);
    }
    Ok((ops, began.elapsed()))
}

fn rw(ops: u64, dir: &Path) -> Result<(u64, Duration)> {
    let file = File::options().read(true).write(true).open(dir.join("block"))?;
    let mut block = vec![0; 4096];
    let began = Instant::now();
    for _ in 0..ops / 2 {
        file.read_exact_at(&mut block, 0)?;
        file.write_all_at(&block, 0)?;
    }
    Ok((ops / 2 * 2, began.elapsed()))
}

/// Client and server are one process: what is measured is the calls, not the scheduler.
fn connect(ops: u64) -> Result<(u64, Duration)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let began = Instant::now();
    for _ in 0..ops {
        let client = TcpStream::connect(address)?;
        let (server, _) = listener.accept()?;
        reset_on_close(&client)?;
        drop(client);
        drop(server);
    }
    Ok((ops, began.elapsed()))
}

/// No TIME_WAIT: the next rounds need the ports.
#[allow(unsafe_code, reason = "std's set_linger is not stable")]
fn reset_on_close(stream: &TcpStream) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: an open socket, and a pointer to a struct of the size that is given, read during the call only.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            std::ptr::from_ref(&linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

fn exec(ops: u64) -> Result<(u64, Duration)> {
    let began = Instant::now();
    for _ in 0..ops {
        if !Command::new("/bin/true").status()?.success() {
            return Err("/bin/true failed".into());
        }
    }
    Ok((ops, began.elapsed()))
}

fn compile(ops: u64, dir: &Path) -> Result<(u64, Duration)> {
    let start = |part: u64| {
        Command::new("gcc")
            .args(["-O2", "-c", "-o"])
            .args([dir.join(format!("part{part}.o")), dir.join(format!("part{part}.c"))])
            .spawn()
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let half = |first: u64| {
            move || {
                (first..ops).step_by(2).all(|part| {
                    start(part).and_then(|mut gcc| gcc.wait()).is_ok_and(|status| status.success())
                })
            }
        };
        let other = scope.spawn(half(1));
        (half(0)() && other.join().unwrap_or(false)).then_some(()).ok_or("gcc failed")
    })?;
    Ok((ops, began.elapsed()))
}

fn writer(ops: u64, dir: &Path) -> Result<(u64, Duration)> {
    let path = dir.join(format!("written-{}", std::process::id()));
    let text = CString::new(path.clone().into_os_string().into_encoded_bytes())?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
    let began = Instant::now();
    for _ in 0..ops {
        let file = open(text.as_c_str(), flags, Mode::from_bits_truncate(0o600))?;
        nix::unistd::write(&file, &[1; 64])?;
    }
    let took = began.elapsed();
    std::fs::remove_file(path)?;
    Ok((ops, took))
}

/// Two processes at once: their operations together, and as long as they took one after the other, so that the time per
/// operation is that of one process.
fn two(name: &str, ops: u64, dir: &Path, rest: [u64; 2]) -> Result<(u64, Duration)> {
    let mut started = Vec::new();
    for rest in rest {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ROLE, name, &ops.to_string()]).arg(dir).arg(rest.to_string());
        started.push(command.stdout(Stdio::piped()).spawn()?);
    }
    let (mut done, mut took) = (0, Duration::ZERO);
    for child in started {
        let output = child.wait_with_output()?;
        let (ops, time) = parse(&String::from_utf8(output.stdout)?).ok_or("a worker failed")?;
        done += ops;
        took += time;
    }
    Ok((done, took))
}

/// Wakes a hundred times a second and opens something, until it is killed.
fn idle(dir: &Path) -> Result<(u64, Duration)> {
    loop {
        drop(File::open(dir.join("block"))?);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads what a workload printed.
pub(super) fn parse(printed: &str) -> Option<(u64, Duration)> {
    let (ops, ns) = printed.trim().split_once(' ')?;
    Some((ops.parse().ok()?, Duration::from_nanos(ns.parse().ok()?)))
}
