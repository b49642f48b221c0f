//! `glasshouse-guest-probe`: runs and watches one command inside a virtual machine, for the host at the other end of a link.
//!
//! As PID 1 it first makes the machine ready ([`machine`]) and takes its settings from the kernel's command line; at the
//! end it powers the machine off. As a service it is told where the host is:
//!
//! ```text
//! glasshouse-guest-probe --transport virtio-serial:NAME|shared-memory:NAME|vsock:PORT|unix:PATH
//! glasshouse-guest-probe --transport stdio --user UID:GID --capabilities NAMES    in a container, of whose rights a command gets these
//! glasshouse-guest-probe --transport nats:HOST:PORT --credentials FILE    by a server; the file is removed
//! glasshouse-guest-probe --transport jsonl[:FILE] [--watch] -- COMMAND…     no host: what it would be told, as JSON lines
//! ```
//! It is the engine of nothing: the host drives it step by step (`glasshouse-guest-link` has the order), and the parts
//! that run and watch are those of the host, the backend `process` and the controller `ebpf`.

#![deny(clippy::print_stdout)]

#[cfg(target_os = "linux")]
mod command;
#[cfg(target_os = "linux")]
mod container;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod settings;

#[cfg(target_os = "linux")]
use settings::Settings;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let is_init = settings::is_init();
    let problems = if is_init { machine::prepare() } else { Vec::new() };
    let done = settings::read(is_init).and_then(|settings| run(&settings, is_init, problems));
    if let Err(error) = &done {
        // On a machine of its own this is the console, which the host keeps.
        eprintln!("glasshouse-guest-probe: error: {error:#}");
    }
    if is_init {
        machine::power_off();
    }
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(_) => std::process::ExitCode::from(125),
    }
}

#[cfg(target_os = "linux")]
fn run(settings: &Settings, is_init: bool, mut problems: Vec<String>) -> anyhow::Result<()> {
    let container = settings.rights.as_ref().map(|rights| rights.enter(&mut problems)).transpose()?;
    let root = match is_init {
        true => machine::root(settings.root.as_ref())?,
        false => None,
    };
    if let Some(Err(error)) = settings.network.map(|network| network.enter()) {
        problems.push(format!("network: {error:#}"));
    }
    command::serve(settings, container.as_ref(), root, is_init, problems)
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("glasshouse-guest-probe: error: it runs inside Linux virtual machines");
    std::process::ExitCode::from(125)
}
