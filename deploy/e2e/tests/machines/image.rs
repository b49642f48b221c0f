//! A small root filesystem with programs of this host, as `glasshouse image build` makes it.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use glasshouse_e2e::{command, output, stderr};
use glasshouse_vm::{Parts, qemu};

const PROGRAMS: [&str; 14] = [
    "sh", "bash", "cat", "chmod", "head", "ln", "mkdir", "mv", "rm", "setsid", "sleep", "touch", "true",
    "kill",
];
/// What libraries look up, as it is on this host.
const LOOKED_UP: [&str; 4] = ["/etc/ld.so.cache", "/etc/passwd", "/etc/nsswitch.conf", "/etc/hostname"];
const EMPTY: [&str; 7] = ["proc", "sys", "dev", "tmp", "run", "srv", "etc"];
/// Folders that Debian has below /usr, and links to there.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// The image, or why there can be no machine here.
pub(crate) fn made() -> Result<PathBuf, String> {
    static IMAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let make = || {
        Parts::find().map_err(|error| error.to_string())?;
        qemu::program()?;
        make()
    };
    IMAGE.get_or_init(make).clone()
}

/// Makes it, unless it is there.
pub(crate) fn make() -> Result<PathBuf, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let tree = tempfile::tempdir_in(dir).unwrap();
    let tree = tree.path();
    for folder in EMPTY {
        std::fs::create_dir_all(tree.join(folder)).unwrap();
    }
    for folder in MERGED {
        std::fs::create_dir_all(tree.join("usr").join(folder)).unwrap();
        std::os::unix::fs::symlink(Path::new("usr").join(folder), tree.join(folder)).unwrap();
    }
    let mut files: BTreeSet<PathBuf> = LOOKED_UP.iter().map(PathBuf::from).collect();
    for program in PROGRAMS {
        let path = Path::new("/usr/bin").join(program);
        let libraries = Command::new("ldd").arg(&path).output().map_err(|error| format!("ldd: {error}"))?;
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        files.extend(libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        files.insert(path);
    }
    for file in files {
        let to = tree.join(file.strip_prefix("/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        // The file itself, and where it has another name, the link.
        let real = file.canonicalize().map_err(|error| format!("{}: {error}", file.display()))?;
        let target = tree.join(real.strip_prefix("/").unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&real, &target).map_err(|error| format!("{}: {error}", real.display()))?;
        if !to.exists() {
            std::os::unix::fs::symlink(&real, &to).unwrap();
        }
    }
    let built = tempfile::NamedTempFile::new_in(dir).unwrap().into_temp_path();
    let mut build = command("glasshouse");
    build.args(["image", "build", "--json", "--from"]).arg(tree).arg("-o").arg(&built);
    let told = output(build);
    assert!(told.status.success(), "{}", stderr(&told));
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["filesystem"], "erofs", "{told}");
    // Each test is a process that makes the image. One that is there stays the very file: a machine that another test keeps is
    // known by it.
    let image = dir.join(format!("machines-{}.img", told["sha256"].as_str().unwrap()));
    match built.persist_noclobber(&image) {
        Err(error) if error.error.kind() != ErrorKind::AlreadyExists => Err(error.to_string()),
        _ => Ok(image),
    }
}
