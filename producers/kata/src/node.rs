//! Whether this node can make containers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::api::{GetVersion, StatSnapshot};
use crate::backend::Config;
use crate::client::Client;
use crate::image;
use crate::records::SNAPSHOTTER;

/// Whether containerd answers and finds the runtime's shim; gives containerd's version.
///
/// # Errors
/// What is missing, and what to do about it.
pub async fn ready(config: &Config) -> Result<String, String> {
    let client = Client::connect(&config.address, &config.namespace).await?;
    let answered = client.call(GetVersion {}).await;
    let version =
        answered.map_err(|status| format!("containerd says no version: {}", status.message()))?.version;
    find_shim(&config.runtime, &search_path(&config.address).await)?;
    Ok(version)
}

/// Whether containerd has the image, unpacked.
///
/// # Errors
/// Why no container can be made of it.
pub async fn has_image(config: &Config) -> Result<(), String> {
    let client = Client::connect(&config.address, &config.namespace).await?;
    let image =
        image::find(&client, &config.image).await.map_err(|reason| format!("{}: {reason}", config.image))?;
    let stat = StatSnapshot { snapshotter: SNAPSHOTTER.to_owned(), key: image.snapshot };
    match client.call(stat).await {
        Ok(_) => Ok(()),
        Err(status) => Err(format!("the image {} is not unpacked: {}", config.image, status.message())),
    }
}

/// Where containerd looks for shims: its own PATH, then the folder of its program. Where that cannot be read, our PATH.
async fn search_path(address: &Path) -> Vec<PathBuf> {
    let peer = tokio::net::UnixStream::connect(address).await.and_then(|stream| stream.peer_cred());
    let process = peer.ok().and_then(|peer| peer.pid()).map(|pid| PathBuf::from(format!("/proc/{pid}")));
    let environment = process.as_ref().and_then(|process| std::fs::read(process.join("environ")).ok());
    let program = process.and_then(|process| process.join("exe").read_link().ok());
    let path = match environment {
        Some(environment) => variable(&environment, "PATH").unwrap_or_default(),
        None => std::env::var_os("PATH").unwrap_or_default(),
    };
    let beside = program.as_deref().and_then(Path::parent).map(Path::to_owned);
    std::env::split_paths(&path).chain(beside).collect()
}

/// proc_pid_environ(5): `NAME=value`, each with a zero byte after it.
fn variable(environment: &[u8], name: &str) -> Option<OsString> {
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(OsStr::from_bytes(value).to_owned())
    })
}

/// The program of a runtime, which is named by a path or by what containerd makes a file name of: `io.containerd.runc.v2` is
/// `containerd-shim-runc-v2`.
fn find_shim(runtime: &str, search: &[PathBuf]) -> Result<PathBuf, String> {
    if runtime.starts_with('/') {
        let path = PathBuf::from(runtime);
        return if path.is_file() { Ok(path) } else { Err(format!("there is no {runtime}")) };
    }
    let mut parts = runtime.rsplit('.');
    let (Some(version), Some(name), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("`{runtime}` is no runtime's name: one is io.containerd.runc.v2"));
    };
    let program = format!("containerd-shim-{name}-{version}");
    search.iter().map(|dir| dir.join(&program)).find(|path| path.is_file()).ok_or_else(|| {
        format!("containerd finds no {program} on its PATH, the shim of the runtime {runtime}: install it, or name another runtime")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_are_found_as_containerd_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("containerd-shim-runc-v2");
        std::fs::write(&shim, "").unwrap();
        let search = [PathBuf::from("/nonexistent"), dir.path().to_owned()];
        assert_eq!(find_shim("io.containerd.runc.v2", &search), Ok(shim.clone()));
        assert_eq!(find_shim(shim.to_str().unwrap(), &[]), Ok(shim));
        let missing = find_shim("io.containerd.kata.v2", &search).unwrap_err();
        assert!(missing.contains("containerd-shim-kata-v2"), "{missing}");
        for wrong in ["", "runc", "runc.v2", "/nonexistent/shim"] {
            assert!(find_shim(wrong, &search).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environment = b"MANPATH=/a\0PATH=/b:/c\0X\0";
        assert_eq!(variable(environment, "PATH"), Some("/b:/c".into()));
        assert_eq!(variable(environment, "X"), None);
    }
}
