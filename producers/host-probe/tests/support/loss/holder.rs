//! The process that holds the probe: one of its own, so that it can be stopped like any other. It checks the frames
//! while they come and is asked by lines of text: `watch INDEX CGROUP TGID`, `seal INDEX`, `memory`.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use glasshouse_host_probe::{HostProbe, LoadOptions, SealReport, Watch, WatchRequest};
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::lifecycle::RedactionRules;
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{Class, Digest, EncodedFrame, ExecutionId, Frame, FrameWriter, NodeId, Vantage};
use serde::{Deserialize, Serialize};

/// The first argument of the process that holds the probe.
const ROLE: &str = "hold";
/// Frames that wait for their check; a sink that publishes has a queue like it.
const QUEUED_FRAMES: usize = 1024;
/// Whether the probe can be asked to hold back whoever it watches instead of losing.
pub(crate) const LOSSLESS: bool = true;

/// One class in a seal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClassCount {
    pub(crate) observed: u64,
    pub(crate) delivered: u64,
    pub(crate) collapsed: u64,
    pub(crate) lost: u64,
}

/// What stands in the frames of one chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InFrames {
    pub(crate) frames: u64,
    pub(crate) forks: u64,
    pub(crate) execs: u64,
    pub(crate) exits: u64,
    /// Calls that the events stand for.
    pub(crate) opens: u64,
    pub(crate) deletes: u64,
    pub(crate) renames: u64,
    pub(crate) writes: u64,
    /// Delivered and collapsed facts, in the order of [`Class::ALL`].
    pub(crate) facts: [(u64, u64); 5],
    /// The first thing that is wrong with the chain.
    pub(crate) broken: Option<String>,
    #[serde(skip)]
    prev: Option<Digest>,
    #[serde(skip)]
    is_sealed: bool,
}

/// The end of one watch.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sealed {
    pub(crate) recorded: bool,
    /// In the order of [`Class::ALL`].
    pub(crate) classes: [ClassCount; 5],
    pub(crate) unexplained: u64,
    pub(crate) still_alive: u64,
    pub(crate) escaped: u64,
    pub(crate) missed_runs: Option<[u64; 4]>,
    pub(crate) syscalls: HashMap<String, u64>,
    pub(crate) blind_spots: Vec<String>,
    pub(crate) cpu_ns: u64,
    pub(crate) in_frames: InFrames,
}

impl Sealed {
    pub(crate) fn class(&self, class: Class) -> &ClassCount {
        &self.classes[class as usize]
    }
}

/// What the probe takes while it watches.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Resident set of the process that holds it.
    pub(crate) rss_bytes: u64,
    /// Kernel memory of its maps.
    pub(crate) maps_bytes: u64,
}

impl InFrames {
    fn take(&mut self, encoded: &EncodedFrame) -> Result<(), String> {
        let frame = Frame::decode(&encoded.bytes).map_err(|error| error.to_string())?;
        let prev = self.prev.unwrap_or(Digest::ZERO);
        if frame.header.seq != self.frames || frame.header.prev != prev {
            return Err(format!("frame {} does not follow frame {}", frame.header.seq, self.frames));
        }
        if Digest::of(&encoded.bytes) != encoded.digest || self.is_sealed {
            return Err(format!("frame {} has a wrong digest, or follows the seal", self.frames));
        }
        (self.prev, self.is_sealed) = (Some(encoded.digest), frame.seal.is_some());
        self.frames += 1;
        let body = &frame.body;
        self.forks += body.forks.len() as u64;
        self.execs += body.execs.len() as u64;
        self.exits += body.exits.len() as u64;
        self.opens += body.opens.iter().map(|open| open.count).sum::<u64>();
        self.deletes += body.deletes.iter().map(|delete| delete.count).sum::<u64>();
        self.renames += body.renames.iter().map(|rename| rename.count).sum::<u64>();
        self.writes += body.ios.iter().map(|io| io.writes).sum::<u64>();
        for (class, delivered, collapsed) in body.facts() {
            let of = &mut self.facts[class as usize];
            *of = (of.0 + delivered, of.1 + collapsed);
        }
        Ok(())
    }
}

enum Checked {
    Frame(u64, EncodedFrame),
    End(u64, Sender<InFrames>),
}

fn check(frames: &Receiver<Checked>) {
    let mut chains: HashMap<u64, InFrames> = HashMap::new();
    while let Ok(next) = frames.recv() {
        match next {
            Checked::Frame(index, frame) => {
                let chain = chains.entry(index).or_default();
                if chain.broken.is_none()
                    && let Err(problem) = chain.take(&frame)
                {
                    chain.broken = Some(problem);
                }
            }
            Checked::End(index, reply) => {
                let mut chain = chains.remove(&index).unwrap_or_default();
                if !chain.is_sealed && chain.broken.is_none() {
                    chain.broken = Some("the last frame is no seal".to_owned());
                }
                let _ = reply.send(chain);
            }
        }
    }
}

fn request(
    index: u64,
    (cgroup_id, root_tgid): (u64, u32),
    lossless: bool,
    frames: &SyncSender<Checked>,
) -> Result<WatchRequest, Box<dyn Error>> {
    let mut random = [0; 10];
    random[..8].copy_from_slice(&index.to_le_bytes());
    let id = ExecutionId::from_parts(1, random);
    let config = FrameWriterConfig::new(id, NodeId::new("loss")?, Vantage::Host, 1, 0);
    let frames = frames.clone();
    Ok(WatchRequest {
        cgroup_id,
        root_tgid,
        writer: FrameWriter::new(config),
        redactor: Redactor::new([7; 32], id, RedactionRules { path_prefixes: Vec::new(), tokens: true }),
        sink: Box::new(move |frame: EncodedFrame| {
            let _ = frames.send(Checked::Frame(index, frame));
        }),
        lossless,
    })
}

fn sealed(report: SealReport, in_frames: InFrames) -> Sealed {
    let class = |class: Class| {
        let of = report.counters.class(class);
        let (observed, delivered, collapsed, lost) = (of.observed, of.delivered, of.collapsed, of.lost);
        ClassCount { observed, delivered, collapsed, lost }
    };
    Sealed {
        recorded: report.recorded,
        classes: Class::ALL.map(class),
        unexplained: report.unexplained,
        still_alive: report.still_alive,
        escaped: report.seal.escaped_tasks,
        missed_runs: report.kernel.missed_runs,
        syscalls: report.seal.syscalls.into_iter().collect(),
        blind_spots: report.seal.blind_spots,
        cpu_ns: report.seal.cost.user_cpu_ns,
        in_frames,
    }
}

/// Holds the probe if the arguments say so; returns if this is another process.
pub(crate) fn role() -> Result<bool, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().is_none_or(|role| role != ROLE) {
        return Ok(false);
    }
    let lossless = arguments.next().is_some_and(|argument| argument == "lossless");
    let probe = HostProbe::load(&LoadOptions::from_env())?;
    let (frames, to_check) = sync_channel(QUEUED_FRAMES);
    std::thread::spawn(move || check(&to_check));
    let mut watches: HashMap<u64, Watch> = HashMap::new();
    println!("ready");
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["watch", index, cgroup_id, tgid] => {
                let index = index.parse()?;
                let request = request(index, (cgroup_id.parse()?, tgid.parse()?), lossless, &frames)?;
                watches.insert(index, probe.watch(request)?);
                println!("watching");
            }
            ["seal", index] => {
                let index = index.parse()?;
                let report = watches.remove(&index).ok_or("not watched")?.seal()?;
                let (reply, answer) = channel();
                frames.send(Checked::End(index, reply))?;
                println!("{}", serde_json::to_string(&sealed(report, answer.recv()?))?);
            }
            ["memory"] => println!("{}", serde_json::to_string(&memory()?)?),
            _ => return Err(format!("unknown command {line:?}").into()),
        }
    }
    Ok(true)
}

fn memory() -> io::Result<Memory> {
    let number = |text: &str, key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key));
        value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
    };
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rss_bytes = number(&status, "VmRSS:").unwrap_or(0) * 1024;
    // A map may have more than one descriptor.
    let mut maps = HashMap::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo")? {
        let info = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        if let (Some(id), Some(bytes)) = (number(&info, "map_id:"), number(&info, "memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok(Memory { rss_bytes, maps_bytes: maps.values().sum() })
}

/// The other end: ends the process when dropped.
pub(crate) struct Holder {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Holder {
    /// Starts it and loads the probe.
    pub(crate) fn start(lossless: bool) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([ROLE, if lossless { "lossless" } else { "lossy" }])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (stdin, stdout) =
            (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
        let mut holder = Self { child, stdin, stdout: BufReader::new(stdout) };
        holder.expect("ready")?;
        Ok(holder)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answer(&mut self) -> Result<String, Box<dyn Error>> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err(format!("the process with the probe ended: {}", self.child.wait()?).into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn expect(&mut self, wanted: &str) -> Result<(), Box<dyn Error>> {
        let answer = self.answer()?;
        if answer == wanted { Ok(()) } else { Err(format!("{answer:?} instead of {wanted:?}").into()) }
    }

    pub(crate) fn watch(&mut self, index: usize, cgroup_id: u64, tgid: u32) -> Result<(), Box<dyn Error>> {
        writeln!(self.stdin, "watch {index} {cgroup_id} {tgid}")?;
        self.expect("watching")
    }

    pub(crate) fn seal(&mut self, index: usize) -> Result<Sealed, Box<dyn Error>> {
        writeln!(self.stdin, "seal {index}")?;
        Ok(serde_json::from_str(&self.answer()?)?)
    }

    pub(crate) fn memory(&mut self) -> Result<Memory, Box<dyn Error>> {
        writeln!(self.stdin, "memory")?;
        Ok(serde_json::from_str(&self.answer()?)?)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may be stopped; SIGKILL ends it all the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
