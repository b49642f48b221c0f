//! The jailer (docs/jailer.md of Firecracker's source): a user, a root and a cgroup of its own, then Firecracker.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

const MAX_ID_BYTES: usize = 64;
/// Where the API is in the jail without `--api-sock`.
const API_SOCKET: &str = "run/firecracker.socket";

/// Why there can be no such jail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JailerError {
    /// The id becomes part of paths.
    #[error("{0:?} is no id for a jail: letters, digits and - only, 64 at most")]
    Id(String),
    /// Root can leave its root.
    #[error("a jail's user and group cannot be root")]
    Root,
    /// The jailer opens them after it has moved.
    #[error("{0:?} must be an absolute path")]
    Relative(PathBuf),
    /// A cgroup that would not be below the one it is meant to be in.
    #[error("{0:?} is no place of a cgroup: it is relative to the cgroups' root and has no ..")]
    Cgroup(PathBuf),
}

/// One jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jailer {
    /// The jailer program.
    pub program: PathBuf,
    /// The Firecracker program, which is copied into the jail.
    pub firecracker: PathBuf,
    /// Firecracker's `--id`, and the jail's place below the base.
    pub id: String,
    /// Whom Firecracker becomes.
    pub uid: u32,
    /// And its group.
    pub gid: u32,
    /// The folder of all jails.
    pub base: PathBuf,
    /// A cgroup of version 2 that is there and that it is moved to, from the cgroups' root; without it, it stays where it is.
    pub cgroup: Option<PathBuf>,
}

impl Jailer {
    /// # Errors
    /// [`JailerError`].
    pub fn check(&self) -> Result<(), JailerError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if self.id.is_empty() || self.id.len() > MAX_ID_BYTES || !self.id.bytes().all(plain) {
            return Err(JailerError::Id(self.id.clone()));
        }
        if self.uid == 0 || self.gid == 0 {
            return Err(JailerError::Root);
        }
        for path in [&self.program, &self.firecracker, &self.base] {
            if !path.is_absolute() {
                return Err(JailerError::Relative(path.clone()));
            }
        }
        let is_plain = |path: &Path| {
            path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
                && !path.as_os_str().is_empty()
        };
        match &self.cgroup {
            Some(cgroup) if !is_plain(cgroup) => Err(JailerError::Cgroup(cgroup.clone())),
            _ => Ok(()),
        }
    }

    /// The jail's root on this machine. What Firecracker is told of lies below it, by the path from it.
    pub fn root(&self) -> PathBuf {
        let name = self.firecracker.file_name().unwrap_or_default();
        self.base.join(name).join(&self.id).join("root")
    }

    /// The API's socket on this machine.
    pub fn api_socket(&self) -> PathBuf {
        self.root().join(API_SOCKET)
    }

    /// Program and arguments.
    pub fn command(&self) -> Vec<OsString> {
        let mut command: Vec<OsString> = vec![self.program.clone().into()];
        let mut option = |name: &str, value: OsString| command.extend([name.into(), value]);
        option("--id", self.id.clone().into());
        option("--exec-file", self.firecracker.clone().into());
        option("--uid", self.uid.to_string().into());
        option("--gid", self.gid.to_string().into());
        option("--chroot-base-dir", self.base.clone().into());
        // With version 2 and no values to set, the jailer makes no cgroup.
        option("--cgroup-version", "2".into());
        if let Some(cgroup) = &self.cgroup {
            option("--parent-cgroup", cgroup.clone().into());
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jailer() -> Jailer {
        Jailer {
            program: "/usr/bin/jailer".into(),
            firecracker: "/usr/bin/firecracker".into(),
            id: "0196-ab".into(),
            uid: 30_000,
            gid: 30_001,
            base: "/srv/jailer".into(),
            cgroup: Some("glasshouse/0196-ab".into()),
        }
    }

    #[test]
    fn a_jail_has_its_own_user_root_and_cgroup() {
        let jailer = jailer();
        jailer.check().unwrap();
        let command: Vec<String> =
            jailer.command().into_iter().map(|word| word.into_string().unwrap()).collect();
        assert_eq!(
            command.join(" "),
            "/usr/bin/jailer --id 0196-ab --exec-file /usr/bin/firecracker --uid 30000 --gid 30001 \
             --chroot-base-dir /srv/jailer --cgroup-version 2 --parent-cgroup glasshouse/0196-ab"
        );
        assert_eq!(
            jailer.api_socket(),
            Path::new("/srv/jailer/firecracker/0196-ab/root/run/firecracker.socket")
        );
    }

    #[test]
    fn what_would_leave_the_jail_is_refused() {
        for id in ["", "../x", "a/b", "a b", "a_b", &"a".repeat(65)] {
            assert_eq!(Jailer { id: id.into(), ..jailer() }.check(), Err(JailerError::Id(id.into())));
        }
        assert_eq!(Jailer { uid: 0, ..jailer() }.check(), Err(JailerError::Root));
        assert_eq!(Jailer { gid: 0, ..jailer() }.check(), Err(JailerError::Root));
        assert!(matches!(Jailer { base: "jails".into(), ..jailer() }.check(), Err(JailerError::Relative(_))));
        for cgroup in ["", "/a", "../a", "a/../../b"] {
            let result = Jailer { cgroup: Some(cgroup.into()), ..jailer() }.check();
            assert!(matches!(result, Err(JailerError::Cgroup(_))), "{cgroup}");
        }
    }
}
