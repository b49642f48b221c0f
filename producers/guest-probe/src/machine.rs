//! What PID 1 does with its machine: mounts, modules, the command's root filesystem, and the end.

#![allow(unsafe_code, reason = "system calls without a safe API: entropy, and the reboot's")]

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};

use crate::network;
use crate::settings::Root;

/// The modules of the initramfs, and in which order they are loaded (`glasshouse-images` writes both).
const MODULES: &str = "/lib/modules";
const MODULES_LIST: &str = "/lib/modules/load";
/// What the host sends of entropy.
const ENTROPY_BYTES: usize = glasshouse_guest_link::ENTROPY_BYTES;
/// `_IOW('R', 3, int[2])` and `_IO('R', 7)` of include/uapi/linux/random.h.
const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;
/// How long drivers may take to make what is theirs.
const DRIVER_WITHIN: Duration = Duration::from_secs(10);
const VIRTIO: &str = "/sys/bus/virtio";
/// `VIRTIO_ID_BLOCK` of include/uapi/linux/virtio_ids.h, as it is written there.
const DISK: &str = "0x0002";
/// What the root filesystem may be. Which one it is the kernel finds out; the last is built in, and says on the console what it
/// does not find.
const FILESYSTEMS: [&str; 3] = ["erofs", "squashfs", "ext4"];

/// Makes the machine ready; gives what did not work, in words. What is really needed fails later, with its own words.
pub(crate) fn prepare() -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{what}: {error:#}"));
        }
    };
    note("proc", mount_new("proc", "/proc"));
    note("sysfs", mount_new("sysfs", "/sys"));
    note("devtmpfs", mount_new("devtmpfs", "/dev"));
    // Each is optional: a command that needs one that is missing says so.
    for (kind, at) in [
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        mount_optional(kind, at);
    }
    for (link, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = std::os::unix::fs::symlink(to, Path::new("/dev").join(link));
    }
    note("modules", load_modules());
    note("loopback", network::loopback_up());
    note("hostname", nix::unistd::sethostname("guest").map_err(Into::into));
    problems
}

/// Loads what the initramfs brought. One that is loaded or built in is no error.
fn load_modules() -> anyhow::Result<()> {
    let list = match fs::read_to_string(MODULES_LIST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        list => list.context(MODULES_LIST)?,
    };
    let mut failed = Vec::new();
    for name in list.lines() {
        let file = fs::File::open(Path::new(MODULES).join(name)).with_context(|| name.to_owned())?;
        if let Err(error) = load_module(&file) {
            failed.push(format!("{name}: {error}"));
        }
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn load_module(file: &fs::File) -> nix::Result<()> {
    match finit_module(file, c"", ModuleInitFlags::empty()) {
        Err(nix::errno::Errno::EEXIST) => Ok(()),
        loaded => loaded,
    }
}

/// Enters the command's root filesystem, or gives what is to be entered with the command.
pub(crate) fn root(root: Option<&Root>) -> anyhow::Result<Option<LateRoot>> {
    match root {
        Some(Root { device, driver: Some(driver) }) => LateRoot::hold(device, driver).map(Some),
        Some(Root { device, driver: None }) => enter_root(Some(device)).map(|()| None),
        None => enter_root(None).map(|()| None),
    }
}

/// A root filesystem on a disk that nobody has looked at yet.
pub(crate) struct LateRoot {
    device: PathBuf,
    /// What the bus calls the disk, and where its driver is told of it.
    name: OsString,
    bind: fs::File,
}

impl LateRoot {
    /// Has the driver ready, without its disk.
    fn hold(device: &Path, driver: &str) -> anyhow::Result<Self> {
        let bus = Path::new(VIRTIO);
        let autoprobe = bus.join("drivers_autoprobe");
        fs::write(&autoprobe, "0").context("keeping drivers from their devices")?;
        let loaded = load_driver(driver);
        fs::write(&autoprobe, "1").context("letting drivers have their devices")?;
        loaded.with_context(|| driver.to_owned())?;
        let devices = bus.join("devices");
        let name = awaited("disk on the virtio bus", || {
            let kind = |name: &OsString| fs::read_to_string(devices.join(name).join("device"));
            let mut names = fs::read_dir(&devices).ok()?.flatten().map(|entry| entry.file_name());
            names.find(|name| kind(name).is_ok_and(|kind| kind.trim_end() == DISK))
        })?;
        let driver = bus.join("drivers").join(driver);
        if devices.join(&name).join("driver").exists() {
            // A driver that is built in has it already.
            fs::write(driver.join("unbind"), name.as_bytes()).context("taking the disk from its driver")?;
        }
        let bind = fs::File::options().write(true).open(driver.join("bind")).context("the disk's driver")?;
        Ok(Self { device: device.to_owned(), name, bind })
    }

    /// Looks at the disk, and goes over to what is on it.
    pub(crate) fn enter(mut self) -> anyhow::Result<()> {
        self.bind.write_all(self.name.as_bytes()).context("the disk's driver does not take it")?;
        enter_root(Some(&self.device))
    }
}

/// Loads a driver that is not built in.
fn load_driver(name: &str) -> anyhow::Result<()> {
    match fs::File::open(Path::new(MODULES).join(name).with_extension("ko")) {
        Ok(file) => Ok(load_module(&file)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Goes over to the command's root filesystem, as a writable layer that is gone with the machine; without a disk it stays
/// in the initramfs. Everything that is mounted below /proc, /sys and /dev comes along.
fn enter_root(device: Option<&Path>) -> anyhow::Result<()> {
    if let Some(device) = device {
        awaited(&device.display().to_string(), || device.exists().then_some(()))?;
        for dir in ["/lower", "/rw", "/root"] {
            fs::create_dir_all(dir)?;
        }
        mount_lower(device)?;
        mount(Some("tmpfs"), "/rw", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .context("mounting a tmpfs")?;
        fs::create_dir("/rw/upper")?;
        fs::create_dir("/rw/work")?;
        let layers = "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work";
        mount(Some("overlay"), "/root", Some("overlay"), MsFlags::empty(), Some(layers))
            .context("mounting the overlay over the root filesystem")?;
        for dir in ["proc", "sys", "dev"] {
            let to = format!("/root/{dir}");
            fs::create_dir_all(&to)?;
            mount(
                Some(format!("/{dir}").as_str()),
                to.as_str(),
                None::<&str>,
                MsFlags::MS_MOVE,
                None::<&str>,
            )
            .with_context(|| format!("moving /{dir}"))?;
        }
        nix::unistd::chdir("/root")?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving the root")?;
        nix::unistd::chroot(".").context("entering the root filesystem")?;
        nix::unistd::chdir("/")?;
    }
    for at in ["/tmp", "/run"] {
        mount_optional("tmpfs", at);
    }
    Ok(())
}

fn mount_lower(device: &Path) -> anyhow::Result<()> {
    let mut reasons = Vec::new();
    for kind in FILESYSTEMS {
        match mount(Some(device), "/lower", Some(kind), MsFlags::MS_RDONLY, None::<&str>) {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("{kind}: {error}")),
        }
    }
    anyhow::bail!("the root filesystem {} cannot be mounted: {}", device.display(), reasons.join(", "))
}

/// Waits for what a driver makes a moment after it was loaded.
pub(crate) fn awaited<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let end = Instant::now() + DRIVER_WITHIN;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < end, "there is no {what} within {DRIVER_WITHIN:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn mount_optional(kind: &str, at: &str) {
    if let Err(error) = mount_new(kind, at) {
        eprintln!("glasshouse-guest-probe: {kind} at {at}: {error:#}");
    }
}

fn mount_new(kind: &str, at: &str) -> anyhow::Result<()> {
    fs::create_dir_all(at)?;
    mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)?;
    if at == "/tmp" || at == "/dev/shm" {
        fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    }
    Ok(())
}

/// Takes random bytes of the host's, and begins anew with them. What is missing then is said, and is the kernel's own.
pub(crate) fn reseed(entropy: &[u8]) {
    /// `struct rand_pool_info` of include/uapi/linux/random.h.
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        bytes: libc::c_int,
        entropy: [u8; ENTROPY_BYTES],
    }
    let Ok(entropy) = <[u8; ENTROPY_BYTES]>::try_from(entropy) else { return };
    let pool = Pool { bits: 8 * ENTROPY_BYTES as i32, bytes: ENTROPY_BYTES as i32, entropy };
    let reseeded = fs::File::open("/dev/urandom").and_then(|device| {
        // SAFETY: the first reads a pool of the length that is said in it, the second takes nothing.
        let failed = unsafe {
            libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) < 0
                || libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) < 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    });
    if let Err(error) = reseeded {
        eprintln!("glasshouse-guest-probe: the host's entropy cannot be used: {error}");
    }
}

/// Ends the machine. A restart ends every VMM that is told not to do it; a power-off would hang where there is no ACPI.
pub(crate) fn power_off() -> ! {
    // SAFETY: plain system calls without pointers.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_AUTOBOOT);
    }
    // Returns only if the kernel refused; then its panic ends the machine.
    std::process::exit(125)
}
