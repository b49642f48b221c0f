//! Writes the seeds that are not golden files: `cargo run --example seeds`, in this folder.

use std::path::Path;

use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::PhaseName;
use glasshouse_schema::subject;
use glasshouse_schema_fuzz::golden_lifecycle;

fn main() -> std::io::Result<()> {
    write("argv", &argv())?;
    write("event_subject", &subjects())?;
    write("fold", &folds())
}

fn write(target: &str, seeds: &[(&str, Vec<u8>)]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    std::fs::create_dir_all(&folder)?;
    seeds.iter().try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes))
}

/// What begins with `finding` once went wrong.
fn argv() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = [
        ("plain", "make\0-j4\0--author=Ana\0CC=/usr/bin/cc"),
        ("paths", "cat\0/home/ana/notes\0--file=/home/ana/.ssh/id\0/home/anatole/x"),
        ("options", "curl\0--token=hunter2\0--password\0hunter2\0-H\0Authorization: Bearer hunter2"),
        ("addresses", "git\0clone\0https://ana:hunter2@example.org/x\0ftp://a:b@c/ d://e:f@g"),
        ("tokens", "sh\0-c\0T=ghp_abcdefghijklmnopqrstuv make\0/tmp/glpat-abcdefghijklmnopqrstuv"),
        ("json", "curl\0-d\0{\"user\": \"ana\", \"password\": \"hunter2\", \"api_key\":'x'}"),
        ("masked", "--token=<masked:0011223344556677>\0<masked:>\0/home/ana/<masked:0011223344556677>"),
        ("dashes", "tool\0--password\0-hunter2\0--password\0--user=/home/ana/x\0--token\0--\0x"),
        ("several", "token=a,b=/home/ana/x\0token=token:token='x' token: bearer y\0a=b=/home/ana/x"),
        ("finding-mark-in-value", "--token=<masked:hunter2>\0ftp://ana:<masked:hunter2@example.org"),
        ("finding-path-query", "/home/ana/x?token="),
        ("finding-path-colon", "/home/ana/x:token=v"),
    ]
    .map(|(name, argv)| (name, argv.as_bytes().to_vec()))
    .to_vec();
    let beside = b"\xff\xff\xff\xff\"tokenr\":true}},&le=/home/ana//";
    seeds.push(("finding-path-beside-secret", beside.to_vec()));
    // As long as an argument gets (`ARGV_BYTES` of the kernel's ABI).
    seeds.push(("finding-slow-dashes", b"-".repeat(8192)));
    seeds
}

fn subjects() -> Vec<(&'static str, Vec<u8>)> {
    let claimed = &golden_lifecycle()[2];
    let (node, execution) = (claimed.node.as_ref(), claimed.execution_id);
    let frames = subject::frames(node.expect("a claim names its node"), execution, Vantage::Host);
    let stored = subject::stored(255, &frames).expect("our subject has our prefix");
    let closed = subject::lifecycle(None, execution, PhaseName::Closed);
    let failed = subject::lifecycle(node, execution, PhaseName::Failed);
    [("frames", frames), ("stored", stored), ("closed", closed), ("failed", failed)]
        .map(|(name, subject)| (name, subject.into_bytes()))
        .to_vec()
}

/// Executions of golden events and frames, see the target for the format.
fn folds() -> Vec<(&'static str, Vec<u8>)> {
    const AS_IT_STANDS: u8 = 0;
    const FITTED_AND_LINKED: u8 = 3;
    let first_events = &include_bytes!("../../tests/golden/frame-v1-events.bin")[..];
    let first_seal = &include_bytes!("../../tests/golden/frame-v1-seal.bin")[..];
    let second_events = &include_bytes!("../../tests/golden/frame-v2-events.bin")[..];
    let events = &include_bytes!("../../tests/golden/frame-v3-events.bin")[..];
    let seal = &include_bytes!("../../tests/golden/frame-v3-seal.bin")[..];
    let claimed = &include_bytes!("../../tests/golden/lifecycle-claimed.json")[..];
    let phases = |told: &[PhaseName]| {
        let bits = PhaseName::ALL.iter().enumerate().filter(|(_, name)| told.contains(name));
        bits.fold(0u16, |mask, (bit, _)| mask | 1 << bit).to_le_bytes()
    };
    let input = |told: &[PhaseName], deliveries: &[(u8, &[u8])]| {
        let mut input = phases(told).to_vec();
        for (flags, bytes) in deliveries {
            input.push(*flags);
            input.extend((bytes.len() as u16).to_le_bytes());
            input.extend(*bytes);
        }
        input
    };
    use PhaseName::*;
    let whole = [Requested, Admitted, Claimed, Prepared, Started, Profiled, Exited, Sealed, Cleaned];
    let other = String::from_utf8_lossy(claimed).replace("node-1", "node-2").into_bytes();
    vec![
        ("whole", input(&whole, &[(AS_IT_STANDS, events), (AS_IT_STANDS, seal)])),
        (
            "linked",
            input(
                &whole,
                &[(FITTED_AND_LINKED, events), (FITTED_AND_LINKED, events), (FITTED_AND_LINKED, seal)],
            ),
        ),
        ("first-version", input(&whole, &[(AS_IT_STANDS, first_events), (AS_IT_STANDS, first_seal)])),
        (
            "versions",
            input(
                &whole,
                &[
                    (FITTED_AND_LINKED, first_events),
                    (FITTED_AND_LINKED, second_events),
                    (FITTED_AND_LINKED, events),
                ],
            ),
        ),
        ("gap", input(&whole, &[(AS_IT_STANDS, seal)])),
        ("disputed", input(&whole, &[(AS_IT_STANDS, events), (AS_IT_STANDS, &other), (AS_IT_STANDS, seal)])),
        ("failed", input(&[Requested, Admitted, Claimed, Failed, Cleaned], &[])),
        ("unprofiled", input(&[Requested, Admitted, Claimed, Prepared, Started, Unprofiled, Exited], &[])),
    ]
}
