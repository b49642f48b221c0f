//! Holds the house together: which of our crates may depend on which, what never enters the pure crates, and that no
//! crate opts out of the workspace's lints.
//!
//! The table below is the architecture. A new arrow is a design decision: change `ALLOWED` and ARCHITECTURE.md together.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

type TestResult = Result<(), Box<dyn Error>>;

/// Each crate of ours and those of ours that it may depend on. `None`: a composition root, which may see everything.
const ALLOWED: &[(&str, Option<&[&str]>)] = &[
    ("glasshouse-schema", Some(&[])),
    ("glasshouse-bpf", Some(&[])),
    ("glasshouse-telemetry", Some(&[])),
    ("glasshouse-nats", Some(&["glasshouse-schema"])),
    ("glasshouse-execution", Some(&["glasshouse-schema"])),
    ("glasshouse-backends", Some(&["glasshouse-schema", "glasshouse-bpf", "glasshouse-execution"])),
    ("glasshouse-host-probe", Some(&["glasshouse-schema", "glasshouse-bpf", "glasshouse-execution"])),
    ("glasshouse-guest-link", Some(&["glasshouse-schema"])),
    ("glasshouse-guest-nats", Some(&["glasshouse-schema", "glasshouse-guest-link"])),
    // The whole of what runs and watches inside a virtual machine: a composition root of its own, without the bus.
    (
        "glasshouse-guest-probe",
        Some(&[
            "glasshouse-schema",
            "glasshouse-execution",
            "glasshouse-backends",
            "glasshouse-host-probe",
            "glasshouse-guest-link",
            "glasshouse-guest-nats",
        ]),
    ),
    ("glasshouse-images", Some(&[])),
    ("glasshouse-firecracker", Some(&[])),
    (
        "glasshouse-kata",
        Some(&["glasshouse-schema", "glasshouse-execution", "glasshouse-backends", "glasshouse-vm"]),
    ),
    (
        "glasshouse-vm",
        Some(&[
            "glasshouse-schema",
            "glasshouse-execution",
            "glasshouse-backends",
            "glasshouse-guest-link",
            "glasshouse-guest-nats",
            "glasshouse-images",
            "glasshouse-firecracker",
        ]),
    ),
    ("glasshouse-fold", Some(&["glasshouse-schema"])),
    (
        "glasshouse-aggregator",
        Some(&["glasshouse-schema", "glasshouse-fold", "glasshouse-nats", "glasshouse-telemetry"]),
    ),
    ("glasshouse-eval", Some(&["glasshouse-schema"])),
    (
        "glasshouse-policy-worker",
        Some(&["glasshouse-schema", "glasshouse-eval", "glasshouse-nats", "glasshouse-telemetry"]),
    ),
    (
        "glasshouse-runner",
        Some(&[
            "glasshouse-schema",
            "glasshouse-execution",
            "glasshouse-fold",
            "glasshouse-eval",
            "glasshouse-nats",
            "glasshouse-telemetry",
        ]),
    ),
    ("glasshouse-kernels", Some(&["glasshouse-bpf", "glasshouse-images"])),
    ("glasshouse", None),
    ("glasshouse-node-agent", None),
    ("glasshouse-e2e", None),
];

/// Crates that do no I/O and read no clock: not even through a dependency of a dependency may these be linked.
const PURE: &[&str] = &["glasshouse-schema", "glasshouse-fold", "glasshouse-eval"];
const NEVER_IN_PURE: &[&str] = &["tokio", "async-nats"];

/// A file near 800 lines wants to be two; this is where it stops.
const MAX_LINES: usize = 900;

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn command() -> MetadataCommand {
    let mut command = MetadataCommand::new();
    command.manifest_path(workspace_root().join("Cargo.toml"));
    command
}

/// The workspace's own packages; asks nothing of the network.
fn members() -> Result<Metadata, Box<dyn Error>> {
    Ok(command().no_deps().exec()?)
}

/// The resolved graph for the platform the test was built on, whose crates cargo has at hand already.
fn resolved() -> Result<Metadata, Box<dyn Error>> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc).arg("-vV").output()?;
    let version = String::from_utf8(output.stdout)?;
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
    Ok(command().other_options(["--filter-platform".to_owned(), host.to_owned()]).exec()?)
}

#[test]
fn every_crate_is_in_the_table() -> TestResult {
    let table: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let metadata = members()?;
    let found: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(
        found,
        table,
        "the workspace (left) and ALLOWED in {} (right) name different crates: give a new crate its arrows there",
        file!()
    );
    Ok(())
}

#[test]
fn our_crates_depend_only_along_the_allowed_arrows() -> TestResult {
    let table: BTreeMap<&str, Option<&[&str]>> = ALLOWED.iter().copied().collect();
    let mut forbidden = Vec::new();
    for package in members()?.packages {
        let name = package.name.as_str();
        let Some(Some(allowed)) = table.get(name) else { continue };
        for dependency in &package.dependencies {
            let ours = table.contains_key(dependency.name.as_str());
            // What only tests of a crate with I/O use may point anywhere; a pure crate's tests stay pure too.
            let counts = dependency.kind != DependencyKind::Development || PURE.contains(&name);
            if ours && counts && dependency.name != name && !allowed.contains(&dependency.name.as_str()) {
                forbidden.push(format!("  {name} -> {} ({})", dependency.name, package.manifest_path));
            }
        }
    }
    assert!(
        forbidden.is_empty(),
        "forbidden arrows between crates:\n{}\nMove the code to where the arrow is allowed; the table is ALLOWED in {}.",
        forbidden.join("\n"),
        file!()
    );
    Ok(())
}

#[test]
fn pure_crates_never_link_a_runtime_or_the_bus() -> TestResult {
    let metadata = resolved()?;
    let resolve = metadata.resolve.as_ref().ok_or("cargo metadata gave no resolved graph")?;
    let name_of: BTreeMap<&PackageId, &str> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    let edges: BTreeMap<&PackageId, Vec<&PackageId>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let linked = node.deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            });
            (&node.id, linked.map(|dependency| &dependency.pkg).collect())
        })
        .collect();

    let mut forbidden = Vec::new();
    for pure in PURE {
        let root = metadata
            .packages
            .iter()
            .find(|package| package.name.as_str() == *pure)
            .ok_or_else(|| format!("{pure} is not in the workspace"))?;
        // Breadth first, each crate with the path that led to it, so that the message names the way in.
        let mut seen = BTreeSet::from([&root.id]);
        let mut queue = std::collections::VecDeque::from([(&root.id, (*pure).to_owned())]);
        while let Some((id, path)) = queue.pop_front() {
            for next in edges.get(id).into_iter().flatten() {
                let name = name_of.get(next).copied().unwrap_or("?");
                let path = format!("{path} -> {name}");
                if NEVER_IN_PURE.contains(&name) {
                    forbidden.push(format!("  {path}"));
                } else if seen.insert(next) {
                    queue.push_back((next, path));
                }
            }
        }
    }
    assert!(
        forbidden.is_empty(),
        "crates that do no I/O and read no clock reach {}:\n{}",
        NEVER_IN_PURE.join(" or "),
        forbidden.join("\n")
    );
    Ok(())
}

#[test]
fn every_crate_inherits_the_workspace_lints() -> TestResult {
    let mut without = Vec::new();
    for package in members()?.packages {
        let manifest = std::fs::read_to_string(&package.manifest_path)?;
        let mut lines =
            manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let inherits =
            lines.by_ref().any(|line| line == "[lints]") && lines.next() == Some("workspace = true");
        if !inherits {
            without.push(format!("  {}", package.manifest_path));
        }
    }
    assert!(
        without.is_empty(),
        "these manifests do not inherit the workspace's lints; add\n[lints]\nworkspace = true\nto:\n{}",
        without.join("\n")
    );
    Ok(())
}

#[test]
fn no_source_file_is_too_long() -> TestResult {
    let mut too_long = Vec::new();
    let mut checked = 0_usize;
    let mut folders: Vec<PathBuf> = members()?
        .packages
        .iter()
        .filter_map(|package| package.manifest_path.parent())
        .map(Into::into)
        .collect();
    folders.push(workspace_root().join("scripts"));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
                continue;
            }
            if !path
                .extension()
                .is_some_and(|ext| ["rs", "c", "h", "sh", "py"].iter().any(|known| ext == *known))
            {
                continue;
            }
            checked += 1;
            let lines = String::from_utf8_lossy(&std::fs::read(&path)?).lines().count();
            if lines > MAX_LINES {
                too_long.push(format!("  {} has {lines} lines", path.display()));
            }
        }
    }
    assert!(checked > ALLOWED.len(), "only {checked} source files were found; the walk is broken");
    assert!(
        too_long.is_empty(),
        "source files above {MAX_LINES} lines want to be two:\n{}",
        too_long.join("\n")
    );
    Ok(())
}
