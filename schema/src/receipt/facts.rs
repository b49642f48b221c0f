//! The entries of a receipt's lists of facts. Their fields are declared in the order of canonical JSON, so that there is nothing to
//! sort when a receipt is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{is_false, is_zero};
use crate::ids::Vantage;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its last arguments, masked by the redaction rules.
    pub argv: Vec<String>,
    /// Its arguments were longer than the probe carries.
    #[serde(default, skip_serializing_if = "is_false")]
    pub argv_truncated: bool,
    /// How its credentials changed, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialChange>,
    /// When it ended; absent when that was not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<String>,
    /// Names of the watched environment variables, such as `LD_PRELOAD`, that were set at any of its execs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// Its environment was longer than the probe looks through.
    #[serde(default, skip_serializing_if = "is_false")]
    pub environment_truncated: bool,
    /// The program it ran last.
    pub exe: String,
    /// How `exe` was learnt, as in `files[].flags`: `unlinked` is a program run from memory or a deleted file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exe_flags: Vec<String>,
    /// What was special about any of its execs: `anonymous` (a program that never had a name), `deleted`, `privileged`
    /// (setuid, setgid or file capabilities), `namespace:pid` and so on (another one than the execution's root has).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec_flags: Vec<String>,
    /// Every program it ran, in order, when there was more than one or none of its own (a bare fork).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub execs: Vec<Exec>,
    /// Exit code; absent when a signal ended it or its end was not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// It never ran a program of its own: `exe`, `argv` and `working_dir` are its parent's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub forked_only: bool,
    /// Effective group id at its last exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Thread group id.
    pub pid: u32,
    /// Parent's thread group id.
    pub ppid: u32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// When it began, RFC 3339.
    pub start_time: String,
    /// Effective user id at its last exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// What it used; absent when its end was not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Who saw it.
    pub vantage: Vantage,
    /// Its working directory at its last exec.
    pub working_dir: String,
}

/// One program that a process ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exec {
    /// The arguments.
    pub argv: Vec<String>,
    /// As in `process_tree[].environment`, of this exec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// The program.
    pub exe: String,
    /// As in `process_tree[].exec_flags`, of this exec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec_flags: Vec<String>,
    /// When, RFC 3339.
    pub time: String,
    /// The working directory.
    pub working_dir: String,
}

/// What a process used from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Page faults that had to be read in.
    pub major_faults: u64,
    /// Largest resident set in KiB.
    pub max_rss_kb: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// CPU time in the kernel, microseconds.
    pub system_us: u64,
    /// CPU time in user space, microseconds.
    pub user_us: u64,
}

/// A process's credentials after they changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CredentialChange {
    /// Effective capabilities as in `/proc/<pid>/status`: 16 hexadecimal digits.
    pub capabilities: String,
    /// Effective group id.
    pub egid: u32,
    /// Effective user id.
    pub euid: u32,
    /// It could do more than before.
    pub gained: bool,
    /// Real group id.
    pub gid: u32,
    /// When, RFC 3339.
    pub time: String,
    /// Real user id.
    pub uid: u32,
}

/// A file, with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct File {
    /// Which processes did what: `read`, `write`, `path` (`O_PATH`), `create`, `delete`, `rename`, `change`, `execute`
    /// (mapped executable), `failed`, each with the ids of those that did. A create may find the file there, see
    /// `creates`.
    pub by: BTreeMap<String, Vec<u32>>,
    /// Bytes read from it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_read: u64,
    /// Bytes written to it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_written: u64,
    /// Other changes that succeeded: `link`, `symlink`, `mkdir`, `mknod`, `chmod`, `chown`, `truncate`, `mount`, `umount`,
    /// `move_mount`, `pivot_root`; and `map_executable`, which is a use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changes: BTreeMap<String, u64>,
    /// Successful opens that made the file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub created: u64,
    /// Successful opens with `O_CREAT`; the file may have been there before: `created` says how often it was not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub creates: u64,
    /// Successful removals.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deletes: u64,
    /// Failed attempts, per operation and errno, such as `open ENOENT`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, u64>,
    /// Successful exchanges with another name; each is in both `renamed_to` and `renamed_from`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exchanges: u64,
    /// Any of `truncated`, `unresolved`, `unlinked`, `masked`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// What it was made a hard link of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub linked_from: Vec<String>,
    /// Hard links that were made to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub linked_to: Vec<String>,
    /// Mode bits that were set, octal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modes: Vec<String>,
    /// What was mounted on it: sources, and where a mount was moved from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounted_from: Vec<String>,
    /// Its path.
    pub path: String,
    /// The path's bytes, hexadecimal, when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Successful opens that neither read nor write (`O_PATH`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub path_only: u64,
    /// Calls that read from it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub read_calls: u64,
    /// Successful opens for reading.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reads: u64,
    /// What was renamed to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renamed_from: Vec<String>,
    /// What it was renamed to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renamed_to: Vec<String>,
    /// Successful renames of it to another name.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub renames: u64,
    /// Targets that it was given as a symbolic link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symlink_targets: Vec<String>,
    /// Who saw it.
    pub vantage: Vantage,
    /// Calls that wrote to it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub write_calls: u64,
    /// Successful opens for writing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub writes: u64,
}

/// A socket address and what was done with it, with all that is known of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Socket {
    /// Bytes received from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// Bytes sent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// `address:port`, or a unix socket's path.
    pub dst: String,
    /// `connect`, `bind`, `listen` (`dst` is then its own address), `accept`, `send` (a datagram without a connect), or
    /// `traffic` with a peer of which none of those was seen.
    #[serde(default = "connect")]
    pub operation: String,
    /// Processes that did.
    pub pids: Vec<u32>,
    /// `tcp`, `udp`, `unix`, or the protocol's number.
    pub protocol: String,
    /// Calls that received from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receives: Option<u64>,
    /// How often per result, `ok` or the errno's name.
    pub results: BTreeMap<String, u64>,
    /// Calls that sent to the peer; absent, as the other three, where no traffic was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sends: Option<u64>,
    /// Who saw it.
    pub vantage: Vantage,
}

/// Receipts before there were others had connects only.
fn connect() -> String {
    crate::SocketOperation::Connect.as_str().into()
}

/// A name asked of a name server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Dns {
    /// Addresses that were answered, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
    /// The name, without the trailing dot.
    pub name: String,
    /// Processes that asked or got an answer.
    pub pids: Vec<u32>,
    /// How often per result: `asked`, and the response code of answers, `NOERROR`, `NXDOMAIN`, or its number.
    pub results: BTreeMap<String, u64>,
    /// The server, `address:port`.
    pub server: String,
    /// The type asked for: `A`, `AAAA`, and so on, or its number.
    #[serde(rename = "type")]
    pub query_type: String,
    /// Who saw it.
    pub vantage: Vantage,
}

/// Something that the kernel was asked for and that few programs need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// How often, whatever the result.
    pub count: u64,
    /// What of it: the signal's name, the namespaces (`mount|pid`), `read` or `write`, or a number.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// `ptrace`, `bpf`, `load_module`, `unload_module`, `set_namespace`, `unshare`, `io_uring`, `signal` (to a process outside
    /// of the execution), `memory_fd`, `keyring`, `process_memory`, `steal_descriptor`, `perf_event`, `user_fault`, `kexec`,
    /// `reboot`, `chroot` or `open_by_handle`.
    pub operation: String,
    /// Processes that did.
    pub pids: Vec<u32>,
    /// How often per result, `ok` or the errno's name.
    pub results: BTreeMap<String, u64>,
    /// Id of the process that it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u32>,
    /// Who saw it.
    pub vantage: Vantage,
}
