//! The OCI runtime specification of one execution.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::limits::Limits;
use glasshouse_vm::Surroundings;
use serde_json::{Value, json};

use crate::image;

/// The type that containerd knows the document by.
pub(crate) const TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// What a container's root may do, as Docker and containerd's own client have it.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// The folder of their cgroups. The backend `process` ends whoever is in its own, `glasshouse`, and has no runner there.
const CGROUPS: &str = "/glasshouse-containers";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a probe may do beside that: load programs and read with them, mount a cgroup filesystem, ask for a CPU before others.
const OF_A_PROBE: [&str; 4] = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_NICE"];
/// Where the probe is in its container: in a filesystem of the container's own, so that nothing of the image is covered.
pub(crate) const PROBE: &str = "/dev/glasshouse-guest-probe";

/// What the document is made of.
pub(crate) struct Parts<'a> {
    pub(crate) spec: &'a ExecutionSpec,
    pub(crate) image: &'a image::Config,
    /// Files and folders of the node that are seen at the same path.
    pub(crate) binds: &'a [PathBuf],
    /// A pid namespace to join.
    pub(crate) pid_namespace: &'a Path,
    /// The command of the spec is this guest probe, which runs another one in the container.
    pub(crate) probe: Option<&'a Path>,
}

/// What a command of the image has that was given none.
pub(crate) fn surroundings(image: &image::Config) -> Surroundings {
    let pair = |variable: &String| {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        (name.into(), value.into())
    };
    let env = image.env.as_ref().map(|env| env.iter().map(pair).collect());
    let workdir = if image.working_dir.is_empty() { "/" } else { &image.working_dir };
    Surroundings { env: env.unwrap_or_else(|| vec![("PATH".into(), PATH.into())]), workdir: workdir.into() }
}

/// The document; `Err` says what cannot be said in it.
pub(crate) fn document(parts: &Parts<'_>) -> Result<Value, String> {
    let Parts { spec, binds, pid_namespace, probe, .. } = parts;
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    for path in *binds {
        let path = text("path", path.as_os_str())?;
        mounts.push(json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "rw"]}));
    }
    let mut namespaces = vec![
        json!({"type": "pid", "path": pid_namespace}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "mount"}),
        // Nobody connects it to anything.
        json!({"type": "network"}),
    ];
    if let Some(probe) = probe {
        let probe = text("path", probe.as_os_str())?;
        mounts.push(json!({"destination": PROBE, "type": "bind", "source": probe, "options": ["bind", "ro", "nosuid"]}));
        // It sees the container's cgroup and what is below, and nothing else.
        namespaces.push(json!({"type": "cgroup"}));
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(parts)?,
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "glasshouse",
        "mounts": mounts,
        "linux": {
            "cgroupsPath": format!("{CGROUPS}/{}", spec.id),
            "resources": resources(&spec.limits),
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

/// The container's process: the command, or the probe, which is told as whom and with which rights it runs another one.
fn process(parts: &Parts<'_>) -> Result<Value, String> {
    let Parts { spec, image, probe, .. } = parts;
    let Surroundings { env, workdir } = surroundings(image);
    let (env, workdir) = (spec.env.as_ref().unwrap_or(&env), spec.workdir.as_ref().unwrap_or(&workdir));
    let pair = |(name, value): &(OsString, OsString)| {
        Ok::<_, String>(format!("{}={}", text("variable", name)?, text("variable", value)?))
    };
    let mut args =
        spec.argv.iter().map(|argument| text("argument", argument)).collect::<Result<Vec<_>, _>>()?;
    let (mut uid, mut gid) = user(&image.user)?;
    let (mut capabilities, mut files) = (CAPABILITIES.to_vec(), spec.limits.open_files);
    let mut cwd = text("path", workdir.as_os_str())?;
    if probe.is_some() {
        args.extend(["--user".to_owned(), format!("{uid}:{gid}")]);
        args.extend(["--capabilities".to_owned(), CAPABILITIES.join(",")]);
        (uid, gid, files, cwd) = (0, 0, None, "/".to_owned());
        capabilities.extend(OF_A_PROBE);
    }
    let rlimits = files.map(|files| json!({"type": "RLIMIT_NOFILE", "hard": files, "soft": files}));
    Ok(json!({
        "terminal": false,
        "user": {"uid": uid, "gid": gid},
        "args": args,
        "env": env.iter().map(pair).collect::<Result<Vec<_>, _>>()?,
        "cwd": cwd,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "rlimits": rlimits.into_iter().collect::<Vec<_>>(),
        "noNewPrivileges": true,
    }))
}

fn resources(limits: &Limits) -> Value {
    let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if let Some(bytes) = limits.memory_bytes {
        // What swap and memory may take together: swap is no way out.
        resources["memory"] = json!({"limit": bytes, "swap": bytes});
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({"limit": pids});
    }
    resources
}

/// JSON holds nothing but UTF-8.
fn text(what: &str, text: &OsStr) -> Result<String, String> {
    text.to_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("the {what} {text:?} is not UTF-8, and a container's have to be"))
}

/// `uid[:gid]`. Names are the image's own, and are not looked up in it.
fn user(user: &str) -> Result<(u32, u32), String> {
    if user.is_empty() {
        return Ok((0, 0));
    }
    let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ if user == "root" => Ok((0, 0)),
        _ => Err(format!("the image's user `{user}` is a name: only numbers are taken")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(user("").unwrap(), (0, 0));
        assert_eq!(user("root").unwrap(), (0, 0));
        assert_eq!(user("65534").unwrap(), (65534, 0));
        assert_eq!(user("1:2").unwrap(), (1, 2));
        assert!(user("nobody").unwrap_err().contains("nobody"));
    }

    #[test]
    fn limits_are_resources() {
        let limits = Limits { memory_bytes: Some(4096), pids: Some(7), ..Limits::default() };
        let resources = resources(&limits);
        assert_eq!(resources["memory"], json!({"limit": 4096, "swap": 4096}));
        assert_eq!(resources["pids"], json!({"limit": 7}));
    }
}
