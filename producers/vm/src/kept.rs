//! What came of trying whether a VMM boots a kernel under KVM: it takes seconds, and is not tried for every machine.
//!
//! It counts for that VMM, guest kernel and host kernel. That it does not boot counts for a day: a module that is loaded with other
//! options changes it, and no name shows that.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a failure counts.
const FAILED_FOR: Duration = Duration::from_secs(24 * 3600);
/// In the file of what booted; that of what did not has the reason.
const BOOTS: &str = "boots";

/// Where it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// Of this VMM's program, by what an update of it changes.
    pub(crate) fn at(cache: &Path, name: &str, vmm: &Path, vmlinux: &Path) -> Self {
        let host = nix::sys::utsname::uname();
        let host = host.map(|host| host.release().to_string_lossy().into_owned()).unwrap_or_default();
        let guest = vmlinux.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let program = std::fs::metadata(vmm).map(|file| (file.size(), file.mtime())).unwrap_or_default();
        let (size, changed) = program;
        Self(cache.join(format!("{name}-{size:x}-{changed:x}-{}-{guest}", host.replace('/', "_"))))
    }

    /// Whether it boots, or why not; `None` if that is to be tried.
    pub(crate) fn get(&self) -> Option<Result<(), String>> {
        let found = std::fs::read_to_string(&self.0).ok()?;
        if found == BOOTS {
            return Some(Ok(()));
        }
        let age = std::fs::metadata(&self.0).and_then(|file| file.modified()).ok()?.elapsed().ok()?;
        let file = self.0.display();
        // One that is empty is being written.
        (age < FAILED_FOR && !found.is_empty()).then(|| {
            Err(format!("{found} (tried {} min ago; to try it again now, remove {file})", age.as_secs() / 60))
        })
    }

    /// Keeps what came of it; without that it is tried again.
    pub(crate) fn put(&self, tried: &Result<(), String>) {
        let text = tried.as_ref().map_or_else(String::as_str, |()| BOOTS);
        if let Err(error) = std::fs::write(&self.0, text) {
            tracing::debug!(%error, "whether a kernel boots is not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_failure_counts_for_a_day_and_a_success_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::at(dir.path(), "vmm", Path::new("/bin/sh"), Path::new("/boot/vmlinux-1"));
        let of_day_before = || {
            let file = std::fs::File::options().write(true).open(&kept.0).unwrap();
            file.set_modified(SystemTime::now() - FAILED_FOR).unwrap();
        };
        assert_eq!(kept.get(), None);
        kept.put(&Err("it hangs".into()));
        let reason = kept.get().unwrap().unwrap_err();
        assert!(reason.starts_with("it hangs (tried 0 min ago; ") && reason.contains("vmm-"), "{reason}");
        of_day_before();
        assert_eq!(kept.get(), None);
        kept.put(&Ok(()));
        of_day_before();
        assert_eq!(kept.get(), Some(Ok(())));
    }

    #[test]
    fn another_program_or_kernel_is_tried_anew() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        std::fs::write(&program, "1").unwrap();
        let of = |name, kernel: &str| Kept::at(dir.path(), name, &program, Path::new(kernel));
        of("vmm", "a").put(&Ok(()));
        assert_eq!(of("vmm", "a").get(), Some(Ok(())));
        assert_eq!(of("vmm", "b").get(), None);
        assert_eq!(of("other", "a").get(), None);
        std::fs::write(&program, "12").unwrap();
        assert_eq!(of("vmm", "a").get(), None);
    }
}
